"""Building the keeper's own program file: one immutable zip of just what it needs.

Runs in the agent and the command line, never in the keeper. The file is named by version and content, so a running
keeper never depends on an installed package or a release: whatever is replaced, its file is not. Sources come through
the import system, so this works from a zipapp too.
"""

from __future__ import annotations

import importlib.util
import io
import marshal
import os
import pkgutil
import zipfile
from hashlib import blake2b
from types import CodeType

from midstream import __version__
from midstream.errors import BugError, HostError

_PACKAGE = "midstream"
_MODULES = (
    "__init__",
    "errors",
    "without_inspect",
    "core/__init__",
    "core/messages",
    "core/names",
    "core/wire",
    "linux/__init__",
    "linux/accepting",
    "linux/cgroup",
    "linux/clock",
    "linux/fds",
    "linux/file_identity",
    "linux/listen",
    "linux/prctl",
    "linux/process",
    "linux/root_owned",
    "linux/spawn",
    "linux/timers",
    "linux/tree",
    "keeper/__init__",
    "keeper/__main__",
    "keeper/adopt",
    "keeper/agent_watch",
    "keeper/children",
    "keeper/door",
    "keeper/held",
    "keeper/keeper",
    "keeper/layout",
    "keeper/loop",
    "keeper/operations",
    "keeper/ordered_stop",
    "keeper/orders",
    "keeper/refusal",
    "keeper/snapshot",
    "keeper/table",
    "keeper/upgrade",
)
_MAIN = b"""import sys
from midstream.without_inspect import import_without
import_without("dataclasses")
from midstream.keeper.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
_KEPT = 4
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def build(state_dir: str) -> str:
    """The path of `STATE/lib/keeper-VERSION-HASH.pyz`, written when it is not there yet. Blocks on the disk.

    Raises HostError when the folder cannot be written.
    """
    files = _sources()
    digest = blake2b(importlib.util.MAGIC_NUMBER, digest_size=6)
    for name, source in files.items():
        digest.update(f"{name} {len(source)}\n".encode() + source)
    folder = f"{os.path.abspath(state_dir)}/lib"
    path = f"{folder}/keeper-{__version__}-{digest.hexdigest()}.pyz"
    if os.path.exists(path):
        return path
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        temporary = f"{path}.{os.getpid()}.new"
        with open(temporary, "wb") as file:
            file.write(_zipped(files))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o400)
        _make_newest(folder, temporary)
        os.rename(temporary, path)
        _prune(folder, path)
    except OSError as error:
        raise HostError(
            f"cannot write the keeper's program file: {error}",
            where=path,
            remedy="make room, or make the state folder writable",
        ) from error
    return path


def _sources() -> dict[str, bytes]:
    files = {"__main__.py": _MAIN}
    for module in _MODULES:
        name = f"{module}.py"
        source = pkgutil.get_data(_PACKAGE, name)
        if source is None:
            raise BugError(f"the source of {_PACKAGE}/{name} is missing from this installation")
        files[f"{_PACKAGE}/{name}"] = source
    return files


def _zipped(files: dict[str, bytes]) -> bytes:
    """Sources, and beside each its byte code: the keeper then starts without compiling (another Python version
    ignores the byte code). Stored, not compressed: it is read once, and needs no zlib."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, source in files.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), source)
            code = compile(source, f"keeper.pyz/{name}", "exec", dont_inherit=True)
            archive.writestr(zipfile.ZipInfo(f"{name}c", _ZIP_TIME), _byte_code(code))
    return buffer.getvalue()


def _byte_code(code: CodeType) -> bytes:
    # PEP 552: an unchecked hash-based file is used as it is, whatever the source's time.
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)


def _make_newest(folder: str, path: str) -> None:
    """The newest by its time is the one that an agent starts when the keeper is gone, and stays; also where the clock was
    set back since the one before was written."""
    others = [f"{folder}/{name}" for name in os.listdir(folder) if name.startswith("keeper-")]
    latest_s = max((os.stat(other).st_mtime for other in others if other != path), default=0.0)
    if latest_s >= os.stat(path).st_mtime:
        os.utime(path, (latest_s + 1, latest_s + 1))


def _prune(folder: str, newest: str) -> None:
    """Keep the newest few; a keeper that runs from an older one has loaded all of it."""
    paths = [f"{folder}/{name}" for name in os.listdir(folder) if name.startswith("keeper-")]
    paths.sort(key=lambda path: os.stat(path).st_mtime, reverse=True)
    for path in [path for path in paths if path != newest][_KEPT - 1 :]:
        os.unlink(path)
