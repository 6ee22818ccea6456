"""The control protocol on the client's side, without I/O: lines out of requests, replies and notices out of lines.

Shared by the asyncio client of the deployer and the blocking client of short commands (docs/control-protocol.md).
No socket, no clock, no thread here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from midstream.core.values import dataclass
from midstream.errors import BugError, HostError, MidstreamError, OperatorError, from_wire

PROTOCOLS = (1, 1)  # lowest and highest that this client speaks
LINE_MAX_BYTES = 8 * 1024 * 1024  # of what the agent says
REQUEST_MAX_BYTES = 2 * 1024 * 1024
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
NO_AGENT_CODE = -32001  # said by `agent connect` in the place of an agent that is not there
UNADDRESSED = -1  # the id of an error that answers no request in particular
_FIRST_WORD = b'{"jsonrpc"'


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to request `id`: exactly one of `result` and `error`. code: of JSON-RPC, 0 without an error."""

    id: int
    result: dict[str, Any] | None
    error: MidstreamError | None
    code: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification: `progress`, `log`, `event`, `output`."""

    method: str
    params: dict[str, Any]


def request_line(request_id: int, method: str, params: dict[str, Any]) -> bytes:
    """One request as a line. Raises BugError when it is longer than the protocol allows."""
    message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    line = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    if len(line) > REQUEST_MAX_BYTES:
        raise BugError(f"a {method} request of {len(line)} bytes exceeds the protocol's {REQUEST_MAX_BYTES}")
    return line


def parse_line(line: bytes, *, where: str, methods: dict[int, str] | None = None) -> Reply | Notice:
    """What one line from the agent says. Raises HostError when it is no message of the protocol.

    where: the host, for messages. methods: request id -> method, so that errors can name it.
    """
    try:
        message = json.loads(line)
    except ValueError:
        raise _not_protocol(where, line) from None
    if not isinstance(message, dict):
        raise _not_protocol(where, line)
    if "method" in message and "id" not in message:
        params = message.get("params")
        return Notice(str(message["method"]), params if isinstance(params, dict) else {})
    request_id = message.get("id")
    if request_id is None and "error" in message:
        request_id = UNADDRESSED
    if not isinstance(request_id, int) or ("result" in message) == ("error" in message):
        raise _not_protocol(where, line)
    if "error" in message:
        method = (methods or {}).get(request_id, "")
        error = message["error"]
        code = error.get("code") if isinstance(error, dict) else None
        return Reply(request_id, None, _error_of(error, where, method), code if isinstance(code, int) else 0)
    result = message["result"]
    return Reply(request_id, result if isinstance(result, dict) else {"value": result}, None)


def first_word(line: bytes) -> bytes:
    """The message in a line that may begin with what a login shell printed; b"" when there is none in it."""
    start = line.find(_FIRST_WORD)
    return line[start:] if start >= 0 else b""


def _not_protocol(where: str, line: bytes) -> HostError:
    return HostError(
        "what answers is not a Midstream agent",
        where=where,
        detail=line[:200].decode(errors="replace"),
        remedy="check --socket and MIDSTREAM_SOCKET, and that agent and command are of one version",
    )


def _error_of(error: Any, where: str, method: str) -> MidstreamError:
    if not isinstance(error, dict):
        return BugError("the agent sent a malformed error", where=where, detail=repr(error)[:500])
    data = error.get("data")
    if isinstance(data, dict) and "what" in data:
        return from_wire(data)
    text = str(error.get("message", "unknown error"))
    if error.get("code") == METHOD_NOT_FOUND:
        return OperatorError(
            f"the agent does not know {method or 'that call'}",
            where=where,
            remedy="bring the agent to the version of this command: midstream agent upgrade",
        )
    kind = "refused the parameters of" if error.get("code") == INVALID_PARAMS else "failed inside at"
    return BugError(
        f"the agent {kind} {method or 'a call'}",
        where=where,
        detail=text,
        remedy="please report it, with the agent's log",
    )


def split_lines(buffer: bytearray) -> Iterator[bytes]:
    """Takes the complete lines out of `buffer`. Raises HostError when a line grows beyond the protocol's limit."""
    while (end := buffer.find(b"\n")) >= 0:
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        if line.strip():
            yield line
    if len(buffer) > LINE_MAX_BYTES:
        raise HostError(
            f"the agent sent a line of more than {LINE_MAX_BYTES} bytes",
            remedy="ask for less (fewer lines of logs), or bring both ends to one version: midstream setup STAGE",
        )


def check_hello(hello: dict[str, Any], where: str) -> None:
    """Raises HostError when the agent chose a protocol that this client does not speak."""
    spoken = hello.get("protocol")
    lowest, highest = PROTOCOLS
    if not isinstance(spoken, int) or not lowest <= spoken <= highest:
        newer = isinstance(spoken, int) and spoken > highest
        raise HostError(
            f"the agent (version {hello.get('version', 'unknown')}) speaks protocol {spoken}, "
            f"this command {lowest} to {highest}",
            where=where,
            remedy="upgrade the command line tool" if newer else "midstream agent upgrade",
        )
