"""The temporary folder of the demo and the private agent in it: made, started, and taken away whatever happens.

The keeper is this program's child and gets TERM, its ordered stop, when this program is killed, so that even `kill -9`
leaves no process. Not here: what is deployed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from midstream.cli.places import Places, places
from midstream.cli.private_agent import build_image
from midstream.cli.programs import keeper_argv
from midstream.deploy.client import AgentClient
from midstream.deploy.transport import LocalHost
from midstream.errors import HostError
from midstream.linux.prctl import die_with_parent

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 40.0
_PATH_MAX_BYTES = 60  # of the folder, so that the sockets in it stay below the 108 bytes of sockaddr_un


class Place:
    """One folder; everything of the demo is in it. Use `start`, and in the end always `stop` and `remove`."""

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        if len(os.fsencode(parent)) > _PATH_MAX_BYTES:
            parent = "/tmp"
        self.folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="midstream-demo-", dir=parent)))
        self.places: Places = places(state=str(self.folder / "state"), socket=str(self.folder / "agent.sock"))
        self._keeper: asyncio.subprocess.Process | None = None

    @property
    def deploy_to(self) -> Path:
        return self.folder / "srv"

    @property
    def project(self) -> Path:
        return self.folder / "shop"

    @property
    def environment(self) -> dict[str, str]:
        """For `midstream` commands: this agent, and records in this folder."""
        return {
            **os.environ,
            "MIDSTREAM_SOCKET": self.places.socket,
            "XDG_STATE_HOME": str(self.folder / "records"),
        }

    async def start(self) -> AgentClient:
        """Starts keeper and agent; returns a client once the agent answers."""
        image = build_image(self.places.state)
        log = os.open(self.places.agent_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._keeper = await asyncio.create_subprocess_exec(
                *keeper_argv(image, self.places),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # ^C on the terminal is for this program alone
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
        finally:
            os.close(log)
        client = AgentClient(LocalHost("localhost", self.places.socket))
        await client.start(give_up_s=START_TIMEOUT_S)
        return client

    async def stop(self) -> list[str]:
        """Ends every process. Returns complaints: what did not end as it should and had to be killed."""
        complaints = []
        if self._keeper is not None:
            complaints += await self._stop(self._keeper)
            self._keeper = None
        return complaints + self._kill_what_is_left()

    def remove(self) -> list[str]:
        """Removes the folder; some thousand files, so it may take a moment. Returns a complaint if it stays."""
        shutil.rmtree(self.folder, ignore_errors=True)
        return [f"{self.folder} could not be removed"] if self.folder.exists() else []

    async def _stop(self, keeper: asyncio.subprocess.Process) -> list[str]:
        """An ordered stop of the services, the agent and the keeper."""
        if keeper.returncode is not None:
            return [f"the keeper had ended with {keeper.returncode}"]
        keeper.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(keeper.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            keeper.kill()
            await keeper.wait()
            return [f"the keeper did not stop within {STOP_TIMEOUT_S:g} s and was killed"]
        return []

    def _kill_what_is_left(self) -> list[str]:
        """No process may outlive the demo; its folder's name is on each of them, in a path or in the environment."""
        complaints = []
        for pid, name in processes_of(str(self.folder)):
            complaints.append(f"process {pid} ({name}) was still there and was killed")
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                complaints.pop()
        return complaints


def processes_of(folder: str) -> list[tuple[int, str]]:
    """(pid, name) of processes, but for this one, whose folder, command or environment names `folder`."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and is_of(int(entry), folder):
            with contextlib.suppress(OSError):
                found.append((int(entry), Path(f"/proc/{entry}/comm").read_text().strip()))
    return found


def is_of(pid: int, folder: str) -> bool:
    """Whether the process lives in the demo's folder, or was started for it; False for one that may not be read."""
    mark = os.fsencode(folder)
    try:
        if mark in os.fsencode(os.readlink(f"/proc/{pid}/cwd")):
            return True
        return any(mark in Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    except OSError:
        return False


def free_port() -> int:
    """A port of the loopback interface that nobody has now. The keeper binds it a moment later."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def python() -> str:
    """This interpreter, for the builds of the demo project; a virtualenv's is as good as any."""
    if not sys.executable:
        raise HostError("it is not known which Python this is", remedy="start the demo by python -m midstream demo")
    return sys.executable
