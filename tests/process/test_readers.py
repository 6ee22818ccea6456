"""Many descriptors behind one: each is read when there is something, whatever the others do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from midstream.agent.readers import Readers

PATIENCE_S = 30


class Pipes:
    """Pipes whose reading ends are watched; what came out of each. An item is the pipe's number."""

    def __init__(self, count: int) -> None:
        self.ends = [os.pipe2(os.O_NONBLOCK) for _ in range(count)]
        self.heard: list[int] = []
        self.come = asyncio.Event()
        self.on_read: Callable[[int], None] = lambda number: None
        self.broken = -1
        self.readers = Readers(self.read)
        for number, (fd, _) in enumerate(self.ends):
            self.readers.add(fd, number)

    def read(self, number: int) -> None:
        if number == self.broken:
            raise ValueError("bad luck")
        os.read(self.ends[number][0], 1)
        self.heard.append(number)
        self.come.set()
        self.on_read(number)

    def write(self, *numbers: int) -> None:
        for number in numbers:
            os.write(self.ends[number][1], b"x")

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.heard) < count:
                self.come.clear()
                await self.come.wait()

    def close(self) -> None:
        self.readers.close()
        self.readers.close()
        for ends in self.ends:
            for fd in ends:
                os.close(fd)


def reading(count: int, story: Callable[[Pipes], Awaitable[None]]) -> list[str]:
    """Runs the story; what the loop was told of exceptions."""
    told: list[str] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        pipes = Pipes(count)
        try:
            await story(pipes)
        finally:
            pipes.close()

    asyncio.run(run())
    return told


def test_more_than_are_read_at_a_time_are_all_read_and_each_as_long_as_there_is_something() -> None:
    async def story(pipes: Pipes) -> None:
        pipes.write(*range(150), *range(150))
        await pipes.until(300)
        assert sorted(pipes.heard) == sorted([*range(150)] * 2)

    assert reading(150, story) == []


def test_one_that_fails_each_time_is_told_and_the_others_are_read() -> None:
    async def story(pipes: Pipes) -> None:
        pipes.broken = 1
        pipes.write(1, 0, 2)
        await pipes.until(2)
        assert sorted(pipes.heard) == [0, 2]

    assert set(reading(3, story)) == {"bad luck"}


def test_one_that_another_removes_is_not_read_any_more() -> None:
    async def story(pipes: Pipes) -> None:
        def remove_the_other(number: int) -> None:
            pipes.readers.remove(pipes.ends[1 - number][0])

        pipes.on_read = remove_the_other
        pipes.write(0, 1)
        await pipes.until(1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(pipes.heard) == 1, "both had something, and the first removed the other"

    assert reading(2, story) == []


def test_one_that_was_removed_leaves_nothing_behind_and_can_come_back() -> None:
    """Another process holds what is behind the descriptor: closing alone would not take it out of an epoll."""

    async def story(pipes: Pipes) -> None:
        fd = pipes.ends[0][0]
        other = os.dup(fd)
        pipes.readers.remove(fd)
        pipes.readers.remove(fd)
        pipes.write(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert pipes.heard == []
        pipes.readers.add(fd, 0)
        pipes.readers.add(fd, 0)
        await pipes.until(1)
        os.close(other)

    assert reading(1, story) == []


def test_it_may_be_closed_by_what_it_calls() -> None:
    async def story(pipes: Pipes) -> None:
        pipes.on_read = lambda number: pipes.readers.close()
        pipes.write(0, 1)
        await pipes.until(1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(pipes.heard) == 1

    assert reading(2, story) == []
