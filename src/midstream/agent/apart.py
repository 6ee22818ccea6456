"""File work that may never end (a dead NFS server, somebody's FUSE folder), in a thread that nobody has to wait for.

Not asyncio.to_thread: its few threads are shared by all, and the agent's own end waits for them. While it does, it is
attached to the keeper and brings nothing back. Runs in the agent's loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from midstream.errors import HostError

BUSY_MAX = 16  # threads of one user at a time
LIST_S = 20.0  # for a folder's list, or a few small files
PIECE_S = 60.0  # for a MiB of a file

T = TypeVar("T")

_busy: Counter[int] = Counter()


async def apart(uid: int, do: Callable[..., T], *args: object) -> T:
    """`do(*args)`, whose user is `uid`. A caller that goes away leaves the thread to itself. Raises what it raised, and
    HostError when too many of the user's hang."""
    if _busy[uid] >= BUSY_MAX:
        raise HostError(
            f"{BUSY_MAX} files of uid {uid} are being read or written already",
            remedy="wait for them; when they hang, look at the file system they are on",
        )
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        _busy[uid] -= 1
        if not _busy[uid]:
            del _busy[uid]
        if ended.done():
            return
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failed = None, None
        try:
            result = do(*args)
        except BaseException as error:
            failed = error
        with suppress(RuntimeError):  # the loop is closed: the agent has ended
            loop.call_soon_threadsafe(tell, result, failed)

    _busy[uid] += 1
    try:
        threading.Thread(target=run, daemon=True, name=f"files of {uid}").start()
    except RuntimeError as error:  # no more threads
        tell(None, HostError(f"no thread could be started: {error}", remedy="see the limits of the agent's user"))
    return await ended


async def within(work: Awaitable[T], timeout_s: float, where: str) -> T:
    """What comes of file work in a thread. Raises HostError when it takes longer; the thread is left to itself."""
    try:
        return await asyncio.wait_for(work, timeout_s)
    except TimeoutError:
        raise HostError(
            f"the file system does not answer within {timeout_s:g} s",
            where=where,
            remedy="look at what it is mounted from (a dead NFS server?); the agent goes on without it",
        ) from None


async def read_apart(uid: int, where: str, do: Callable[..., T], *args: object) -> T:
    """`do(*args)` in a thread of the user's, for a bounded time. Raises what it raises, and HostError."""
    return await within(apart(uid, do, *args), LIST_S, where)
