"""`midstream serve --check`: would it start? Loads the app in a child, looks at binds, files, certificates; changes nothing.

What must not live here: settings that are wrong in themselves (`options.py` has refused them before). Runs where the command
line was typed; standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from midstream.errors import EXIT_OK, EXIT_USAGE, MidstreamError, from_wire
from midstream.linux import listen
from midstream.serve import interpreter, takeover
from midstream.serve.account import RunAs, run_as
from midstream.serve.options import Invocation
from midstream.serve.settings import Settings

_CHILD = (
    "import sys; sys.path[:] = [entry for entry in sys.path if entry]; "
    "from midstream.serve.check_child import main; sys.exit(main())"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """kind: `ok`, `note`, or `bad` (then it would not start)."""

    kind: str
    what: str
    remedy: str = ""


def run(invocation: Invocation) -> int:
    """Prints what was found. 0: it would start; 2: it would not. Blocks for as long as the app's import, at most
    --boot-timeout."""
    findings = [Finding("note", note) for note in invocation.notes]
    findings += _look(invocation.settings)
    bad = [finding for finding in findings if finding.kind == "bad"]
    if invocation.as_json:
        rows = [{"kind": one.kind, "what": one.what, "remedy": one.remedy} for one in findings]
        print(json.dumps({"ok": not bad, "findings": rows}))
    else:
        for one in findings:
            print(f"{one.kind:<5} {one.what}" + (f"\n      do: {one.remedy}" if one.remedy else ""))
    return EXIT_USAGE if bad else EXIT_OK


def _look(settings: Settings) -> Iterator[Finding]:
    try:
        account = run_as(settings)
        source = interpreter.resolve(settings)
    except MidstreamError as error:
        yield _bad(error)
        return
    if not source.link:
        yield Finding("note", f"{settings.chdir} is a folder, no symlink: an upgrade loads the same folder again")
    yield from _app(settings, source, account)
    for bind in settings.bind:
        yield from _address(bind, "--bind")
    if settings.metrics:
        yield from _address(settings.metrics, "--metrics")
    for path in (settings.access_log, settings.error_log, settings.pid_file):
        if path not in ("", "-"):
            yield from _file(path)


def _bad(error: MidstreamError) -> Finding:
    where = f" ({error.where})" if error.where else ""
    detail = "".join(f"\n      | {line}" for line in error.detail.rstrip().splitlines())
    return Finding("bad", f"{error.what}{where}{detail}", error.remedy)


def _app(settings: Settings, source: interpreter.Source, account: RunAs) -> Iterator[Finding]:
    try:
        report = _ask_child(settings, source, account)
    except subprocess.TimeoutExpired:
        yield Finding("bad", f"{settings.app} was not imported within {settings.boot_timeout_s:g} s (--boot-timeout)")
        return
    except OSError as error:
        yield Finding("bad", f"{source.python} cannot be run: {error.strerror}", "name the interpreter: --python")
        return
    yield Finding("ok", f"release {source.release} in {source.folder}")
    if "python" in report:
        yield Finding("ok", f"{source.python}: Python {report['python']}, midstream {report['midstream']}")
    if "error" in report:
        yield _bad(from_wire(report["error"]))
        return
    yield Finding("ok", f"{settings.app} is {report['interface'].upper()}")
    yield from (Finding("note", warning) for warning in report["warnings"])
    yield from (Finding("bad", f"the import leaves {one}", report["remedy"]) for one in report["refused"])
    if report["missing"]:
        missing = ", ".join(report["missing"])
        yield Finding("bad", f"{source.python} has no {missing}", "put 'midstream[serve]' into the app's requirements")


def _ask_child(settings: Settings, source: interpreter.Source, account: RunAs) -> dict[str, Any]:
    env = interpreter.environment(os.environ, settings, source)
    if account.name:
        env |= {"USER": account.name, "LOGNAME": account.name, "HOME": account.home}
    more: dict[str, Any] = {}
    if account.uid is not None:
        more = {"user": account.uid, "group": account.gid, "extra_groups": list(account.groups)}
    done = subprocess.run(
        [source.python, "-c", _CHILD],
        input=json.dumps(settings.to_json()).encode(),
        stdout=subprocess.PIPE,
        env=env,
        cwd=source.folder,
        timeout=settings.boot_timeout_s or None,
        check=False,
        **more,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = None
    if isinstance(report, dict):
        return report
    return {
        "error": {
            "what": f"the release's interpreter did not load the app: it ended with status {done.returncode}",
            "where": source.python,
            "detail": "",
            "remedy": "see above; without midstream in it: put 'midstream[serve]' into the app's requirements",
        }
    }


def _address(bind: str, option: str) -> Iterator[Finding]:
    if bind.startswith("fd://"):
        return
    if option == "--bind" and takeover.find((bind,), "master"):
        yield Finding("note", f"{bind} is served by a running midstream serve", "an upgrade of it: --ask reload")
        return
    address = listen.parse(bind)
    problem = _unix_problem(address.path) if address.family == socket.AF_UNIX else _tcp_problem(address)
    if problem:
        holder = listen.holder_of(address)
        yield Finding("bad", f"{option} {bind}: {problem}" + (f", by {holder}" if holder else ""))
    else:
        yield Finding("ok", f"{option} {bind} is free")


def _tcp_problem(address: listen.Address) -> str:
    with socket.socket(address.family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address.host, address.port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _unix_problem(path: str) -> str:
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        folder = os.path.dirname(path)
        return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} is no folder that may be written to"
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISSOCK(kind):
        return "something else has that name"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return ""  # left behind by a dead one; it is replaced
        except OSError as error:
            return error.strerror or str(error)
    return "in use"


def _file(path: str) -> Iterator[Finding]:
    there = path if os.path.exists(path) else os.path.dirname(path)
    if os.access(there, os.W_OK) and not os.path.isdir(path):
        yield Finding("ok", f"{path} can be written")
    else:
        yield Finding("bad", f"{path} cannot be written", "make its folder, or let the user write to it")
    sys.stdout.flush()
