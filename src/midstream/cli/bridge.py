"""`midstream agent connect`: stdin and stdout to the agent's control socket, for the far end of an ssh.

Copies bytes, but for the empty lines by which the client says that it is still there. Runs on the host, once for each
client that came over ssh; ends with the client, and when nothing was heard of it for too long: sshd notices a cut network
only after hours, and the lease of a deploy runs out only when the connection ends.
"""

from __future__ import annotations

import os
import selectors
import socket
import time

from midstream.errors import HostError, MidstreamError

_PIECE = 65536


def no_agent_line(error: MidstreamError) -> bytes:
    """What is said in the agent's place: the answer to whatever the client asks first."""
    import json  # not for who only copies bytes: each deploy starts a bridge on each host

    from midstream.deploy.rpc import NO_AGENT_CODE

    body = {"code": NO_AGENT_CODE, "message": error.what, "data": error.to_wire()}
    return json.dumps({"jsonrpc": "2.0", "id": None, "error": body}, separators=(",", ":")).encode() + b"\n"


def bridge(sock: socket.socket, silence_s: float = 0.0) -> None:
    """Blocks until the agent hangs up; when stdin ends, only that direction is closed. silence_s: the client is taken for
    gone when nothing came from it for so long; 0 for never. Raises HostError then."""
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    if not _registered(selector):
        while data := os.read(0, _PIECE):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        silence_s = 0.0
    heard_s = time.monotonic()
    filtered = _Lines()
    while True:
        left_s = heard_s + silence_s - time.monotonic() if silence_s else None
        if left_s is not None and left_s <= 0:
            raise HostError(
                f"nothing was heard of the client for {silence_s:g} s: it is taken for gone",
                remedy="if it was the network: midstream resume",
            )
        for key, _ in selector.select(left_s):
            if key.fileobj is sock:
                data = sock.recv(_PIECE)
                if not data:
                    return
                _write_all(1, data)
            elif data := os.read(0, _PIECE):
                heard_s = time.monotonic()
                sock.sendall(filtered(data))
            else:
                selector.unregister(0)
                silence_s = 0.0
                sock.shutdown(socket.SHUT_WR)


class _Lines:
    """Takes the empty lines out of a stream."""

    def __init__(self) -> None:
        self._begins = True

    def __call__(self, data: bytes) -> bytes:
        kept = data
        while b"\n\n" in kept:
            kept = kept.replace(b"\n\n", b"\n")
        if self._begins:
            kept = kept.lstrip(b"\n")
        self._begins = data.endswith(b"\n")
        return kept


def _registered(selector: selectors.BaseSelector) -> bool:
    """False for a plain file or /dev/null: it cannot be waited for, but is read at once."""
    try:
        selector.register(0, selectors.EVENT_READ)
    except PermissionError:
        return False
    return True


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
