"""Builds `midstream.pyz`: one pure-Python file with everything that a host or an operator needs (`make pyz`).

`python -m midstream.cli.zipapp_build TARGET`. Takes this very copy of Midstream and the libraries of the command line
(click, rich, cattrs and what these need) from the environment it runs in. Byte code of the building Python lies beside
each source, so that a start compiles nothing; another Python (3.11 or newer) uses the sources. The same input gives the
same bytes.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import marshal
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import midstream
from midstream.errors import BugError, HostError, OperatorError

VENDORED = ("click", "rich", "cattrs", "attrs", "typing_extensions")
LICENCES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS")
SHEBANG = b"#!/usr/bin/env -S python3 -I\n"
MAIN = b"""\
import sys

if sys.version_info < (3, 11):
    sys.exit("midstream needs Python 3.11 or newer; this is %d.%d" % sys.version_info[:2])
from midstream.__main__ import main

sys.exit(main())
"""
_COMPILES = """\
import marshal, sys
sources = marshal.load(sys.stdin.buffer)
made = {}
for name in sorted(sources):
    made[name] = marshal.dumps(compile(sources[name], "midstream.pyz/" + name, "exec", dont_inherit=True))
marshal.dump(made, sys.stdout.buffer)
"""
_TIME = (1980, 1, 1, 0, 0, 0)


def build(target: str) -> int:
    """Writes the file, executable; returns its size in bytes. Blocks. Raises OperatorError when a library is missing
    or not pure Python, HostError when the target cannot be written."""
    files: dict[str, bytes] = {"__main__.py": MAIN, **dict(_package_files())}
    for name in VENDORED:
        files.update(_distribution_files(name))
    data = SHEBANG + _zipped(files)
    temporary = f"{target}.new"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
        Path(temporary).write_bytes(data)
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    except OSError as error:
        raise HostError(
            f"{target} cannot be written: {error.strerror}", remedy="name a file in a folder of yours"
        ) from None
    return len(data)


def _package_files() -> Iterator[tuple[str, bytes]]:
    """All files of this package, with their paths in the archive."""
    root = Path(midstream.__file__).resolve().parent
    if not root.is_dir():
        raise OperatorError("a zipapp cannot build another one", remedy="build from a checkout or an installed package")
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"midstream/{path.relative_to(root).as_posix()}", path.read_bytes()


def _distribution_files(name: str) -> Iterator[tuple[str, bytes]]:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise OperatorError(f"{name} is not installed here", remedy="pip install 'midstream[cli]'") from None
    for file in distribution.files or ():
        path = Path(str(distribution.locate_file(file)))
        where = file.as_posix()
        if where.startswith("..") or "__pycache__" in file.parts or not path.is_file():
            continue
        if path.suffix in (".so", ".pyd"):
            raise OperatorError(
                f"{name} is not pure Python here: {where}",
                remedy=f"install {name} without its compiled part: pip install --no-binary {name} {name}",
            )
        if _is_wanted(where):
            yield where, path.read_bytes()


def _is_wanted(where: str) -> bool:
    """Code and data; of the metadata only what names the version and the licence."""
    top, _, rest = where.partition("/")
    if not top.endswith(".dist-info"):
        return True
    base = rest.rpartition("/")[2]
    return rest == "METADATA" or base.upper().startswith(LICENCES)


def _zipped(files: Mapping[str, bytes]) -> bytes:
    sources = {name: files[name] for name in sorted(files) if name.endswith(".py") and name != "__main__.py"}
    compiled = _compiled(sources)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(files):
            _add(archive, name, files[name])
            if name in compiled:
                _add(archive, f"{name}c", _pyc(compiled[name]))
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _TIME)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def _compiled(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """The byte code of each, compiled in a process that does nothing else: how marshal writes what several places share
    depends on all that the process has loaded."""
    asked = marshal.dumps(dict(sources))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", _COMPILES], input=asked, capture_output=True, check=False)
    if done.returncode:
        raise BugError("the sources cannot be compiled", detail=done.stderr.decode(errors="replace"))
    found: dict[str, bytes] = marshal.loads(done.stdout)
    return found


def _pyc(code: bytes) -> bytes:
    """An unchecked hash-based file (PEP 552): it is used whatever the source's time."""
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + code


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m midstream.cli.zipapp_build TARGET", file=sys.stderr)
        return 2
    size = build(argv[0])
    print(f"{argv[0]}: {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
