"""The file that is put on hosts, `midstream.pyz`, and its name there. Runs in the deployer; pure."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from dataclasses import dataclass

FILE = "midstream.pyz"
_NAME = re.compile(r"(?P<version>\d[0-9A-Za-z.+]*)-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Image:
    """`name`: VERSION-HASH, the hash over the sources: byte code differs between Pythons, the program does not."""

    name: str
    version: str
    data: bytes
    sha256: str


def image_of(data: bytes, version: str) -> Image:
    """The zipapp in `data`. Raises zipfile.BadZipFile."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for item in sorted(archive.infolist(), key=lambda item: item.filename):
            if not item.filename.endswith(".pyc"):
                digest.update(f"{item.filename}\0{item.file_size}\0".encode() + archive.read(item))
    return Image(f"{version}-{digest.hexdigest()[:12]}", version, data, hashlib.sha256(data).hexdigest())


def version_in(name: str) -> str:
    """The version in the name of an image's folder; "" for other names."""
    found = _NAME.fullmatch(name)
    return found["version"] if found else ""


def is_newer(version: str, than: str) -> bool:
    """By the numbers of the release alone: builds of one release replace each other in any direction."""
    return _numbers(version) > _numbers(than)


def _numbers(version: str) -> list[int]:
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    return numbers + [0] * (3 - len(numbers))
