"""One console's terminal, and who still writes to it when its program ends."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import pytest

from midstream.agent import console
from midstream.agent.accounts import Peer
from midstream.agent.console import Consoles, Session
from midstream.errors import LockedError, OperatorError


def test_who_writes_to_a_program_that_does_not_read_is_told_of_its_end_and_holds_no_descriptor() -> None:
    async def story() -> None:
        ours, theirs = os.openpty()
        os.set_blocking(ours, False)
        session = Session(SimpleNamespace(), 1, ours)  # type: ignore[arg-type]
        writers = [asyncio.create_task(session.write(b"x\n" * 32_000)) for _ in range(2)]
        loop = asyncio.get_running_loop()
        while ours not in loop._selector.get_map():  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        os.close(theirs)
        await session.close()
        for writer in writers:
            with pytest.raises(OperatorError, match="has ended"):
                await writer
        # The next who is given the number waits for his own.
        again, other = os.openpty()
        assert ours in (again, other)
        heard = asyncio.Event()
        loop.add_reader(ours, heard.set)
        os.write(other if ours == again else again, b"to him\n")
        async with asyncio.timeout(30):
            await heard.wait()
        loop.remove_reader(ours)
        os.close(again)
        os.close(other)

    asyncio.run(story())


def test_a_user_who_has_many_consoles_leaves_the_others_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SESSIONS_MAX", 2)
    monkeypatch.setattr(console, "HOST_SESSIONS_MAX", 3)
    consoles = Consoles(SimpleNamespace(), lambda connection, params: SimpleNamespace())  # type: ignore[arg-type, return-value]
    root, nobody, daemon = (Peer(1, uid, uid) for uid in (0, 65534, 1))

    def open_one(peer: Peer) -> None:
        consoles._refuse_too_many(peer)
        number = len(consoles._sessions)
        consoles._sessions[number] = Session(SimpleNamespace(peer=peer), number, -1)  # type: ignore[arg-type]

    open_one(nobody)
    open_one(nobody)
    with pytest.raises(LockedError, match="2 consoles of nobody"):
        open_one(nobody)
    open_one(root)
    with pytest.raises(LockedError, match="3 consoles are open on this host"):
        open_one(daemon)
