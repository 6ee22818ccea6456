"""Whose the fields of an answer's head are: one table, for WSGI and ASGI alike.

Date, Server and the release's header are the server's where the app has none, and the app's where it has set one: it
knows better, and twice is never right. What concerns one connection only (RFC 9110 7.6.1) is the server's alone, as PEP
3333 has it: the app's are left out, but a `close` in its Connection is done. What must not
live here: I/O. Runs in the workers.
"""

from __future__ import annotations

# What a field of the app is to us.
PLAIN, LENGTH, CONNECTION, HOP = range(4)
DATE, SERVER, RELEASE = 4, 8, 16  # bits: an app may set several

_KINDS = {
    "content-length": LENGTH,
    "connection": CONNECTION,
    "date": DATE,
    "server": SERVER,
    "keep-alive": HOP,
    "proxy-connection": HOP,
    "te": HOP,
    "trailer": HOP,
    "transfer-encoding": HOP,
    "upgrade": HOP,
}


def kinds(release_header: str) -> dict[str, int]:
    """By names in small letters; names that are not there are PLAIN. release_header: the setting; "" for none."""
    return {release_header.lower(): RELEASE, **_KINDS} if release_header else dict(_KINDS)
