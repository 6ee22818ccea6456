"""`python -I midstream.pyz install-here`: the far end of `agent install`, `agent upgrade` and `setup`, on the host.

One request as a line of JSON on stdin; steps, and at last a result or an error, as lines on stdout. Goes on to the end when
nobody listens any more.
"""

from __future__ import annotations

import json
import os
import pwd
import sys
from typing import Any

_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_DATA_HOME")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(argv: list[str]) -> int:
    """The exit code: that of the error, which was told."""
    from midstream.errors import BugError, MidstreamError

    _settle()
    try:
        result = _carry_out(json.loads(sys.stdin.buffer.readline()))
    except MidstreamError as error:
        _say({"error": error.to_wire()})
        return error.exit_code
    except Exception as error:
        import traceback

        bug = BugError(f"{type(error).__name__}: {error}", detail=traceback.format_exc())
        _say({"error": bug.to_wire()})
        return bug.exit_code
    _say({"result": result})
    return 0


def _settle() -> None:
    """Of the environment of an ssh session, or of sudo, nothing else gets into the agent."""
    os.umask(0o022)
    os.chdir("/")
    kept = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith("LC_")}
    kept["PATH"] = ":".join(dict.fromkeys([*kept.get("PATH", _PATH).split(":"), *_PATH.split(":")]))
    entry = pwd.getpwuid(os.geteuid())
    if os.geteuid() == 0:  # sudo may have left those of the user
        kept |= {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
        for key in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_DATA_HOME"):
            kept.pop(key, None)
    os.environ.clear()
    os.environ.update(kept)


def _say(words: dict[str, Any]) -> None:
    try:
        os.write(1, json.dumps({"midstream": words}).encode() + b"\n")
    except OSError:  # the deployer is gone; what was begun is carried to its end all the same
        return


def _carry_out(asked: object) -> dict[str, Any]:
    from midstream.cli.programs import copy_path
    from midstream.core.wire import from_wire, to_wire
    from midstream.deploy.install.changes import Changes
    from midstream.deploy.install.here import Installation
    from midstream.deploy.install.request import Request
    from midstream.deploy.install.service import service_here

    request = from_wire(Request, asked)
    site = _site()
    changes = Changes(lambda step: _say(to_wire(step)), request.dry_run)
    service = service_here(request.service, site)
    work = Installation(request, site, service, copy_path(), changes, _grant)
    result = to_wire(work.carry_out())
    assert isinstance(result, dict)
    return result


def _site() -> Any:
    from midstream.cli.places import places
    from midstream.deploy.install.service import SYSTEMD_RUNS
    from midstream.deploy.install.site import Site

    entry = pwd.getpwuid(os.geteuid())
    if os.geteuid() != 0 and os.path.isdir(SYSTEMD_RUNS):
        # logind makes it as soon as the user lingers; from then on it is what everybody goes by.
        os.environ.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    here = places()
    home = os.environ.get("HOME") or entry.pw_dir
    return Site(os.geteuid(), entry.pw_name, home, sys.executable, here.state, here.runtime, here.socket)


def _grant(text: str) -> Any:
    """The change that an `--allow` means. Raises OperatorError."""
    from midstream.agent.accounts import GRANTS_FOLDER, read_grant
    from midstream.cli.grants import joined, parse_allowance, write_grant
    from midstream.deploy.install.changes import Change
    from midstream.errors import OperatorError

    if os.geteuid() != 0:
        raise OperatorError("grants are for an agent that runs as root", remedy="leave --allow out")
    app, grant = parse_allowance(text)
    old = read_grant(app, GRANTS_FOLDER) if os.path.isdir(GRANTS_FOLDER) else None
    is_so = old is not None and joined(old, grant) == old

    def write() -> None:
        write_grant(app, grant, GRANTS_FOLDER)

    told = f"{grant.owner} may deploy {app} to {grant.deploy_to} ({GRANTS_FOLDER}/{app}.toml)"
    return Change("grant", told, None if is_so else write)
