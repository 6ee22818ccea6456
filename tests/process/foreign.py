"""Test suites that others wrote: fetched from the package index at first use, pinned by hash, kept beside the repository.

They are not ours to copy, so none of them is in it. Kept in MIDSTREAM_FOREIGN, by default in the virtualenv, so that nothing
stays outside the checkout. With MIDSTREAM_NO_INSTALL nothing is fetched, and tests skip. `python foreign.py` fetches all.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

FETCH_S = 180


@dataclass(frozen=True, slots=True)
class Package:
    """As on the index. file: the archive, whose sha256 is known; wheel: of this platform only."""

    name: str
    version: str
    file: str
    sha256: str
    licence: str
    what: str

    @property
    def is_wheel(self) -> bool:
        return self.file.endswith(".whl")


GUNICORN = Package(
    "gunicorn",
    "27.0.1",
    "gunicorn-27.0.1.tar.gz",
    "b1514965361c8b7e8107a80aa2a92636878df1ccfac6dd204a676426e04d9e3e",
    "MIT",
    "its tests of requests, valid and invalid",
)
LLHTTP = Package(
    "aiohttp",
    "3.12.15",
    "aiohttp-3.12.15.tar.gz",
    "4fc61385e9c98d72fcdf47e6dd81833f47b2f77c114c29cd64a361be57a763a2",
    "MIT",
    "the tests of llhttp, which it carries along",
)
KOSOKU = Package(
    "kosoku",
    "0.1.0",
    "kosoku-0.1.0-cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    "a9b34e593defe29d931e346c88947b58a015495f09dd13643e4cc952c75602ac",
    "Apache-2.0",
    "the cases of the Autobahn test suite for WebSockets, and what runs them",
)
ALL = (GUNICORN, LLHTTP, KOSOKU)


class Missing(Exception):
    """It is not there and cannot be had; says why."""


def folder(package: Package) -> Path:
    """Where it is unpacked. Skips the test where it cannot be had."""
    try:
        return fetched(package)
    except Missing as error:
        pytest.skip(f"{package.name} {package.version} ({package.what}): {error}")


def fetched(package: Package) -> Path:
    """Where it is unpacked; blocks while it is fetched. Raises Missing."""
    kept = _kept() / f"{package.name}-{package.version}"
    if kept.is_dir():
        return kept
    if os.environ.get("MIDSTREAM_NO_INSTALL"):
        raise Missing("MIDSTREAM_NO_INSTALL is set")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".fetch-") as scratch:
        archive = _download(package, Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        _unpack(archive, unpacked)
        inside = unpacked if package.is_wheel else next(unpacked.iterdir())
        try:
            inside.rename(kept)
        except OSError:  # another test run was faster
            if not kept.is_dir():
                raise
    return kept


def _kept() -> Path:
    named = os.environ.get("MIDSTREAM_FOREIGN")
    return Path(named) if named else Path(sys.prefix) / "foreign"


def _download(package: Package, scratch: Path) -> Path:
    """By pip, as one package alone; of an archive of sources pip also asks for its metadata, which takes a while."""
    kind = ["--only-binary", ":all:"] if package.is_wheel else ["--no-binary", package.name]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--dest", str(scratch)]
    try:
        done = subprocess.run(
            [*command, f"{package.name}=={package.version}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=FETCH_S,
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"pip has not fetched it within {FETCH_S} s") from None
    archive = scratch / package.file
    if not archive.exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip has fetched another file"]
        raise Missing(f"pip cannot fetch {package.file}: {lines[-1][:200]}")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != package.sha256:
        raise Missing(f"{package.file} is another than the one that was looked at (sha256)")
    return archive


def _unpack(archive: Path, into: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(into)
        return
    with tarfile.open(archive) as opened:
        opened.extractall(into, filter="data")


if __name__ == "__main__":
    for each in ALL:
        try:
            print(f"{each.name} {each.version}: {fetched(each)}")
        except Missing as error:
            print(f"{each.name} {each.version}: {error}; its tests skip")
