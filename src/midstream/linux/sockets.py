"""Which process holds which socket: inodes of sockets, their holders, listeners, peers, epoll watches.

What lives here: reading /proc/PID/fd, /proc/net and sock_diag(7). What must not: decisions, waiting. Runs in
the agent and, for "who holds that port", in the keeper. All functions return at once (a scan of /proc takes
some 10 µs a process). A process that vanishes while it is read counts as holding nothing; one that may not be
read (another uid's) is reported as unknown, never as "holds nothing".
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_SOCKET_LINK = re.compile(r"socket:\[([0-9]+)\]\Z")
_WATCH = re.compile(rb"^tfd:.*\bino:([0-9a-f]+)", re.MULTILINE)

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, linux/unix_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_UDIAG_SHOW_PEER = 4
_UNIX_DIAG_PEER = 2
_NLMSG = struct.Struct("=IHHII")
_INET_ID = struct.Struct("!HH16s16s")
_ANY_STATE = 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFF
_IPV4_MAPPED = b"\0" * 10 + b"\xff\xff"
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp


@dataclass(frozen=True, slots=True)
class Holder:
    """One process that has a socket open."""

    pid: int
    comm: str


@dataclass(frozen=True, slots=True)
class HeldSockets:
    """The sockets of a set of processes. `by_inode`: inode -> pids. `unknown`: pids that could not be
    read."""

    by_inode: dict[int, frozenset[int]]
    unknown: frozenset[int] = frozenset()

    def holds(self, inode: int) -> bool | None:
        """True and False are certain; None: one of the processes could not be read."""
        if inode in self.by_inode:
            return True
        return None if self.unknown else False


def inode_of(fd: int) -> int:
    """The inode that names the socket behind `fd` in /proc and sock_diag. Raises OSError for a bad
    descriptor."""
    return os.fstat(fd).st_ino


def sockets_of(pid: int) -> frozenset[int] | None:
    """Inodes of all sockets that `pid` has open; None when its table may not be read (ptrace rights are
    needed)."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except (FileNotFoundError, ProcessLookupError):
        return frozenset()
    except PermissionError:
        return None
    inodes = set()
    for name in names:
        try:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
        except PermissionError:
            return None
        except OSError:
            continue
        if match := _SOCKET_LINK.match(link):
            inodes.add(int(match.group(1)))
    return frozenset(inodes)


def sockets_of_tree(pids: Collection[int]) -> HeldSockets:
    """The sockets of all processes in `pids` (one instance's tree, as `linux/tree.py` finds it)."""
    holders: dict[int, set[int]] = {}
    unknown = set()
    for pid in pids:
        inodes = sockets_of(pid)
        if inodes is None:
            unknown.add(pid)
            continue
        for inode in inodes:
            holders.setdefault(inode, set()).add(pid)
    return HeldSockets({inode: frozenset(found) for inode, found in holders.items()}, frozenset(unknown))


def watches(pids: Collection[int], inode: int) -> bool | None:
    """Whether one of these processes has the socket open and watches it with an epoll, as /proc/PID/fdinfo says
    (proc_pid_fdinfo(5)).

    True: accept() will be called when a connection comes. False: no epoll does; a server that uses select, poll or a
    blocking accept is False as well. None: a process could not be read. An io_uring accept is not seen. An epoll entry
    outlives its descriptor while others hold the socket (epoll(7), Q6), hence "has open": a gevent worker that drains
    leaves one behind.
    """
    unknown = False
    for pid in pids:
        found = _epoll_watches(pid, inode)
        if found:
            return True
        unknown = unknown or found is None
    return None if unknown else False


def _epoll_watches(pid: int, inode: int) -> bool | None:
    try:
        links = {name: _link(pid, name) for name in os.listdir(f"/proc/{pid}/fd")}
        if f"socket:[{inode}]" not in links.values():
            return False
        return any(inode in _watched(pid, name) for name, link in links.items() if link == "anon_inode:[eventpoll]")
    except PermissionError:
        return None
    except OSError:
        return False


