"""The one table of what a request may not exceed: which setting, which status when it does.

Defaults, units and option names are declared in `settings.py`; here is what follows from them, for WSGI and ASGI alike.
What must not live here: I/O, parsing. Runs in the workers.
"""

from __future__ import annotations

from dataclasses import dataclass

from midstream.serve.settings import TABLE


@dataclass(frozen=True, slots=True)
class Limit:
    """setting: its name in Settings. status: the answer when it is exceeded; 0: the connection is closed in silence."""

    setting: str
    status: int
    exceeded: str  # said to the client in the body of the answer


LIMITS: dict[str, Limit] = {
    limit.setting: limit
    for limit in (
        Limit("limit_request_line", 414, "the request line is too long"),
        Limit("limit_request_fields", 431, "there are too many header fields"),
        Limit("limit_request_field_size", 431, "a header field is too large"),
        Limit("limit_header_bytes", 431, "the header fields are too large together"),
        Limit("limit_body_bytes", 413, "the body is too large"),
        Limit("header_timeout_s", 408, "the headers did not arrive in time"),
        Limit("body_timeout_s", 408, "the body did not arrive in time"),
        Limit("write_timeout_s", 0, "the answer was not read in time"),
        Limit("keep_alive_s", 0, "no further request came"),
        Limit("worker_connections", 0, "further connections wait to be accepted"),
    )
}

DEFAULTS: dict[str, float] = {setting.name: setting.default for setting in TABLE if setting.name in LIMITS}

REASONS: dict[int, str] = {
    400: "Bad Request",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
    507: "Insufficient Storage",
}

# What no setting changes.
BODIES_IN_MEMORY = 16  # times body_memory_bytes: what all bodies of a worker take of its memory; others go to files
SMALL_BODY_BYTES = 16384  # bodies up to this are not counted in that
CHUNK_LINE_BYTES = 1024  # a chunk's size with its extensions
TRAILER_BYTES = 8192  # fields after a chunked body; read and forgotten
NEVER_TRAILERS = frozenset(
    {b"content-length", b"transfer-encoding", b"host"}
)  # a reader that believed them (RFC 9110 6.5.1)
FRAMING_PER_BODY_BYTE = 16  # bytes around the chunks that a client may send for each byte within them, beyond 64 KiB
PIPELINED_BYTES = 65536  # sent ahead of the answer to the request in hand; beyond it nothing is read
DISCARD_BYTES = 1 << 20  # read and forgotten after our end is closed, so that the client sees the answer, not a reset
DISCARD_S = 5.0  # and for how long


class Refused(Exception):
    """A request that the app does not see. status: of REASONS. why: for the client; says nothing about the host."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"{status} {why}")
        self.status = status
        self.why = why


def exceeded(setting: str) -> Refused:
    """The refusal that LIMITS has for it."""
    limit = LIMITS[setting]
    return Refused(limit.status, limit.exceeded)
