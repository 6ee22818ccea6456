"""Thousands of descriptors that seldom have something to say, behind one that the event loop watches.

asyncio keeps 500 bytes for each of its readers (handle, context, key, arguments): with an output FIFO and a notify socket
for each of a thousand services that is a megabyte. Here each costs its place in a table. Runs in the agent's loop; what is
read, and by whom, is not decided here.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")
_BATCH = 64  # then the loop does something else; the kernel goes on with the next ones


class Readers(Generic[T]):
    """`read(item)` is called when its descriptor is readable, again as long as it is. What it raises is told as asyncio tells
    it of a reader of its own, and the others are read. To be made in the running loop."""

    __slots__ = ("_epoll", "_items", "_loop", "_read")

    def __init__(self, read: Callable[[T], object]) -> None:
        self._read = read
        self._items: dict[int, T] = {}
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def add(self, fd: int, item: T) -> None:
        """Of one that is there already the item is replaced. Raises OSError."""
        if fd not in self._items:
            self._epoll.register(fd, select.EPOLLIN)
        self._items[fd] = item

    def remove(self, fd: int) -> None:
        """Before it is closed: others may share it. One that is not there is no error."""
        if self._items.pop(fd, None) is not None:
            with suppress(OSError):  # closed all the same, and shared with nobody
                self._epoll.unregister(fd)

    def close(self) -> None:
        """May be called twice. Its descriptors stay open."""
        if not self._epoll.closed:
            self._items.clear()
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0, _BATCH):
            item = self._items.get(fd)
            if item is None:
                continue  # removed by one before it, or all are
            try:
                self._read(item)
            except Exception as error:
                self._loop.call_exception_handler({"message": f"Exception in reader of fd {fd}", "exception": error})
