"""The keeper's folders: which file is where, with which mode, and the lock that makes it the only one.

`STATE/keeper.lock` decides who is the keeper. Everything else is in RUNTIME, on a tmpfs where there is one: it belongs
to this boot, and every write to it is best effort, because a full disk must stop nothing.

    keeper.sock   0600         the agent's way in
    boot          0600         the boot that all this belongs to
    agent.json    0600         the agent's command and its pid
    pids/         0700         one record for each process: who it is, and how it ended
    held/         0700         one record for each listener and notify socket
    orders/       0700         standing orders (they hold environments, so secrets)
    n/, l/, out/  0711         notify sockets, private listeners, log FIFOs: each 0600 of the uid that may use
                               it; nobody else can list the folder
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from midstream.errors import HostError, LockedError, OperatorError
from midstream.linux import process
from midstream.linux.listen import UNIX_PATH_MAX

try:
    from _blake2 import blake2b  # hashlib would load OpenSSL: 3 MB for each keeper
except ImportError:  # pragma: no cover - an interpreter built without it
    from hashlib import blake2b

_LONGEST_NAME = len("/l/") + 16
_LOCK_TRIES = 40


def short_hash(data: bytes, hexdigits: int = 16) -> str:
    """A file-name-sized name for something long; stable over restarts."""
    return blake2b(data, digest_size=16).hexdigest()[:hexdigits]


def slug(name: str) -> str:
    """A held name or key as one file name."""
    return name.replace("/", ":")


def unslug(name: str) -> str:
    return name.replace(":", "/")


class Layout:
    """Paths of one keeper. `prepare` makes the folders."""

    def __init__(self, state: str, runtime: str) -> None:
        self.state = os.path.abspath(state)
        self.runtime = os.path.abspath(runtime)
        self.notes: list[str] = []

    def prepare(self) -> None:
        """Make the folders, ours and closed to others. Raises OperatorError or HostError that say which and why."""
        longest = len(os.fsencode(self.runtime)) + _LONGEST_NAME
        if longest > UNIX_PATH_MAX:
            raise OperatorError(
                f"the runtime folder's path is too long: {self.runtime}",
                detail=f"socket paths in it would have {longest} bytes, and unix sockets allow {UNIX_PATH_MAX}",
                remedy="choose a shorter --runtime folder",
            )
        try:
            os.makedirs(self.state, mode=0o700, exist_ok=True)
            os.makedirs(os.path.dirname(self.runtime), mode=0o755, exist_ok=True)
            self._folder("", 0o711 if os.geteuid() == 0 else 0o700)
            for name, mode in (("pids", 0o700), ("held", 0o700), ("orders", 0o700)):
                self._folder(name, mode)
            for name in ("n", "l", "out"):
                self._folder(name, 0o711)
        except OSError as error:
            raise HostError(
                f"the keeper cannot make its folders: {error}",
                where=f"state {self.state}, runtime {self.runtime}",
                remedy="make the folder writable for the user that runs the keeper",
            ) from error

    def _folder(self, name: str, mode: int) -> None:
        path = f"{self.runtime}/{name}" if name else self.runtime
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            found = os.lstat(path)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError(1, "exists and is not a folder of ours", path) from None
        os.chmod(path, mode)

    def lock(self) -> int:
        """The locked descriptor of `keeper.lock`. Raises LockedError that names the holder.

        A keeper that was killed while it forked leaves the lock with a child for a moment: a holder that is dead is
        waited for, a live one is not.
        """
        fd = os.open(f"{self.state}/keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = self._holder(fd)
                if holder and process.read_stat(holder) is not None:
                    break
                time.sleep(0.05)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder(fd)
            os.close(fd)
            raise LockedError(
                f"another keeper is running: pid {holder}",
                where=f"state {self.state}",
                serving="that keeper and its services, unchanged",
                remedy="stop that one (midstream agent stop), or give this one folders of its own: --state and --runtime",
            ) from None
        self.write_holder(fd)
        return fd

    def write_holder(self, fd: int) -> None:
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
        except OSError as error:
            self.note(f"keeper.lock does not name its holder: {error.strerror}")

    @staticmethod
    def _holder(fd: int) -> int:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else 0

    @property
    def keeper_id(self) -> str:
        """What stamps the environment of everything this keeper starts; the same after its restart."""
        found = os.stat(self.state)
        return short_hash(f"{found.st_dev}:{found.st_ino}:{os.path.realpath(self.state)}".encode())

    @property
    def socket_path(self) -> str:
        return f"{self.runtime}/keeper.sock"

    def pid_record(self, key: str) -> str:
        return f"{self.runtime}/pids/{slug(key)}"

    def held_record(self, kind: str, name: str) -> str:
        return f"{self.runtime}/held/{kind}.{short_hash(name.encode())}"

    def order_record(self, slot: str) -> str:
        return f"{self.runtime}/orders/{slug(slot)}"

    def channel_path(self, name: str) -> str:
        return f"{self.runtime}/out/{slug(name)}"

    def notify_path(self, name: str) -> str:
        return f"{self.runtime}/n/{short_hash(name.encode())}"

    def private_path(self, name: str) -> str:
        return f"{self.runtime}/l/{short_hash(name.encode())}"

    def note(self, text: str) -> None:
        """Something that does not work here and stops nothing; told at hello."""
        text = text[:500]
        if text not in self.notes and len(self.notes) < 20:
            self.notes.append(text)

    def write(self, path: str, data: bytes) -> None:
        """Replace a record, best effort."""
        temporary = f"{path}.new"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                if os.write(fd, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), temporary)
            finally:
                os.close(fd)
            os.rename(temporary, path)
        except OSError as error:
            self.note(f"the runtime folder does not take records: {error.strerror}")
            self.unlink(temporary)

    def append(self, path: str, data: bytes) -> None:
        """Add a line to a record that exists, best effort."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self.note(f"the runtime folder does not take records: {error.strerror}")

    def unlink(self, path: str) -> None:
        try:
            os.unlink(path)
        except OSError:
            pass  # not there

    def forget_other_boots(self, boot_id: str) -> None:
        """Where the runtime folder is no tmpfs: what an earlier boot left names nothing any more."""
        path = f"{self.runtime}/boot"
        try:
            with open(path, encoding="ascii") as file:
                if file.read() != boot_id:
                    self.forget_everything()
        except OSError:
            pass  # none, or a folder too full to have got one: nothing says that the rest is old
        self.write(path, boot_id.encode())

    def forget_everything(self) -> None:
        """Remove every record, FIFO and socket: nothing of it is in use any more."""
        for folder in ("pids", "held", "orders", "n", "l", "out"):
            for name in os.listdir(f"{self.runtime}/{folder}"):
                self.unlink(f"{self.runtime}/{folder}/{name}")
        for name in ("keeper.sock", "agent.json"):
            self.unlink(f"{self.runtime}/{name}")

    def records(self, folder: str) -> list[tuple[str, bytes]]:
        """(file name, content) of each complete record in `pids`, `held` or `orders`."""
        found = []
        for name in sorted(os.listdir(f"{self.runtime}/{folder}")):
            if name.endswith(".new"):
                continue
            try:
                with open(f"{self.runtime}/{folder}/{name}", "rb") as file:
                    found.append((name, file.read()))
            except OSError:
                continue
        return found
