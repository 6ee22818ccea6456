"""File work that hangs: it stops neither other users' nor the end of the agent."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from midstream.agent.apart import BUSY_MAX, apart
from midstream.errors import HostError


def test_results_and_errors_come_back() -> None:
    async def story() -> None:
        assert await apart(1, divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await apart(1, divmod, 7, 0)

    asyncio.run(story())


def test_what_hangs_for_one_user_stops_him_and_nobody_else() -> None:
    gate = threading.Event()

    async def story() -> None:
        hung = [asyncio.create_task(apart(1, gate.wait)) for _ in range(BUSY_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(HostError, match="already"):
            await apart(1, divmod, 7, 2)
        for task in hung[1:]:
            task.cancel()  # the clients are gone; their threads are not
        await asyncio.gather(*hung[1:], return_exceptions=True)
        with pytest.raises(HostError, match="already"):
            await apart(1, divmod, 7, 2)
        assert await apart(2, divmod, 7, 2) == (3, 1)
        gate.set()
        await hung[0]
        while True:
            try:
                assert await apart(1, divmod, 7, 2) == (3, 1)
                break
            except HostError:
                await asyncio.sleep(0)

    asyncio.run(story())


def test_the_end_of_the_agent_does_not_wait_for_it() -> None:
    text = """
import asyncio, threading
from midstream.agent.apart import apart
async def story():
    asyncio.ensure_future(apart(1, threading.Event().wait))
    await asyncio.sleep(0)
asyncio.run(story())
"""
    subprocess.run([sys.executable, "-c", text], check=True, timeout=60)
