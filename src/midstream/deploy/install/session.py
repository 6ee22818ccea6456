"""One installation on one host, from the deployer: an ssh, the boot program, the file where it is missing, the request; then
the steps as they come. Blocks; used in a thread for each host.

Nothing is asked at a terminal, and host keys are checked, as everywhere (`deploy/ssh.py`). When the connection is lost the
host goes on to the end by itself.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from midstream.core.wire import from_wire, to_wire
from midstream.deploy.install import far_end
from midstream.deploy.install.image import Image
from midstream.deploy.install.request import Request, Result, Step
from midstream.deploy.ssh import ssh_argv, ssh_words
from midstream.deploy.unreachable import no_ssh
from midstream.errors import HostError
from midstream.errors import from_wire as error_from_wire

_LONGEST_S = 600.0
_NOISE_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Goal:
    """Where to: `address` as ssh takes it, "" for this machine; `user`: whom to log in as, "" for the address's own."""

    name: str
    address: str
    user: str = ""
    rootless: bool = False

    def argv(self) -> list[str]:
        line = far_end.command(rootless=self.rootless)
        if not self.address:
            return ["sh", "-c", line]
        argv = ssh_argv(self.address, line)
        at = argv.index("--")
        return [*argv[:at], *(("-l", self.user) if self.user else ()), *argv[at:]]


def perform(goal: Goal, image: Image, request: Request, tell: Callable[[Step], None]) -> Result:
    """Carries the request out. Raises MidstreamError: of the host, or of the way there."""
    argv = goal.argv()
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
            )
        except OSError as error:
            raise no_ssh(argv[0], error.strerror or str(error)) from None
        guard = threading.Timer(_LONGEST_S, process.kill)
        guard.daemon = True
        guard.start()
        try:
            return _Conversation(goal, process, stderr).hold(image, request, tell)
        finally:
            guard.cancel()
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
            process.stdout.close()  # type: ignore[union-attr]
            process.kill()
            process.wait()


class _Conversation:
    def __init__(self, goal: Goal, process: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self._goal = goal
        self._process = process
        self._stderr = stderr
        self._noise = bytearray()
        self._begun = False

    def hold(self, image: Image, request: Request, tell: Callable[[Step], None]) -> Result:
        self._write(far_end.opening(image))
        greeting = self._next()
        self._begun = True
        tell(Step("python", "ok", f"{greeting.get('python')} ({greeting.get('path')})"))
        if greeting.get("need"):
            self._write(image.data)
        self._write(json.dumps(to_wire(request)).encode() + b"\n")
        while True:
            words = self._next()
            if "error" in words:
                error = error_from_wire(words["error"])
                error.where = ": ".join(part for part in (self._goal.name, error.where) if part)
                raise error
            if "result" in words:
                return from_wire(Result, words["result"])
            tell(from_wire(Step, words))

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why, is said where the answer should come
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _next(self) -> dict[str, Any]:
        """The next message; what else a login shell prints is passed over. Raises why there is none."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(_NOISE_MAX_BYTES):
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and isinstance(found.get("midstream"), dict):
                    return dict(found["midstream"])
            self._noise += line
            if len(self._noise) > _NOISE_MAX_BYTES:
                break
        raise self._ended()

    def _ended(self) -> Exception:
        try:
            status = self._process.wait(3.0)
        except subprocess.TimeoutExpired:
            status = -9
        self._stderr.seek(0)
        said = f"{self._noise.decode(errors='replace')}\n{self._stderr.read(_NOISE_MAX_BYTES).decode(errors='replace')}"
        if not self._begun:
            return far_end.failed(self._goal.name, status, said.replace("\r", ""), shlex.join(ssh_words()))
        return HostError(
            "the connection was lost before the host had said how it ended",
            where=self._goal.name,
            detail=said.strip(),
            serving="what ran goes on; the host carries on by itself what it had begun",
            remedy="run it again: it goes on from where it stands",
        )
