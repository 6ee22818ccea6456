"""Replacing the agent and the keeper that run on a host by another version, under the services; and back. Blocks.

The new version's own `agent upgrade` does it: the keeper tries the new image on a copy of its state and becomes it in
place, then it starts the new agent. When that agent does not come up, the keeper is told the old one's command again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from midstream.agent.keeper_link import KeeperLink, KeeperLost, KeeperRefused
from midstream.deploy.install.service import run_command
from midstream.deploy.install.site import Site
from midstream.deploy.sync_client import connect
from midstream.errors import EXIT_USAGE, AttentionError, HostError, MidstreamError, from_wire
from midstream.linux import process

_COMES_UP_S = 30.0


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """What the keeper starts as the agent, and the pid of the one it has."""

    argv: tuple[str, ...]
    pid: int

    @property
    def program(self) -> str:
        """The copy of Midstream that it runs from; "" when it cannot be told."""
        after = [word for word in self.argv[1:] if not word.startswith("-")]
        return after[0] if after else ""


def hello(site: Site, give_up_s: float = 1.0) -> dict[str, Any] | None:
    """What the agent says of itself; None when none answers."""
    try:
        with connect(site.socket, give_up_s=give_up_s) as client:
            return client.hello
    except MidstreamError:
        return None


def wait_for_agent(site: Site, timeout_s: float) -> dict[str, Any] | None:
    """The hello of the agent once one answers; None when none does in time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        answer = hello(site)
        if answer is not None or time.monotonic() > deadline_s:
            return answer
        time.sleep(0.1)


def agent_command(site: Site) -> AgentCommand | None:
    """As the keeper wrote it down (`agent.json`); None when there is none."""
    try:
        with open(f"{site.runtime}/agent.json", encoding="utf-8") as file:
            found = json.load(file)
        return AgentCommand(tuple(map(str, found["argv"])), int(found["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def upgrade(site: Site, program: str) -> dict[str, Any]:
    """Returns the hello of the new agent. Raises HostError when the old one goes on, AttentionError when none does."""
    old = agent_command(site)
    before = hello(site) or {}
    _try_out(site, program)
    done = run_command([site.python, "-I", program, "agent", "upgrade", "--socket", site.socket, "--json"])
    after = wait_for_agent(site, 2.0)
    now = agent_command(site)
    if done.returncode == 0 and after is not None and after.get("pid") != before.get("pid"):
        return after
    why = _reason(done.stdout)
    if after is not None and now is not None and old is not None and now.argv == old.argv:
        raise _refused(site, why, after)
    if old is None:
        raise _nobody(site, why)
    _give_back(site, old, now if now is not None and now.argv != old.argv else None)
    back = wait_for_agent(site, _COMES_UP_S)
    if back is None:
        raise _nobody(site, why)
    raise _refused(site, why, back)


def _try_out(site: Site, program: str) -> None:
    """All of the new agent is imported by this host's Python; that it then finds no --state shows that it got so far."""
    done = run_command([site.python, "-I", program, "agent-process"])
    if done.returncode != EXIT_USAGE or "--state is missing" not in done.stdout:
        answer = hello(site) or {}
        raise _refused(site, f"the new agent does not start here:\n{done.stdout}", answer)


def _reason(said: str) -> str:
    """The error that the command printed as JSON, in words."""
    for line in said.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            words = json.loads(line)
            if isinstance(words, dict) and words.get("type") == "error":
                error = from_wire(words)
                return f"{error.what}\n{error.detail}".strip()
    return said.strip()


def _give_back(site: Site, old: AgentCommand, now: AgentCommand | None) -> None:
    """The keeper starts the old agent from now on. Raises AttentionError when the keeper cannot be told."""

    async def tell() -> None:
        link = KeeperLink()
        await link.connect(f"{site.runtime}/keeper.sock")
        try:
            await link.agent_command(old.argv)
        finally:
            link.close()

    try:
        asyncio.run(asyncio.wait_for(tell(), 10.0))
    except (OSError, KeeperLost, KeeperRefused, TimeoutError) as error:
        raise _nobody(site, f"the keeper cannot be told to start the old one: {error}") from error
    for pid in _agents_of(now.argv if now is not None else ()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)  # one that hangs; the keeper starts the old one then


def _agents_of(argv: tuple[str, ...]) -> list[int]:
    """Processes with exactly this command line; one that never attached to the keeper is in none of its records."""
    return [pid for pid in process.all_pids() if argv and process.read_argv(pid) == argv]


def _refused(site: Site, why: str, answer: dict[str, Any]) -> HostError:
    return HostError(
        "the new version was refused",
        where=site.socket,
        detail=why,
        serving=f"the services, untouched; agent {answer.get('version')} (pid {answer.get('pid')}) goes on",
        remedy="report it, with the lines above; the version that runs stays installed",
    )


def _nobody(site: Site, why: str) -> AttentionError:
    return AttentionError(
        "after the upgrade no agent answers",
        where=site.socket,
        detail=why,
        serving="the services run on, and the keeper starts again what crashes",
        remedy="see the agent's log on the host; run the upgrade again once the cause is removed",
    )
