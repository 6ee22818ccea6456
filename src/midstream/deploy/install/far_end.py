"""The command line that ssh runs on a host, and what its failures mean. Runs in the deployer; pure.

It has to work in every login shell (csh and fish too), so it is one line with one word in single quotes. It finds a Python
that is new enough, becomes root by `sudo -n` where that is wanted, and has Python read the rest, `boot.py`, from stdin.
"""

from __future__ import annotations

import json
import pkgutil
import re

from midstream.deploy.install.image import FILE, Image
from midstream.deploy.unreachable import MISSING, NotNow, ssh_failed
from midstream.errors import BugError, HostError, MidstreamError, NotAllowedError

PREFIX = "/opt/midstream"
PREFIX_OF_USER = ".local/lib/midstream"  # in the user's home
_NO_PYTHON = "midstream-found-no-python"
_NOT_ROOT = "midstream-is-not-root"
_IS_ROOT = "midstream-is-root"
_PYTHONS = (
    "python3",
    "/usr/bin/python3",
    "/usr/local/bin/python3",
    *(f"python3.{minor}" for minor in range(19, 10, -1)),
)
# Reads one line, which is a program; no quotes in it.
_READ = "import os; exec(bytes().join(iter(lambda: os.read(0, 1) or bytes([10]), bytes([10]))))"

_SCRIPT = (
    'p=""; f=""; '
    "for m in {pythons}; do "
    'if command -v "$m" >/dev/null 2>&1; then '
    'if "$m" -c "import sys; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1; '
    'then p=$(command -v "$m"); break; fi; f="$f $(command -v "$m") is $("$m" -V 2>&1);"; fi; done; '
    'if [ -z "$p" ]; then echo "{no_python}:$f" >&2; exit 127; fi; '
    's=""; if [ "$(id -u)" = 0 ]; then {when_root}; {unless_user} '
    "elif sudo -n true >/dev/null 2>&1; then s=sudo; "
    "else echo {not_root} >&2; exit 126; fi; "
    'if [ -n "$s" ]; then exec sudo -n "$p" -I -c "{read}"; fi; exec "$p" -I -c "{read}"'
)


def command(*, rootless: bool) -> str:
    """rootless: for the user that logs in. Else as root, but for a user who has an installation of his own already."""
    own = "true" if rootless else f'[ -e "$HOME/{PREFIX_OF_USER}/bin/midstream" ]'
    script = _SCRIPT.format(
        pythons=" ".join(_PYTHONS),
        no_python=_NO_PYTHON,
        not_root=_NOT_ROOT,
        when_root=f"echo {_IS_ROOT} >&2; exit 126" if rootless else "true",
        unless_user=f"elif {own}; then true;",
        read=_READ,
    )
    return f"exec sh -c '{script}'"


def opening(image: Image) -> bytes:
    """What is written first: the boot program, and the line that it reads."""
    source = pkgutil.get_data("midstream.deploy.install", "boot.py")
    if source is None:
        raise BugError("deploy/install/boot.py is missing from this installation")
    head = {
        "root": f"{PREFIX}/{image.name}/{FILE}",
        "rootless": f"{PREFIX_OF_USER}/{image.name}/{FILE}",
        "size": len(image.data),
        "sha256": image.sha256,
    }
    program = f"exec({source.decode()!r})"
    assert "\n" not in program
    return f"{program}\n{json.dumps(head)}\n".encode()


def failed(host: str, status: int, said: str, ssh: str) -> MidstreamError:
    """What the end of the far end means, before it had said a word. said: what was printed, both streams."""
    if _NO_PYTHON in said:
        return _no_python(host, said)
    if _IS_ROOT in said:
        return NotAllowedError(
            "--rootless is for other users than root", where=host, remedy="leave it out, or name the user: --user NAME"
        )
    if _NOT_ROOT in said:
        return NotAllowedError(
            "the user that logs in is not root, and `sudo -n` does not make him root",
            where=host,
            serving="nothing was changed",
            remedy="log in as root (--user root), allow him sudo without a password, or install for him alone: --rootless",
        )
    found = ssh_failed(host, status, said.replace(MISSING, ""), ssh=ssh)
    return found.error if isinstance(found, NotNow) else found


def _no_python(host: str, said: str) -> HostError:
    match = re.search(f"{_NO_PYTHON}:(.*)", said)
    found = [part.strip() for part in (match[1] if match else "").split(";") if part.strip()]
    what = "its Python is too old: Midstream needs 3.11 or newer" if found else "there is no python3 on the host"
    return HostError(
        what,
        where=host,
        detail="\n".join(dict.fromkeys(found)),
        serving="nothing was changed",
        remedy="Debian 12, Ubuntu 24.04 or newer: apt-get install python3; RHEL 9: dnf install python3.11; "
        "older ones: build it, or uv python install 3.12, and link it as /usr/local/bin/python3.12",
    )
