"""Midstream itself, through its own command line: an agent with a state folder of its own in the sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sandbox import Sandbox
from starts import Service

from peers import program

SOURCE = Path(__file__).resolve().parents[3] / "src"
AGENT_TIMEOUT_S = 60.0
COMMAND = (sys.executable, "-m", "midstream")


def environment(box: Sandbox) -> dict[str, str]:
    """Ours, not an installed one; and nothing of the user's."""
    return {
        "PYTHONPATH": str(SOURCE),
        "MIDSTREAM_SOCKET": str(box.folder / "agent.sock"),
        "XDG_RUNTIME_DIR": str(box.folder),
        "XDG_STATE_HOME": str(box.folder / "xdg"),
    }


def start_agent(box: Sandbox) -> None:
    """Start keeper and agent, not waiting for them."""
    argv = [*COMMAND, "agent", "run", "--state", str(box.folder / "state"), "--runtime", str(box.folder / "r")]
    box.launch("agent", [*argv, "--socket", str(box.folder / "agent.sock")], environment=environment(box))


def await_agent(box: Sandbox) -> None:
    """Until it answers. Raises TimeoutError."""
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    socket = box.folder / "agent.sock"
    while time.monotonic() < deadline:
        if socket.exists() and midstream(box, "status", "--json", check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise TimeoutError(f"the agent does not answer: {box.output('agent')}")


def midstream(
    box: Sandbox, *words: str, cwd: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """One command. Raises RuntimeError with what it printed when it fails and that matters."""
    done = subprocess.run(
        [*COMMAND, *words],
        cwd=cwd or box.folder,
        env=os.environ | environment(box),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"midstream {' '.join(words)}: exit {done.returncode}: {done.stderr or done.stdout}")
    return done


def make_repository(folder: Path, files: dict[str, str]) -> None:
    """A git repository with one commit of these files; again: one more commit."""
    folder.mkdir(exist_ok=True)
    if not (folder / ".git").exists():
        git(folder, "init", "-q", "-b", "main")
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "change")


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def project(box: Sandbox, services: str) -> str:
    """A midstream.toml for this machine."""
    return f"""app = "bench"
repository = {json.dumps(str(box.folder / "app"))}
branch = "main"
deploy_to = {json.dumps(str(box.folder / "to"))}
{services}
[stages.here]
"""


class Midstream:
    name = "midstream"
    program = "midstream"

    def missing(self) -> str:
        return "" if program("git") else "git is not installed"

    def version(self) -> str:
        text = (SOURCE / "midstream" / "__init__.py").read_text()
        return text.split('__version__ = "')[1].split('"')[0]

    def prepare(self, box: Sandbox, services: Sequence[Service]) -> None:
        """Deploy the services, then stop agent and keeper: what is timed is their start with all that to run, as it is
        for the others."""
        tables = "\n".join(
            f"[services.{service.name}]\ncommand = [{json.dumps(str(service.script))}]\nready = 'alive'\n"
            for service in services
        )
        make_repository(box.folder / "app", {"midstream.toml": project(box, tables)})
        start_agent(box)
        await_agent(box)
        midstream(box, "deploy", cwd=box.folder / "app")
        midstream(box, "agent", "stop")
        box.kill_all()

    def launch(self, box: Sandbox) -> None:
        start_agent(box)
