"""A service that talks without end on its notify socket: it waits, nobody else does."""

from __future__ import annotations

import asyncio
import os
import socket
from types import SimpleNamespace

import pytest

from midstream.agent import notices
from midstream.agent.notices import Authority, Notice, NoticeSocket, Refusal
from midstream.agent.readers import Readers


def _talk(monkeypatch: pytest.MonkeyPatch, budget_s: float, expected: int, allowed: bool = True) -> tuple[int, int]:
    """Eight datagrams, a budget of three: how many are heard, and how many refusals told."""
    monkeypatch.setattr(notices, "_BUDGET", 3)
    monkeypatch.setattr(notices, "_BUDGET_S", budget_s)
    heard: list[Notice] = []
    refused: list[Refusal] = []

    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        authority = Authority(lambda pid: allowed, frozenset({os.getuid()}))
        hearer = SimpleNamespace(authority=authority, on_notice=heard.append, on_refusal=refused.append)
        readers = Readers(NoticeSocket.read)
        listener = NoticeSocket(ours.detach(), hearer, readers)
        with theirs:
            for number in range(8):
                theirs.send(f"STATUS={number}".encode())
            async with asyncio.timeout(30):
                while len(heard) < expected and allowed:
                    await asyncio.sleep(0)
            for _ in range(50):  # what else would be read is read now
                await asyncio.sleep(0)
            listener.close()
            listener.close()
        readers.close()

    asyncio.run(run())
    return len(heard), len(refused)


def test_sender_beyond_his_budget_is_not_heard_for_the_rest_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _talk(monkeypatch, 3600.0, 3) == (3, 0)


def test_what_was_not_heard_is_heard_later(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _talk(monkeypatch, 0.01, 8) == (8, 0)


def test_refusals_do_not_fill_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _talk(monkeypatch, 3600.0, 0, allowed=False) == (0, 1)
