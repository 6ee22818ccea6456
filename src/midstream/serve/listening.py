"""Listening sockets: taken from whoever started us, bound, or made for a health check alone. Master, or zygote alone.

What lives here: sockets and their names. What must not: accepting. A listener is never closed while something serves:
its queue would be lost. Each is non-blocking from here on, for all who hold it (O_NONBLOCK belongs to the open socket),
and each has the configured backlog again, whatever a server before us set by listen(2).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from midstream.errors import HostError, OperatorError
from midstream.linux import listen
from midstream.serve.contract import Listener

FIRST_FD = 3
PRIVATE_NAME = "private"  # in LISTEN_FDNAMES: only the agent that gave it knows the address


@dataclass(frozen=True, slots=True)
class Account:
    """Whose the socket files are to be. None: ours."""

    uid: int | None = None
    gid: int | None = None


def given(environment: Mapping[str, str], pid: int, warn: Callable[[str], None]) -> list[tuple[str, socket.socket]]:
    """(name, socket) of LISTEN_FDS, when it is meant for this process (sd_listen_fds(3)); meant for another one, it is warned
    of: a program between us and whoever passes them. Raises OperatorError for one that does not listen."""
    count = environment.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdecimal()) or not int(count):
        return []
    meant_for = environment.get("LISTEN_PID", str(pid))
    if meant_for != str(pid):
        warn(
            f"the sockets of LISTEN_FDS={count} are for process {meant_for} (LISTEN_PID), and this is {pid}: they are left "
            "alone, and --bind is served; have this program started by exec, without `sh -c` or `uv run` in front"
        )
        return []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found = []
    for index in range(int(count)):
        fd = FIRST_FD + index
        name = names[index] if index < len(names) and names[index] else f"fd{fd}"
        try:
            sock = socket.socket(fileno=fd)
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            listens = 0
        if not listens:
            raise OperatorError(
                f"descriptor {fd} of LISTEN_FDS={count} does not listen",
                remedy="look at what started this: LISTEN_FDS counts listening sockets from descriptor 3 on",
            )
        os.set_inheritable(fd, False)
        found.append((name, sock))
    return found


def bind(address: str, backlog: int, account: Account) -> socket.socket:
    """A socket that listens on it; `fd://N`: that descriptor. Raises HostError that names who has the address."""
    if address.startswith("fd://"):
        return _of_descriptor(address)
    try:
        parsed = listen.parse(address)
        return listen.bind_listener(parsed, backlog, uid=account.uid, gid=account.gid)
    except ValueError as error:
        raise OperatorError(str(error), where="--bind", remedy="--bind HOST:PORT, unix:PATH or fd://N") from error
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise HostError(
                f"{address} cannot be bound: {error.strerror}",
                where="--bind",
                remedy="stop what has it (`ss -ltnp`), or bind another address",
            ) from error
        holder = listen.holder_of(parsed)
        by = f" by {holder}" if holder else ""
        raise HostError(
            f"{address} is in use{by}",
            where="--bind",
            remedy="stop that program, or bind elsewhere; an upgrade of a running server is: kill -HUP ITS_PID",
        ) from error


def _of_descriptor(address: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=os.dup(int(address.removeprefix("fd://"))))
        sock.getsockname()
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"{address} is no open socket",
            where="--bind",
            remedy="bind an address, or have the parent pass the socket: it has to be open in this process",
        ) from error
    return sock


def prepare(sock: socket.socket, backlog: int) -> None:
    """Non-blocking, with its backlog."""
    sock.setblocking(False)
    try:
        sock.listen(backlog)
    except OSError:
        pass  # a kind of socket that cannot be told again; it listens as it does


def private_like(sock: socket.socket, backlog: int) -> socket.socket:
    """A listener of the same family whose address nobody is told: the health check's."""
    own = socket.socket(sock.family, socket.SOCK_STREAM)
    if sock.family == socket.AF_UNIX:
        own.bind("")  # an abstract name that the kernel chooses
    else:
        own.bind(("::1" if sock.family == socket.AF_INET6 else "127.0.0.1", 0))
    own.listen(backlog)
    own.setblocking(False)
    return own


def address_of(sock: socket.socket) -> str:
    """`tcp://…` or `unix://…`, as bound."""
    return listen.text_of(sock)


def of_contract(sockets: Iterable[tuple[str, socket.socket]], tls: bool, private: str = PRIVATE_NAME) -> list[Listener]:
    """As a worker gets them: the private one is told by its name and speaks no TLS."""
    return [Listener(sock, name, name == private, tls and name != private) for name, sock in sockets]
