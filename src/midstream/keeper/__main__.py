"""`python -I -S keeper.pyz --state DIR --runtime DIR --agent-argv JSON [--main SERVICE] [--stop-timeout S]`.

Also, for the keeper itself: `--validate FD` (can this image read that state?) and `--resume FD` (go on with it).
"""

from __future__ import annotations

import gc
import json
import os
import sys

from midstream.errors import EXIT_USAGE, MidstreamError, OperatorError
from midstream.keeper import adopt
from midstream.keeper.children import Inherited
from midstream.keeper.door import bind_door
from midstream.keeper.keeper import Keeper, Settings
from midstream.keeper.layout import Layout
from midstream.linux import cgroup, clock, fds, prctl

_OPTIONS = ("--state", "--runtime", "--agent-argv", "--main", "--stop-timeout", "--validate", "--resume")


def options_of(argv: list[str]) -> dict[str, str]:
    """The options as a table. Raises OperatorError. (argparse would cost a megabyte for the life of the host.)"""
    found: dict[str, str] = {}
    rest = list(argv)
    while rest:
        name = rest.pop(0)
        if name not in _OPTIONS or not rest:
            raise OperatorError(f"keeper: {name}: unknown option, or its value is missing", remedy=__doc__ or "")
        found[name] = rest.pop(0)
    return found


def settings_of(options: dict[str, str]) -> Settings:
    """Raises OperatorError for what is missing or malformed."""
    for name in ("--state", "--runtime"):
        if not options.get(name):
            raise OperatorError(f"keeper: {name} is missing", remedy=__doc__ or "")
    try:
        argv = json.loads(options.get("--agent-argv", "[]"))
        if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
            raise ValueError("not a list of strings")
        timeout_s = float(options.get("--stop-timeout", "30"))
    except ValueError as error:
        raise OperatorError(f"keeper: {error}", where="--agent-argv or --stop-timeout") from None
    return Settings(options["--state"], options["--runtime"], tuple(argv), options.get("--main", ""), timeout_s)


def start(settings: Settings) -> int:
    """Become the keeper of a state folder; returns the exit code. Raises MidstreamError."""
    layout = Layout(settings.state, settings.runtime)
    inherited = Inherited(fds.raise_descriptor_limit(), os.umask(0o077))
    layout.prepare()
    lock_fd = layout.lock()
    for fd in fds.open_fds():
        if fd > 2:
            os.set_inheritable(fd, False)
    os.chdir("/")
    prctl.become_subreaper()
    cgroup_root, reason = cgroup.make_root(f"midstream-{layout.keeper_id}")
    if reason:
        layout.note(reason)
    keeper = Keeper(settings, layout, inherited, clock.boot_id(), cgroup_root)
    keeper.lock_fd = lock_fd
    adopt.adopt(keeper)
    keeper.write_settings()
    keeper.open(bind_door(layout.socket_path))
    gc.collect()
    gc.freeze()
    return keeper.run()


def main(argv: list[str]) -> int:
    try:
        options = options_of(argv)
        return start(settings_of(options))
    except MidstreamError as error:
        print(f"midstream keeper: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"midstream keeper: {error}", file=sys.stderr)
        return EXIT_USAGE if error.filename is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
