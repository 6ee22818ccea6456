"""What `--check` runs with the release's own interpreter: loads the app as a zygote would, and says what it found.

Settings come as JSON on standard input, the report goes as JSON to standard output; what the app prints goes to
standard error. What must not live here: a server; the app answers no request.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from typing import Any

import midstream
from midstream.errors import MidstreamError
from midstream.serve import application, forking, hooks, tls
from midstream.serve.contract import Identity
from midstream.serve.settings import Settings

_NEEDED = {"wsgi": ("httptools", "uvloop"), "asgi": ("httptools", "uvloop", "uvicorn")}


def main() -> int:
    """0: the report was written, whatever it says."""
    settings = Settings.from_json(json.load(sys.stdin))
    report_fd = os.dup(1)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    report: dict[str, Any] = {"python": platform.python_version(), "midstream": midstream.__version__}
    try:
        report |= _look(settings)
    except MidstreamError as error:
        report["error"] = error.to_wire()
    data = json.dumps(report).encode()
    while data:
        data = data[os.write(report_fd, data) :]
    sys.stdout.flush()
    os._exit(0)  # the app's threads may be many, and not all end


def _look(settings: Settings) -> dict[str, Any]:
    folder = os.getcwd()
    for path in (folder, *reversed(settings.pythonpath)):
        entry = os.path.join(folder, path)
        sys.path[:] = [entry, *(other for other in sys.path if other != entry)]
    sys.argv = ["midstream serve", settings.app]
    if settings.certfile:
        tls.context(settings)
    with forking.noting_threads():
        found_hooks = hooks.load(os.path.join(folder, settings.hooks) if settings.hooks else "")
        app = application.load(settings)
    interface = application.interface_of(app, settings.interface)
    first = Identity(0, 0, os.environ.get("MIDSTREAM_RELEASE", ""), 0)
    found = forking.look_behind((), lambda: found_hooks.run("before_fork", first))
    return {
        "interface": interface,
        "app": f"{type(app).__module__}.{type(app).__qualname__}",
        "refused": list(found.refused) if settings.preload else [],
        "remedy": found.remedy,
        "warnings": list(found.warnings) if settings.preload else [],
        "missing": [name for name in _NEEDED[interface] if not _is_there(name)],
    }


def _is_there(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
