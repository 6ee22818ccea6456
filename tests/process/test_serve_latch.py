"""The latch of the listeners, and who lifts it: a thread that has nothing more to do, or the timer."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from midstream.serve import app_threads
from midstream.serve.app_threads import AppThreads
from midstream.serve.latch import Latch

PATIENCE_S = 20.0


class Crew:
    """Threads that leave the latch down."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def gather(self) -> None:
        self.said.append("gather")

    def ring(self) -> None:
        self.said.append("ring")

    def will_lift(self) -> bool:
        return True


@pytest.fixture
def readable() -> Iterator[socket.socket]:
    """A socket that is readable for ever."""
    near, far = socket.socketpair()
    with near, far:
        far.send(b"x")
        yield near


async def turns() -> None:
    """Of the loop: whatever the kernel has to tell is told."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_tells_once_until_it_is_lifted(readable: socket.socket) -> None:
    async def story() -> None:
        crew, told = Crew(), []
        latch = Latch(crew)
        latch.watch(readable.fileno(), lambda: told.append(list(crew.said)))
        await turns()
        assert told == [["gather"]]
        assert crew.said == ["gather", "ring"]
        thread = threading.Thread(target=latch.lift)
        thread.start()
        thread.join()
        await turns()
        assert len(told) == 2
        latch.close()

    asyncio.run(story())


def test_lifting_what_is_not_watched_any_more_is_no_error(readable: socket.socket) -> None:
    async def story() -> None:
        told: list[int] = []
        latch = Latch(Crew())
        latch.watch(readable.fileno(), lambda: told.append(1))
        await turns()
        latch.unwatch(readable.fileno())
        latch.lift()
        await turns()
        assert told == [1]
        latch.watch(readable.fileno(), lambda: told.append(2))
        await turns()
        assert told == [1, 2]
        latch.close()
        latch.lift()
        assert latch.down == []

    asyncio.run(story())


def test_an_act_that_fails_leaves_nothing_gathered_and_nothing_down(readable: socket.socket) -> None:
    class Doubtful(Crew):
        def will_lift(self) -> bool:
            return False

    async def story() -> None:
        crew, failed = Doubtful(), []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context["exception"]))
        latch = Latch(crew)
        latch.watch(readable.fileno(), lambda: [][1])
        async with asyncio.timeout(PATIENCE_S):
            while len(failed) < 2:  # it was lifted, so it is told again
                await asyncio.sleep(0)
        assert crew.said[:2] == ["gather", "ring"]
        latch.close()

    asyncio.run(story())


class Site:
    """App threads behind a latch. Each time that the latch tells, `count` requests are given."""

    def __init__(self, readable: socket.socket, run: Callable[[Any, float], None], count: int = 1) -> None:
        self._count = count
        self.told = 0
        self.threads = AppThreads(2, run)
        self.latch = Latch(self.threads)
        self.threads.start(self.latch)
        self.latch.watch(readable.fileno(), self._give)

    def _give(self) -> None:
        self.told += 1
        for _ in range(self._count):
            self.threads.give(self.told)

    async def until_told(self, times: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.told < times:
                await asyncio.sleep(0.001)

    def close(self) -> None:
        assert self.threads.stop(PATIENCE_S)
        self.latch.close()


def test_a_thread_with_nothing_to_do_lifts_it(readable: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_threads, "_LOOK_S", 1000.0)  # without the timer

    async def story() -> None:
        site = Site(readable, lambda request, began_s: None, count=2)
        await site.until_told(50)
        site.close()

    asyncio.run(story())


@pytest.mark.parametrize("short_s", [0.0, math.inf])
def test_it_is_lifted_at_once_where_no_thread_has_anything_to_do(
    readable: socket.socket, monkeypatch: pytest.MonkeyPatch, short_s: float
) -> None:
    """Connections whose request does not come."""
    monkeypatch.setattr(app_threads, "_LOOK_S", 1000.0)
    monkeypatch.setattr(app_threads, "_SHORT_S", short_s)

    async def story() -> None:
        site = Site(readable, lambda request, began_s: None, count=0)
        await site.until_told(50)
        site.close()

    asyncio.run(story())


def test_the_timer_lifts_it_while_a_long_request_is_in_hand(readable: socket.socket) -> None:
    """And the others go on with what comes in."""
    over = threading.Event()
    ended: list[int] = []

    def run(request: int, began_s: float) -> None:
        if request == 1:
            assert over.wait(PATIENCE_S)
        ended.append(request)

    async def story() -> None:
        site = Site(readable, run)
        await site.until_told(20)
        async with asyncio.timeout(PATIENCE_S):
            while len(ended) < 19:
                await asyncio.sleep(0.001)
        assert 1 not in ended
        over.set()
        site.close()

    asyncio.run(story())


def test_long_requests_in_all_threads_keep_nobody_at_the_door(
    readable: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_threads, "_SHORT_S", math.inf)  # always left down
    over = threading.Event()

    async def story() -> None:
        site = Site(readable, lambda request, began_s: over.wait(PATIENCE_S) and None)
        await site.until_told(20)
        over.set()
        site.close()

    asyncio.run(story())


@pytest.mark.parametrize("count", [1, 3, 30])
def test_what_is_gathered_is_run(readable: socket.socket, count: int) -> None:
    ran: list[int] = []

    async def story() -> None:
        site = Site(readable, lambda request, began_s: ran.append(request), count)
        async with asyncio.timeout(PATIENCE_S):
            while len(ran) < 10 * count:
                await asyncio.sleep(0.001)
        site.close()

    asyncio.run(story())
    assert ran.count(1) == ran.count(2) == count


def test_what_is_gathered_wakes_nobody_before_the_ring() -> None:
    ran = threading.Event()

    async def story() -> None:
        threads = AppThreads(2, lambda request, began_s: ran.set())
        threads.start(None)
        while len(threads._idle) < 2:
            await asyncio.sleep(0.001)
        threads.gather()
        for _ in range(3):
            threads.give(1)
        assert len(threads._idle) == 2
        threads.ring()
        assert ran.wait(PATIENCE_S)
        assert threads.stop(PATIENCE_S)

    asyncio.run(story())
