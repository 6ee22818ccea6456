"""`midstream serve --ask reload|status`: puts the question to the server that has these binds, and prints its answer."""

from __future__ import annotations

import json
import os
import sys

from midstream.errors import EXIT_FAILED, EXIT_OK
from midstream.serve import control
from midstream.serve.options import Invocation


def run(invocation: Invocation) -> int:
    """0: answered, and the new release serves; 1: the upgrade was refused, or no answer came. Blocks until then.

    Raises DriftError (3) when nothing runs there."""
    settings = invocation.settings
    pid = _pid(settings.pid_file) if settings.pid_file else 0
    answer = control.ask(invocation.asked, binds=settings.bind, pid=pid, progress=_progress)
    if invocation.as_json:
        print(json.dumps({"ok": answer.ok, **({"text": answer.text} if answer.text else {}), **answer.body}))
    else:
        print(answer.text, file=sys.stdout if answer.ok else sys.stderr)
    return EXIT_OK if answer.ok else EXIT_FAILED


def _progress(text: str) -> None:
    print(f"midstream serve: {text}", file=sys.stderr, flush=True)


def _pid(said: str) -> int:
    """--pid names the file, or is the number itself."""
    try:
        with open(said, encoding="ascii", errors="replace") as file:
            text = file.read(32).strip()
    except OSError:
        text = os.path.basename(said)
    return int(text) if text.isascii() and text.isdecimal() else 0