def _link(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{name}")
    except FileNotFoundError:  # closed meanwhile
        return ""


def _watched(pid: int, name: str) -> set[int]:
    try:
        with open(f"/proc/{pid}/fdinfo/{name}", "rb") as info:
            return {int(found, 16) for found in _WATCH.findall(info.read())}
    except FileNotFoundError:
        return set()


def who_has(inodes: Collection[int]) -> tuple[Holder, ...]:
    """Every process on the machine, among those that may be read, that has one of these sockets open; by
    pid."""
    wanted = set(inodes)
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and wanted & (sockets_of(int(name)) or frozenset()):
            found.append(Holder(int(name), command_name(int(name))))
    return tuple(sorted(found, key=lambda holder: holder.pid))


def who_listens(port: int) -> tuple[Holder, ...]:
    """The processes that hold a TCP listener on `port`, on any address. Empty when there is none or it is not
    ours to see (another user's, another network namespace)."""
    inodes = {row.inode for row in tcp_rows() if row.state == _LISTENING and row.local[1] == port and row.inode}
    return who_has(inodes) if inodes else ()


def who_listens_unix(path: str) -> tuple[Holder, ...]:
    """The processes that hold a listening unix socket bound to `path`."""
    inodes = {inode for inode, bound in _unix_listeners() if bound == path}
    return who_has(inodes) if inodes else ()


def listeners_of(pids: Collection[int]) -> dict[int, str]:
    """The listening sockets that these processes have open: inode -> `tcp://127.0.0.1:8000` or `unix:///path`."""
    held = sockets_of_tree(pids).by_inode
    found = {}
    for row in tcp_rows():
        if row.state == _LISTENING and row.inode in held:
            host, port = row.local
            found[row.inode] = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    found.update({inode: f"unix://{path}" for inode, path in _unix_listeners() if inode in held})
    return found


def _unix_listeners() -> Iterator[tuple[int, str]]:
    """(inode, path) of all listening unix sockets that are bound to a path. A path holds no newline that is not
    written out, but may hold spaces."""
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        for line in table.readlines()[1:]:
            words = line.rstrip("\n").split(None, 7)
            # Flags bit __SO_ACCEPTCON (0x10000) is set on a listening socket.
            if len(words) == 8 and int(words[3], 16) & 0x10000:
                yield int(words[6]), words[7]


def command_name(pid: int) -> str:
    """The name that `ps` shows; "" when the process is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().rstrip("\n")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class TcpRow:
    """One line of /proc/net/tcp or tcp6. Addresses as (text, port), IPv4-mapped ones as IPv4. `state`: two
    hex digits. `inode` 0: the connection waits in the queue, nobody has accepted it."""

    local: tuple[str, int]
    remote: tuple[str, int]
    state: str
    inode: int


def tcp_rows() -> Iterator[TcpRow]:
    """All TCP sockets of this network namespace."""
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as table:
                lines = table.readlines()[1:]
        except FileNotFoundError:  # IPv6 is switched off
            continue
        for line in lines:
            words = line.split()
            yield TcpRow(_endpoint(words[1]), _endpoint(words[2]), words[3], int(words[9]))


def _endpoint(text: str) -> tuple[str, int]:
    """`0100007F:1F90` -> ("127.0.0.1", 8080). The address is printed as 32-bit words in the host's byte
    order."""
    raw, port = text.split(":")
    words = [int(raw[at : at + 8], 16) for at in range(0, len(raw), 8)]
    return _address_text(struct.pack(f"={len(words)}I", *words)), int(port, 16)


def _address_text(packed: bytes) -> str:
    packed = packed.removeprefix(_IPV4_MAPPED)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def peer_inode(connection: socket.socket) -> int | None:
    """The inode of the socket at the other end of `connection`, where that end is on this machine and in this
    network namespace. None: it has none yet (nobody has accepted it) or cannot be found."""
    if connection.family == socket.AF_UNIX:
        return _unix_peer(inode_of(connection.fileno())) or None
    return _tcp_peer(connection) or None


def _tcp_peer(connection: socket.socket) -> int:
    """What the peer calls local is our remote end. sock_diag finds the one socket by its four numbers;
    without it (module not loaded, a sandbox) the tables are read."""
    try:
        here, there = connection.getsockname()[:2], connection.getpeername()[:2]
    except OSError:  # ENOTCONN: reset meanwhile
        return 0
    inode = _inet_diag(connection.family, there, here)
    if inode is not None:
        return inode
    ours, theirs = (_plain(here[0]), here[1]), (_plain(there[0]), there[1])
    return next((row.inode for row in tcp_rows() if row.local == theirs and row.remote == ours), 0)


def _plain(host: str) -> str:
    host = host.partition("%")[0]
    return _address_text(socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host))


def _inet_diag(family: int, local: tuple[str, int], remote: tuple[str, int]) -> int | None:
    """The inode of the TCP socket with these ends, 0 for one not accepted or not there; None: cannot be
    asked."""
    packed = [socket.inet_pton(family, end[0].partition("%")[0]).ljust(16, b"\0") for end in (local, remote)]
    ends = _INET_ID.pack(local[1], remote[1], *packed)
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _ANY_STATE)
    answer = _sock_diag(request + ends + struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE))
    # inet_diag_msg: 4 bytes, the id (48), expires, rqueue, wqueue, uid, inode
    if answer is None or len(answer) < 72:
        return 0 if answer == b"" else None
    return int(struct.unpack_from("=I", answer, 68)[0])


def _unix_peer(inode: int) -> int:
    request = struct.pack(
        "=BBHIIIII", socket.AF_UNIX, 0, 0, _ANY_STATE, inode, _UDIAG_SHOW_PEER, _NO_COOKIE, _NO_COOKIE
    )
    answer = _sock_diag(request) or b""
    at = 16  # unix_diag_msg, then attributes: length, type, value
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if length < 4:
            break
        if kind == _UNIX_DIAG_PEER:
            return int(struct.unpack_from("=I", answer, at + 4)[0])
        at += (length + 3) & ~3
    return 0


def _sock_diag(payload: bytes) -> bytes | None:
    """The answer to one exact question; b"" when there is no such socket; None when the kernel cannot be
    asked."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(1.0)  # it answers within the send; this is against a kernel that does not
            header = _NLMSG.pack(_NLMSG.size + len(payload), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
            netlink.send(header + payload)
            answer = netlink.recv(65536)
    except OSError:
        return None
    length, kind = _NLMSG.unpack_from(answer)[:2]
    if kind == _NLMSG_ERROR:
        code = -struct.unpack_from("=i", answer, _NLMSG.size)[0]
        return b"" if code in (2, 107) else None  # ENOENT, ENOTCONN
    return answer[_NLMSG.size : length]
