"""Is it safe to fork now? The zygote asks, after it has imported the app and before it forks its workers.

What lives here: finding threads and connections that a fork would break, and naming whose they are. A thread does not live on
in the child, and the locks it held stay locked; a connection would be shared by all workers, which mix up its bytes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass(frozen=True, slots=True)
class Found:
    """refused: each a reason not to fork. warnings: what may be harmless, as threads of C libraries are."""

    refused: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def remedy(self) -> str:
        return (
            "begin threads and connections in after_fork (--hooks FILE), or lazily in the first request, or close them in "
            "before_fork; or let each worker import the app: --no-preload"
        )


@contextlib.contextmanager
def noting_threads() -> Iterator[None]:
    """Within, each thread that is started is noted with the innermost module outside the standard library that asks for it:
    later its frames and its target may be the standard library's alone (an executor's thread, a Timer)."""
    start = threading.Thread.start

    def noted(thread: threading.Thread, *arguments: Any) -> None:
        vars(thread)[_BEGUN_BY] = _asker(sys._getframe(1))
        start(thread, *arguments)

    threading.Thread.start = noted  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        if threading.Thread.start is noted:  # else the app has wrapped it, and needs it
            threading.Thread.start = start  # type: ignore[method-assign]


_BEGUN_BY = "_midstream_begun_by"
_OURS = ("midstream.serve.", "__main__")


def _asker(frame: FrameType | None) -> str:
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] not in sys.stdlib_module_names and not name.startswith(_OURS):
            return name
        frame = frame.f_back
    return ""


def look_behind(ours: Collection[int], close: Callable[[], None]) -> Found:
    """As `look`; where something stands in the way, close() may first put it out of the way: it is the hook before_fork."""
    found = look(ours)
    if not found.refused:
        return found
    close()
    gc.collect()  # what it let go in a circle is closed now
    return look(ours)


def look(ours: Collection[int]) -> Found:
    """ours: descriptors of connections that the zygote itself has."""
    threads = [_thread_text(one) for one in threading.enumerate() if one is not threading.main_thread()]
    known = {one.ident for one in threading.enumerate()}
    # Begun by _thread.start_new_thread: no Thread object, but a frame.
    threads += [
        f"a Python thread of {_module_of(frame)}"
        for ident, frame in sys._current_frames().items()
        if ident not in known
    ]
    sockets = [_socket_text(fd, peer) for fd, peer in connected_sockets(ours)]
    native = _native_threads(1 + len(threads))
    warnings = (
        (f"{len(native)} native threads ({', '.join(sorted(set(native)))}) do not live on in the workers; ",)
        if native
        else ()
    )
    return Found(
        tuple(threads + sockets),
        tuple(
            text + "libraries such as numpy begin new ones there (OMP_NUM_THREADS=1 or the like avoids them)"
            for text in warnings
        ),
    )


def connected_sockets(ours: Collection[int]) -> list[tuple[int, str]]:
    """(descriptor, peer) of each open socket of this process that is connected to somebody."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd in ours or not _is_socket(fd):
            continue
        try:
            sock = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        with sock:
            try:
                found.append((fd, _peer_text(sock)))
            except OSError:
                continue  # not connected: a listener, a datagram socket
    return found


def _is_socket(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False


def _peer_text(sock: socket.socket) -> str:
    peer = sock.getpeername()
    if sock.family == socket.AF_UNIX:
        return os.fsdecode(peer) or "a unix socket without a name"
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else str(peer)


def _thread_text(thread: threading.Thread) -> str:
    begun_by = vars(thread).get(_BEGUN_BY)
    if begun_by:
        return f"thread {thread.name!r} of {begun_by}"
    frame = sys._current_frames().get(thread.ident or 0)
    target = getattr(thread, "_target", None)
    module = getattr(target, "__module__", None) or type(thread).__module__
    if module in _NEUTRAL and frame is not None:
        module = _module_of(frame)
    return f"thread {thread.name!r} of {module}"


_NEUTRAL = ("threading", "concurrent.futures.thread", "queue", "socket", "selectors", "asyncio.base_events", "ssl")


def _module_of(frame: FrameType | None) -> str:
    """The module of the outermost frame that is not one of the machinery's."""
    modules = []
    while frame is not None:
        modules.append(str(frame.f_globals.get("__name__", "?")))
        frame = frame.f_back
    return next((name for name in reversed(modules) if name not in _NEUTRAL), modules[-1] if modules else "?")


def _socket_text(fd: int, peer: str) -> str:
    owner = _owner_of(fd)
    return f"a connection to {peer} (descriptor {fd}) of {owner or 'a C library'}"


def _owner_of(fd: int) -> str:
    """The module of the object that holds the Python socket of this descriptor; "" when no Python object has it."""
    holder = next((one for one in gc.get_objects() if isinstance(one, socket.socket) and one.fileno() == fd), None)
    if holder is None:
        return ""
    seen = {id(holder)}
    layer: list[object] = [holder]
    for _ in range(6):
        found: list[object] = []
        for referrer in gc.get_referrers(*layer):
            if id(referrer) in seen or isinstance(referrer, FrameType) or referrer is layer:
                continue
            seen.add(id(referrer))
            name = _name_of(referrer)
            if name:
                return name
            found.append(referrer)
        layer = found[:200]
        if not layer:
            break
    return type(holder).__module__


def _name_of(referrer: object) -> str:
    """What names an owner: a module's variables, or an instance of a class that is not the machinery's."""
    if isinstance(referrer, dict):
        name = referrer.get("__name__")
        is_module = isinstance(name, str) and sys.modules.get(name) is not None
        return str(name) if is_module and vars(sys.modules[str(name)]) is referrer and name != __name__ else ""
    module = type(referrer).__module__
    if module in ("builtins", "collections", "weakref", "_io", "io", "functools", *_NEUTRAL):
        return ""
    return f"{module}.{type(referrer).__qualname__}"


def _native_threads(python_threads: int) -> list[str]:
    """Names of threads that Python does not know. Which is whose cannot be told, so the main one is left out and the rest
    counted."""
    own = os.getpid()
    tasks = [int(name) for name in os.listdir("/proc/self/task") if int(name) != own]
    if len(tasks) < python_threads:
        return []
    known = {one.native_id for one in threading.enumerate()}
    names = []
    for task in tasks:
        if task in known:
            continue
        try:
            with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as comm:
                names.append(comm.read().strip())
        except OSError:
            continue
    return names
