"""Binding a listening socket or a datagram socket by address, and saying who has the address. Any process; no blocking.

Only numeric addresses: resolving a name would block. A unix path left behind by a dead listener is replaced, one that
a live socket is bound to never is. A path that a user chose is bound, replaced and removed with his rights, whatever
links he puts on the way; with root's only where the way is root's alone.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from dataclasses import dataclass

from midstream.linux import process
from midstream.linux.file_identity import FileUser, files_as
from midstream.linux.root_owned import is_root_owned, require_root_owned

UNIX_PATH_MAX = 107  # sizeof(sun_path) - 1, unix(7)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has an address. pid 0: nobody that we may see."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command})" if self.pid else "a process that may not be looked at"


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: AF_UNIX with `path`, else a numeric `host` and `port`."""

    family: int
    path: str = ""
    host: str = ""
    port: int = 0


def parse(text: str) -> Address:
    """`tcp://HOST:PORT`, `tcp://[V6]:PORT`, `unix:///PATH`. Raises ValueError that says what is wrong."""
    if text.startswith("unix://"):
        path = text[7:]
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{text}: a unix address is unix:///ABSOLUTE/PATH")
        if len(os.fsencode(path)) > UNIX_PATH_MAX:
            raise ValueError(f"{text}: longer than the {UNIX_PATH_MAX} bytes that a unix socket path may have")
        return Address(socket.AF_UNIX, path=path)
    if not text.startswith("tcp://"):
        raise ValueError(f"{text}: an address begins with tcp:// or unix://")
    host, colon, port = text[6:].rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"{text}: a TCP address is tcp://HOST:PORT")
    if host == "localhost":
        host = "127.0.0.1"
    family = socket.AF_INET6 if bracketed else socket.AF_INET
    try:
        socket.inet_pton(family, host or "0.0.0.0")
    except OSError:
        raise ValueError(f"{text}: the host must be a numeric address, an IPv6 one in brackets") from None
    return Address(family, host=host or "0.0.0.0", port=int(port))


def text_of(sock: socket.socket) -> str:
    """The address a socket is bound to, in the form that `parse` reads."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix://{os.fsdecode(name)}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"tcp://{host}:{name[1]}"


def bind_listener(
    address: Address,
    backlog: int,
    mode: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    actor: FileUser | None = None,
) -> socket.socket:
    """A listening stream socket, close-on-exec, blocking (servers set what they need). mode, uid, gid: unix only.
    actor: whose rights on the path apply; None: our own.

    Raises OSError; EADDRINUSE also when a live unix socket is bound to the path.
    """
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        if address.family == socket.AF_UNIX:
            _bind_path(sock, address.path, 0o666 if mode is None else mode, uid, gid, actor)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address.host, address.port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def bind_datagrams(path: str, uid: int | None, gid: int | None) -> socket.socket:
    """A non-blocking unix datagram socket with SO_PASSCRED that only `uid` (and root) may send to. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        _bind_path(sock, path, 0o600, uid, gid, None)
    except OSError:
        sock.close()
        raise
    return sock


def remove_path(path: str, actor: FileUser | None) -> None:
    """Removes the socket file that was bound, and nothing that is no socket. Best effort: a file that stays is replaced by
    the next one who binds there."""
    user = actor
    if user is None and os.geteuid() == 0 and not is_root_owned(os.path.dirname(path)):
        return
    for rights in (user, None):
        try:
            with files_as(rights):
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)
            return
        except PermissionError:
            if not is_root_owned(os.path.dirname(path)):
                return
        except OSError:
            return


def _bind_path(
    sock: socket.socket, path: str, mode: int, uid: int | None, gid: int | None, actor: FileUser | None
) -> None:
    try:
        _bind_as(sock, path, mode, actor)
    except PermissionError:
        if actor is None or actor.uid == os.geteuid():
            raise
        # A folder such as /run/shop, which root allowed to the app and keeps for itself.
        require_root_owned(os.path.dirname(path))
        actor = None
        _bind_as(sock, path, mode, None)
    if uid is not None or gid is not None:
        _give_away(path, uid, gid, actor)


def _bind_as(sock: socket.socket, path: str, mode: int, actor: FileUser | None) -> None:
    os.fchmod(sock.fileno(), mode)  # bind(2) takes the mode from the socket: no chmod of a path others may exchange
    with files_as(actor):
        _unlink_stale(path)
        umask = os.umask(0)
        try:
            sock.bind(path)
        finally:
            os.umask(umask)


def _give_away(path: str, uid: int | None, gid: int | None, actor: FileUser | None) -> None:
    """chown of what was just bound, by a descriptor: the name may have been exchanged for another file meanwhile."""
    with files_as(actor):
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != (os.geteuid() if actor is None else actor.uid):
            raise PermissionError(errno.EPERM, "it was exchanged while it was made", path)
        if (found.st_uid, found.st_gid) != (uid, gid):
            os.chown(f"/proc/self/fd/{fd}", -1 if uid is None else uid, -1 if gid is None else gid)
    finally:
        os.close(fd)


def _unlink_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or unix_inode(path) is not None:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path)
    os.unlink(path)


def unix_inode(path: str) -> int | None:
    """The inode of a live socket bound to `path` (/proc/net/unix), None when there is none."""
    try:
        with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.rstrip("\n").split(None, 7)
                if len(fields) == 8 and fields[7] == path:
                    return int(fields[6])
    except (OSError, ValueError):
        return None
    return None


def _tcp_inode(port: int) -> int | None:
    """The inode of a listening TCP socket on `port`, any address (/proc/net/tcp, state 0A)."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii", errors="replace") as file:
                for line in file:
                    fields = line.split()
                    if len(fields) > 9 and fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                        return int(fields[9])
        except (OSError, ValueError):
            continue
    return None


def holder_of(address: Address) -> Holder | None:
    """Who listens on the address; None when nobody does."""
    inode = unix_inode(address.path) if address.family == socket.AF_UNIX else _tcp_inode(address.port)
    if inode is None:
        return None
    for pid in process.all_pids():
        if process.fds_of_socket(pid, inode):
            return Holder(pid, process.read_command(pid))
    return Holder(0, "")
