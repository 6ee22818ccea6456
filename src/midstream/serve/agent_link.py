"""Passing an upgrade that was asked for by signal on to Midstream's agent: one JSON-RPC call on its control socket.

What lives here: that call. What must not: upgrades, which are the agent's handovers. The zygote, alone. Nothing blocks.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping

from midstream.serve.loop import Loop
from midstream.serve.say import Voice

SOCKET_VARIABLE = "MIDSTREAM_AGENT_SOCKET"
_ANSWER_MAX_BYTES = 1 << 20


class AgentLink:
    """environment: the agent's stamps on an instance (app, service, its own socket)."""

    def __init__(self, loop: Loop, environment: Mapping[str, str], voice: Voice) -> None:
        self._loop = loop
        self._voice = voice
        self._path = environment.get(SOCKET_VARIABLE, "")
        self._app = environment.get("MIDSTREAM_APP", "")
        self._service = environment.get("MIDSTREAM_SERVICE", "")
        self._sock: socket.socket | None = None
        self._came = b""

    def ask_for_handover(self, signal_name: str) -> None:
        """The agent's `restart` of this service: new processes of the committed release, proven, then this one drained."""
        if self._sock is not None:
            self._voice.info(f"{signal_name}: the agent was asked for a handover already")
            return
        if not self._path:
            self._voice.warning(
                f"{signal_name}: only the agent replaces this server; midstream restart {self._service}"
            )
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        params = {"app": self._app, "services": [self._service]}
        request = {"jsonrpc": "2.0", "id": 1, "method": "restart", "params": params}
        try:
            sock.connect(self._path)  # of this machine: the kernel answers at once
            sock.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            sock.close()
            self._voice.error(f"{signal_name}: the agent cannot be asked for a handover: {error.strerror}")
            return
        sock.setblocking(False)
        self._sock = sock
        self._came = b""
        self._voice.info(f"{signal_name}: the agent is asked for a handover")
        self._loop.watch(sock.fileno(), self._answered)

    def _answered(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._came += data
        for line in self._came.split(b"\n")[:-1]:
            if self._is_end(line):
                data = b""
        self._came = self._came.rpartition(b"\n")[2]
        if not data or len(self._came) > _ANSWER_MAX_BYTES:
            self._loop.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _is_end(self, line: bytes) -> bool:
        """Whether it is the answer; what comes before are notifications of how it goes."""
        try:
            answer = json.loads(line)
        except ValueError:
            return False
        if not isinstance(answer, dict) or answer.get("id") != 1:
            return False
        error = answer.get("error")
        if isinstance(error, dict):
            self._voice.error(f"the agent refused the handover: {error.get('message', '')}")
        return True

    def close_in_child(self) -> None:
        if self._sock is not None:
            self._sock.close()
