"""Descriptors: sending and receiving them, sealed memory files, close-on-exec. Any process; nothing here blocks.

Descriptors that arrive are close-on-exec from their first moment, and are never leaked by a message that is refused.
"""

from __future__ import annotations

import array
import fcntl
import os
import resource
import socket
from collections.abc import Sequence
from dataclasses import dataclass

SCM_MAX_FD = 253  # the kernel's limit for one message (unix(7))
_SO_PEERPIDFD = 77  # the same number on every architecture but parisc and sparc
_CONTROL_BYTES = socket.CMSG_SPACE(SCM_MAX_FD * 4)
_ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class Packet:
    """One message. `truncated`: longer than the buffer, or descriptors were lost on the way. Empty data and no
    descriptors: the peer has closed."""

    data: bytes
    fds: list[int]
    truncated: bool


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> bool:
    """Send one packet on a SOCK_SEQPACKET socket. False when it would block. Raises OSError when it is closed."""
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sock.sendmsg([data], control, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


def receive(sock: socket.socket, buffer: bytearray) -> Packet | None:
    """Receive one packet, or None when there is none yet. Raises OSError when the connection broke."""
    try:
        size, control, flags, _ = sock.recvmsg_into(
            [buffer], _CONTROL_BYTES, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        )
    except BlockingIOError:
        return None
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    truncated = bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
    return Packet(bytes(memoryview(buffer)[:size]), fds.tolist(), truncated)


def peer_pidfd(sock: socket.socket) -> int | None:
    """A pidfd of the process that connected (SO_PEERPIDFD, Linux 6.5): its number may be somebody else's by now."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None


def close_all(fds: Sequence[int]) -> None:
    """Close each; one that is closed already is no error."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue


def sealed_memfd(name: str, data: bytes) -> int:
    """A memory file with `data` that nobody can change any more, at offset 0, close-on-exec. Raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _ALL_SEALS)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


def is_sealed(fd: int) -> bool:
    """Whether nobody can change the content of this memory file."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)
    except OSError:
        return False


def read_file(fd: int) -> bytes:
    """All of a file from its beginning, wherever its (shared) offset stands."""
    parts = []
    offset = 0
    while part := os.pread(fd, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def socket_inode(fd: int) -> int:
    """The inode by which /proc names this socket."""
    return os.fstat(fd).st_ino


def open_fds() -> list[int]:
    """Every descriptor this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError:
            continue  # the one that listed the folder
        found.append(fd)
    return found


def raise_descriptor_limit() -> tuple[int, int]:
    """Set the soft limit of open descriptors to the hard one; returns the former (soft, hard), for the children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # the soft limit stands; running out is reported by whatever runs out
    return soft, hard
