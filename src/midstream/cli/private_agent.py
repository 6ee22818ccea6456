"""Starts this user's own agent in the background, for `midstream deploy` where none runs (DESIGN 11).

The keeper becomes a process of its own session and goes on when this command ends.
"""

from __future__ import annotations

import os
import subprocess
import time

from midstream.cli.places import Places, places, socket_to_ask
from midstream.cli.programs import keeper_argv
from midstream.deploy.sync_client import connect
from midstream.errors import HostError, MidstreamError

START_TIMEOUT_S = 20.0


def build_image(state: str) -> str:
    """Writes the keeper's image into the state folder (made when missing). Returns its path."""
    from midstream.keeper import image

    try:
        os.makedirs(state, mode=0o700, exist_ok=True)
        return str(image.build(state))
    except OSError as error:
        raise HostError(
            f"the state folder cannot be written: {error.strerror}", where=state, remedy="choose another with --state"
        ) from None


def agent_answers(socket_path: str) -> bool:
    """Whether an agent says hello there; waits a moment for one that is just being restarted."""
    try:
        connect(socket_path, give_up_s=2.0).close()
    except MidstreamError:
        return False
    return True


def ensure_agent(given_socket: str) -> tuple[str, str]:
    """The socket of an agent that answers, and what was done about it ("" when it ran already).

    A socket that was named is only asked, never started at. Raises HostError when none comes up.
    """
    socket_path = socket_to_ask(given_socket)
    if given_socket or os.environ.get("MIDSTREAM_SOCKET"):
        connect(socket_path).close()
        return socket_path, ""
    if agent_answers(socket_path):
        return socket_path, ""
    here = places()
    keeper = start(here)
    return here.socket, (
        f"no agent was running here: started one for you (keeper pid {keeper}, state {here.state}); "
        f"`midstream agent stop` ends it"
    )


def start(here: Places) -> int:
    """Starts keeper and agent in the background; returns the keeper's pid once the agent answers."""
    image = build_image(here.state)
    argv = keeper_argv(image, here)
    log = os.open(here.agent_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True
        )
    finally:
        os.close(log)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            connect(here.socket, give_up_s=0.0).close()
            return process.pid
        except MidstreamError as error:
            last = error
        if process.poll() is not None:
            raise _did_not_start(here, f"the keeper ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise _did_not_start(here, f"no answer within {START_TIMEOUT_S:g} s: {last.what}")
        time.sleep(0.05)


def _did_not_start(here: Places, why: str) -> HostError:
    return HostError(
        f"the agent did not start: {why}",
        where=here.state,
        detail=_tail(here.agent_log),
        serving="nothing was changed",
        remedy=f"see {here.agent_log}, or run it in the foreground: midstream agent run --state {here.state}",
    )


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 4000))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-12:])
    except OSError as error:
        return f"(no log: {error.strerror})"
