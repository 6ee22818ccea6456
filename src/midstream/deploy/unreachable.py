"""The errors of not reaching an agent, for both clients. Imports nothing but errors: short commands start with it."""

from __future__ import annotations

from midstream.errors import HostError, NotAllowedError


def not_allowed(socket_path: str) -> NotAllowedError:
    return NotAllowedError(
        "this user may not talk to the agent",
        where=socket_path,
        remedy="run it as root, as the owner of the app, or name your own agent with --socket",
    )


def no_agent(socket_path: str, last: str, *, where: str = "") -> HostError:
    """No agent answers on `socket_path`. Its services may well run: nothing dies with its watcher."""
    return HostError(
        "no agent answers",
        where=f"{where}: {socket_path}" if where else socket_path,
        detail=last,
        serving="whatever ran goes on running; services do not depend on the agent",
        remedy="start one with `midstream agent run`, or name it with --socket or MIDSTREAM_SOCKET",
    )
