"""Names by which processes that outlived their master are found: abstract unix sockets, one for each bind.

What lives here: the names, finding them, and who may ask. Every zygote listens on its own names from its first moment; a
worker that lost its zygote takes names of its own. A master that starts looks them up by its binds and asks; who still has a
living master refuses. So there is no file that could be stale, and nothing to clean up after kill -9. The names of another
network namespace are not seen, as its ports are not.

`midstream-serve/BIND/ROLE/PID`, BIND being a digest of the address. A name proves nothing: both sides look at the other's
uid (SO_PEERCRED), and a socket that is handed over has to be one that listens on the very address.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from midstream.serve.channel import Channel

_PREFIX = "midstream-serve"
_NAME = re.compile(r"@midstream-serve/([0-9a-f]{16})/(zygote|worker|master)/([0-9]+)\Z")
CONNECT_S = 5.0
_TIMEVAL = struct.Struct("@ll")  # of SO_SNDTIMEO (socket(7))
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Found:
    """A process that has a name for one of the binds."""

    role: str
    pid: int
    name: str  # as bind(2) takes it


def digest(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:16]


def name_of(address: str, role: str, pid: int) -> str:
    return f"\0{_PREFIX}/{digest(address)}/{role}/{pid}"


def listen(addresses: Iterable[str], role: str) -> list[socket.socket]:
    """One socket for each address, non-blocking, close-on-exec. One that somebody else took is left out: abstract names
    belong to nobody, and what serves must not depend on them."""
    found = []
    for address in dict.fromkeys(addresses):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.bind(name_of(address, role, os.getpid()))
            sock.listen(16)
        except OSError:
            sock.close()
            continue
        sock.setblocking(False)
        found.append(sock)
    return found


def find(addresses: Collection[str], role: str) -> list[Found]:
    """Who listens for one of the addresses (/proc/net/unix), each process once."""
    wanted = {digest(address) for address in addresses}
    found: dict[int, Found] = {}
    try:
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:
            names = [line.split(None, 7)[-1].strip() for line in table]
    except OSError:
        return []
    for text in names:
        match = _NAME.match(text)
        if match and match[1] in wanted and match[2] == role:
            found.setdefault(int(match[3]), Found(role, int(match[3]), "\0" + text[1:]))
    return [found[pid] for pid in sorted(found)]


def masters_by_pid(pid: int) -> list[Found]:
    """The names of one master, whatever it binds."""
    found = []
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:
        for line in table:
            text = line.split(None, 7)[-1].strip()
            match = _NAME.match(text)
            if match and match[2] == "master" and int(match[3]) == pid:
                found.append(Found("master", pid, "\0" + text[1:]))
    return found


def connect(found: Found, uids: Collection[int] | None) -> Channel | None:
    """A channel to it; None when it is gone, hangs with a full queue, or is not a process of one of these users (None: of
    anybody) with that pid."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(CONNECT_S), int(CONNECT_S % 1 * 1e6)))
        sock.connect(found.name)
        pid, uid = credentials(sock)
    except OSError:
        sock.close()
        return None
    if (uids is not None and uid not in uids) or pid != found.pid:
        sock.close()
        return None
    return Channel(sock)


def credentials(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, as the kernel noted them when it connected or listened."""
    pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def may_ask(sock: socket.socket) -> bool:
    """Whether who connected is root or the user that we run as."""
    return credentials(sock)[1] in (0, os.geteuid())


def listens_on(sock: socket.socket, addresses: Collection[str]) -> str:
    """The address of a handed socket if it truly listens on one of these, else ""."""
    from midstream.serve.listening import address_of

    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        address = address_of(sock)
    except (OSError, ValueError):
        return ""
    return address if listens and address in addresses else ""
