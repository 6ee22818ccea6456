"""Makes the virtualenv of this checkout: `make_venv.py FOLDER EXTRA[,EXTRA…]`. Standard library only."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path


def main(folder: str, extras: str) -> int:
    """Creates it when it is missing, installs the project into it in place. Returns pip's exit code."""
    if sys.version_info < (3, 11):
        print(f"Midstream needs Python 3.11 or newer; this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    target = Path(folder)
    if not (target / "bin" / "python").exists():
        venv.create(target, with_pip=True)
    pip = [str(target / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    return subprocess.run([*pip, "--editable", f".[{extras}]"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
