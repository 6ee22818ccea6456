"""The step program: reads its request, runs the one step it is named for, writes the result line.

The one boundary of the steps: OSError becomes HostError here, anything unforeseen a BugError. Runs as a one-shot of the
keeper under the app's uid; see `core.steps` for the contract.
"""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import stat
import sys
from collections.abc import Sequence
from typing import Any

from midstream.core.steps import (
    ALIASES,
    PACK_FD,
    REQUEST_FD,
    REQUESTS,
    SESSION,
    Receive,
    Several,
    part_line,
    result_line,
)
from midstream.core.wire import WireError, from_wire
from midstream.errors import EXIT_USAGE, BugError, HostError, MidstreamError

# Where each step is; imported when it is asked for, because a process start is most of what a small step costs.
_MODULES = {
    "prepare": "prepare",
    "inspect": "prepare",
    "receive": "mirror",
    "fetch": "mirror",
    "diff": "mirror",
    "pack_files": "artifact",
    "unpack_files": "artifact",
    "make_release": "checkout",
    "empty_trash": "trash",
    "store_spec": "specs",
    "read_spec": "specs",
    "publish_assets": "assets",
    "switch": "switch",
    "log_revision": "switch",
    "cleanup": "removal",
    "discard": "removal",
    "unswitch": "switch",
    "monit_look": "monit",
    "monit_hold": "monit",
    "monit_release": "monit",
    "monit_quiet": "monit",
    "monit_restart": "monit",
    "workers": "workers",
}


def main(argv: Sequence[str]) -> int:
    """Runs step `argv[0]`; the exit code. Blocks until it is done."""
    if argv[:1] == ["terminal"] and len(argv) > 1:
        from midstream.steps import terminal

        return terminal.main(argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files are bytes, not always UTF-8
    if list(argv) == [SESSION]:
        from midstream.steps import session

        return session.main(perform)
    if len(argv) != 1 or argv[0] not in REQUESTS:
        print(f"usage: python -m midstream.steps {{{','.join(REQUESTS)}}} 3<request", file=sys.stderr)
        return EXIT_USAGE
    return perform(argv[0])


def perform(name: str) -> int:
    """Runs step `name` with the descriptors as they are placed now, and writes its result line; the exit code."""
    pack = _is_pack(PACK_FD)  # before anything else is opened and takes that number
    try:
        ok = run(name, _read_request(), pack)
    except MidstreamError as error:
        return _fail(error)
    except OSError as error:
        return _fail(host_error(error))
    except Exception as error:
        import traceback

        return _fail(BugError(f"step {name}: {type(error).__name__}: {error}", detail=traceback.format_exc()))
    print(result_line(ok), flush=True)
    return 0


def run(name: str, data: Any, pack: bool = False) -> dict[str, Any]:
    """The answer of step `name` to the request `data` (JSON values)."""
    if isinstance(data, dict):
        data = {ALIASES.get(key, key): value for key, value in data.items()}
    try:
        request: Any = from_wire(REQUESTS[name], data)
    except WireError as error:
        raise BugError(f"step {name}: the request does not fit: {error}") from None
    if isinstance(request, Several):
        return {"results": [_run_one(number, item, pack) for number, item in enumerate(request.steps)]}
    if isinstance(request, Receive):
        from midstream.steps import mirror

        return mirror.receive(request, PACK_FD if (pack if request.pack is None else request.pack) else None)
    module = importlib.import_module(f"midstream.steps.{_MODULES[name]}")
    answer: dict[str, Any] = getattr(module, name)(request)
    return answer


def _run_one(number: int, item: dict[str, Any], pack: bool) -> dict[str, Any]:
    name = str(item.get("step", ""))
    if name not in _MODULES:
        raise BugError(f"several: there is no step {name!r}")
    answer = run(name, item.get("request", {}), pack)
    print(part_line(number, answer), flush=True)
    return answer


def _read_request() -> Any:
    try:
        if stat.S_ISREG(os.fstat(REQUEST_FD).st_mode):
            os.lseek(REQUEST_FD, 0, os.SEEK_SET)
        with open(REQUEST_FD, "rb", closefd=False) as file:
            return json.loads(file.read())
    except (OSError, ValueError) as error:
        raise BugError(f"no request on descriptor {REQUEST_FD}: {error}") from None


def _is_pack(fd: int) -> bool:
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return stat.S_ISFIFO(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_size > 0)


def _fail(error: MidstreamError) -> int:
    print(error, file=sys.stderr, flush=True)
    print(result_line(None, error), flush=True)
    return error.exit_code


def host_error(error: OSError) -> MidstreamError:
    """The HostError for a system call that failed: which path, and what to do about it."""
    path = str(error.filename or "")
    where = path or "this host"
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, remedy = f"no space left on the disk of {where}", "free some space (df -h, df -i), then deploy again"
    elif error.errno in (errno.EACCES, errno.EPERM):
        what = f"{where}: permission denied for uid {os.geteuid()}"
        remedy = f"give it to the user that deploys: chown -R {os.geteuid()} {where}"
    elif error.errno == errno.EROFS:
        what, remedy = f"{where} is on a disk mounted read-only", "mount it read-write; see dmesg for why it is not"
    elif error.errno == errno.EIO:
        what, remedy = f"{where}: the disk fails (input/output error)", "see dmesg, then replace or repair the disk"
    else:
        what, remedy = f"{where}: {text}", "see the system's words above, then deploy again"
    return HostError(
        what, where=path, serving="what was serving before", remedy=remedy, detail=f"{text} (errno {error.errno})"
    )
