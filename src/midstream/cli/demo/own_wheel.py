"""A wheel of the very Midstream that runs the demo, so that its releases install `midstream[serve]` without an index.

Here: the files of this copy (a checkout, an installed package, the one file for hosts) and the metadata that pip wants of a
wheel (PEP 427). Not here: what pip does with it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import zipfile
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

from midstream import __version__

REQUIREMENT = f"midstream[serve]=={__version__}"
# As in pyproject.toml, which is not there where Midstream is installed, and in one file there are no metadata at all.
SERVE = ("httptools>=0.6.3", "uvloop>=0.19", "uvicorn>=0.53,<0.55", "websockets>=13")
_INFO = f"midstream-{__version__}.dist-info"
_METADATA = f"""\
Metadata-Version: 2.1
Name: midstream
Version: {__version__}
Requires-Python: >=3.11
Provides-Extra: serve
"""
_WHEEL = "Wheel-Version: 1.0\nGenerator: midstream demo\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_SCRIPTS = "[console_scripts]\nmidstream = midstream.__main__:main\n"


def build(folder: Path) -> Path:
    """Writes the wheel into `folder`, which is made; returns its path. Blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"midstream-{__version__}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in (*_package(importlib.resources.files("midstream"), "midstream"), *_metadata()):
            archive.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}\n")
        archive.writestr(f"{_INFO}/RECORD", "".join(record) + f"{_INFO}/RECORD,,\n")
    return wheel


def _package(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    """(path in the archive, content) of every file but byte code."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        path = f"{name}/{entry.name}"
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _package(entry, path)
        elif entry.is_file() and not entry.name.endswith(".pyc"):
            yield path, entry.read_bytes()


def _metadata() -> Iterator[tuple[str, bytes]]:
    requires = "".join(f'Requires-Dist: {one}; extra == "serve"\n' for one in SERVE)
    yield f"{_INFO}/METADATA", (_METADATA + requires).encode()
    yield f"{_INFO}/WHEEL", _WHEEL.encode()
    yield f"{_INFO}/entry_points.txt", _SCRIPTS.encode()
