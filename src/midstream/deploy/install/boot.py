"""The first program on a host. It is sent as text, so it imports nothing of ours, and writes nothing to the disk.

stdin: a line of JSON (`far_end.opening`), then, if it answers `need`, the zipapp. That runs out of memory, or from where it
is installed, and reads what is asked from the same stdin.
"""

import hashlib
import json
import os
import sys
from typing import Any


def _read_line() -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):  # byte by byte: what follows is for the next program
        byte = os.read(0, 1)
        if not byte:
            sys.exit("midstream: the deployer hung up")
        line += byte
    return dict(json.loads(line))


def _say(**words: object) -> None:
    os.write(1, json.dumps({"midstream": words}).encode() + b"\n")


def _is_whole(path: str) -> bool:
    try:
        with open(path + ".sha256") as file:
            wanted = file.read().strip()
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() == wanted
    except OSError:
        return False


def _receive(size: int, sha256: str) -> str:
    fd = os.memfd_create("midstream.pyz", 0)
    digest = hashlib.sha256()
    while size:
        data = os.read(0, min(size, 1 << 20))
        if not data:
            sys.exit("midstream: the deployer hung up")
        digest.update(data)
        size -= len(data)
        while data:
            data = data[os.write(fd, data) :]
    if digest.hexdigest() != sha256:
        sys.exit("midstream: the program arrived damaged")
    return f"/proc/self/fd/{fd}"


def _main() -> None:
    head = _read_line()
    path = head["root"] if os.geteuid() == 0 else os.path.join(os.path.expanduser("~"), head["rootless"])
    have = _is_whole(path)
    _say(need=not have, python=".".join(map(str, sys.version_info[:3])), path=sys.executable)
    if not have:
        path = _receive(head["size"], head["sha256"])
    os.execv(sys.executable, [sys.executable, "-I", path, "install-here"])


if __name__ == "__main__":
    _main()
