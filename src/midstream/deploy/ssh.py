"""One `ssh` child: `midstream agent connect` at the far end, a socket at this one.

OpenSSH does the rest: ssh_config, ProxyJump, ports, users, agents, keys, known_hosts are its own, and the address is given
to it as it is. Host-key checking is never touched. No asyncio here; both clients use it. Runs in the deployer.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from midstream.core.lease import lease_of
from midstream.deploy.unreachable import (
    MISSING,
    SSH_FAILED,
    NotNow,
    bad_address,
    mute,
    no_ssh,
    ssh_failed,
)
from midstream.errors import MidstreamError

VARIABLE = "MIDSTREAM_SSH"
HELLO_TIMEOUT_S = 45.0  # log-in, Python's start, hello
_SAID_MAX_BYTES = 64 * 1024
_EXIT_S = 3.0  # from the end of its output to the end of ssh
_PLACES = ("midstream", "/opt/midstream/bin/midstream", "/usr/local/bin/midstream", "$HOME/.local/bin/midstream")
# BatchMode: nobody is there to answer questions. ssh_config's forwardings are for people; a second session could not bind
# them again. LogLevel: the words of failures are what `unreachable.py` reads. ServerAliveInterval comes with the lease: a
# cut network is noticed after three of them, 15 s as a rule.
_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=10",
    "ServerAliveCountMax=2",
    "ClearAllForwardings=yes",
    "LogLevel=INFO",
)


def ssh_words(env: Mapping[str, str] | None = None) -> list[str]:
    """The ssh command: MIDSTREAM_SSH, split as a shell would, or `ssh`. Raises OperatorError when it cannot be split."""
    text = (os.environ if env is None else env).get(VARIABLE, "")
    try:
        return shlex.split(text) or ["ssh"]
    except ValueError as error:
        raise no_ssh(text, f"{VARIABLE} is no command line: {error}") from None


def far_end(*args: str) -> str:
    """The command line for the far end: runs `midstream ARGS`, wherever it is installed. Understood by every login
    shell (csh and fish too): one plain word list with one word in single quotes. args: words without quotes."""
    tried = " ".join(f'"{place}"' for place in _PLACES)
    script = (
        f'for m in {tried}; do if command -v "$m" >/dev/null 2>&1; then exec "$m" {" ".join(args)}; fi; done; '
        f"echo {MISSING} >&2; exit 127"
    )
    return f"exec sh -c '{script}'"


def ssh_argv(address: str, command: str) -> list[str]:
    """argv of an ssh that runs `command` at `address`. Raises OperatorError for what can be no address."""
    if not address or address.startswith("-") or any(c.isspace() or not c.isprintable() for c in address):
        raise bad_address(address)
    kept_alive = f"ServerAliveInterval={lease_of(os.environ).alive_s}"
    options = [word for option in (*_OPTIONS, kept_alive) for word in ("-o", option)]
    return [*ssh_words(), "-T", *options, "--", address, command]


@dataclass(slots=True, eq=False)
class SshChild:
    """`sock`: what is written to it the agent reads, and the other way round. Close it in the end."""

    address: str
    sock: socket.socket
    _process: subprocess.Popen[bytes]
    _stderr: IO[bytes]
    ping_s: float

    hello_timeout_s = HELLO_TIMEOUT_S
    noise_max_bytes = 64 * 1024

    def said(self) -> str:
        """What ssh and the far end printed on stderr, its end."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _SAID_MAX_BYTES))
        return self._stderr.read().decode(errors="replace").replace("\r", "")

    def ended(self, noise: str = "") -> MidstreamError | NotNow:
        """Why there was an end before the agent's first word. Blocks up to 3 s. noise: what came on stdout."""
        try:
            status = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:  # its output is closed, yet it stays: as good as lost
            status = -9
        hint = ""
        said = self.said()
        if status == SSH_FAILED and "Permission denied" in said:
            hint = _locked_key(self.address)
        return ssh_failed(self.address, status, f"{noise}\n{said}", ssh=shlex.join(ssh_words()), hint=hint)

    def mute(self) -> NotNow:
        return mute(self.address, self.said().strip(), HELLO_TIMEOUT_S)

    def last_words(self) -> str:
        """The last line that ssh said; after a lost connection that is its reason."""
        lines = [line.strip() for line in self.said().splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def close(self) -> None:
        """Ends ssh at once, and with it what it runs. Blocks for milliseconds. May be called twice."""
        self.sock.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._stderr.close()


def connect(address: str) -> SshChild:
    """Starts ssh to the agent at `address`; does not wait for it. Raises OperatorError when that cannot be done."""
    lease = lease_of(os.environ)
    argv = ssh_argv(address, far_end("agent", "connect", "--silence", str(lease.silence_s)))
    ours, theirs = socket.socketpair()
    stderr = tempfile.TemporaryFile()  # a pipe would be held open by a ControlPersist master
    try:
        # A session of its own: ^C is for the deployer, which goes back in order over this very connection.
        process = subprocess.Popen(
            argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=stderr, start_new_session=True
        )
    except OSError as error:
        ours.close()
        stderr.close()
        raise no_ssh(argv[0], error.strerror or str(error)) from None
    finally:
        theirs.close()
    return SshChild(address, ours, process, stderr, lease.ping_s)


def _locked_key(address: str) -> str:
    """A sentence when ssh would use a key that needs a passphrase; "" when there is none, or it cannot be found out.
    ssh itself passes over such keys in silence."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = subprocess.run([*ssh_words(), "-G", "--", address], capture_output=True, text=True, timeout=5)
        words = [line.partition(" ") for line in asked.stdout.splitlines()]
        paths = [os.path.expanduser(value) for key, _, value in words if key == "identityfile"]
        for path in filter(os.path.exists, paths):
            ask = ["ssh-keygen", "-y", "-P", "", "-f", path]
            tried = subprocess.run(ask, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL)
            if tried.returncode != 0 and "passphrase" in tried.stderr:
                return f"the key {path} has a passphrase; give it to ssh-agent: ssh-add {path}"
    return ""
