"""`python -I -S keeper.pyz --state DIR --runtime DIR --agent-argv JSON [--main SERVICE] [--stop-timeout S]`.

With `--detach LOG` it goes on in a session of its own, writing to that file, and this command ends when the socket is
open; with `--ready-fd FD` one byte on that descriptor says so.
For the keeper itself: `--validate FD` (can this image read that state?) and `--resume FD` (go on with it).
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys

from midstream import __version__
from midstream.errors import EXIT_FAILED, MidstreamError, OperatorError
from midstream.keeper import adopt, snapshot, upgrade
from midstream.keeper.children import Inherited
from midstream.keeper.door import bind_door
from midstream.keeper.keeper import Keeper, Settings
from midstream.keeper.layout import Layout
from midstream.keeper.loop import print_traceback
from midstream.linux import cgroup, clock, fds, prctl

_OPTIONS = (
    "--state",
    "--runtime",
    "--agent-argv",
    "--main",
    "--stop-timeout",
    "--detach",
    "--ready-fd",
    "--validate",
    "--resume",
)


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
        raise OperatorError(
            f"keeper: {error}",
            where="--agent-argv or --stop-timeout",
            remedy="--agent-argv takes a JSON list of words, --stop-timeout seconds",
        ) from None
    return Settings(options["--state"], options["--runtime"], tuple(argv), options.get("--main", ""), timeout_s)


def start(settings: Settings, ready_fd: int = -1, former: snapshot.KeeperState | None = None) -> int:
    """Become the keeper of a state folder; returns the exit code. Raises MidstreamError.

    `ready_fd` gets one byte when the socket is open. `former`: what this process had open as the keeper it was before.
    """
    layout = Layout(settings.state, settings.runtime)
    layout.prepare()
    lock_fd = layout.lock()
    inherited = Inherited(fds.raise_descriptor_limit(), os.umask(0o077))
    for fd in fds.open_fds():
        if fd > 2:
            os.set_inheritable(fd, False)
    keeper = _made(settings, layout, inherited)
    keeper.lock_fd = lock_fd
    adopt.adopt(keeper)
    if former is not None:
        upgrade.salvage(keeper, former)
    keeper.open(bind_door(layout.socket_path))
    upgrade.unblock()
    if ready_fd >= 0:
        os.write(ready_fd, b"1")
        os.close(ready_fd)
    return _run(keeper)


def resume(fd: int) -> int:
    """Go on as the keeper that this process was before its execve."""
    state = snapshot.read(fds.read_file(fd))
    os.close(fd)
    settings = Settings(state.state, state.runtime, state.agent.argv, state.main, state.stop_timeout_s)
    try:
        os.umask(0o077)
        keeper = _made(settings, Layout(state.state, state.runtime), Inherited(state.nofile, state.umask))
        upgrade.resume(keeper, state)
        keeper.open(socket.socket(fileno=state.door_fd))
        upgrade.answer(keeper, state)
    except Exception as error:
        # It was validated, so this is a bug of ours; but nothing has been lost yet: the children are still ours.
        print_traceback(error)
        print(f"midstream keeper: cannot resume ({error}); adopting everything instead", file=sys.stderr)
        fds.close_all(upgrade.not_salvaged(state))
        os.umask(state.umask)
        return start(settings, former=state)
    upgrade.unblock()
    return _run(keeper)


def _made(settings: Settings, layout: Layout, inherited: Inherited) -> Keeper:
    os.chdir("/")
    prctl.become_subreaper()
    cgroup_root, reason = cgroup.make_root(f"midstream-{layout.keeper_id}")
    if reason:
        layout.note(reason)
    return Keeper(settings, layout, inherited, clock.boot_id(), cgroup_root)


def _run(keeper: Keeper) -> int:
    gc.collect()
    gc.freeze()  # what is here now stays: do not write to its pages when counting, children share them
    return keeper.run()


def validate(fd: int) -> int:
    """Whether this image can take over that state: 0, or a message and 1."""
    try:
        state = snapshot.read(fds.read_file(fd))
    except (ValueError, OSError) as error:
        print(f"midstream keeper {__version__}: cannot take over: {error}", file=sys.stderr)
        return 1
    print(f"midstream keeper {__version__}: can take over from {state.version}")
    return 0


def detach(log_path: str) -> int:
    """Go on in a child of nobody, with a session of its own. Returns, in that child, the descriptor to say `ready` on.

    This process waits until that was said and exits with 0, or with the child's exit code when it could not start.
    """
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_fd)
        if os.read(read_fd, 1):
            os._exit(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    os.close(read_fd)
    os.setsid()
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null_fd = os.open(os.devnull, os.O_RDWR)
    for fd, target in ((null_fd, 0), (log_fd, 1), (log_fd, 2)):
        os.dup2(fd, target)
    for fd in (null_fd, log_fd):
        if fd > 2:
            os.close(fd)
    return write_fd


def main(argv: list[str]) -> int:
    try:
        options = options_of(argv)
        if "--validate" in options:
            return validate(int(options["--validate"]))
        if "--resume" in options:
            return resume(int(options["--resume"]))
        settings = settings_of(options)
        ready_fd = detach(options["--detach"]) if "--detach" in options else int(options.get("--ready-fd", "-1"))
        return start(settings, ready_fd)
    except MidstreamError as error:
        print(f"midstream keeper: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"midstream keeper: {error}", file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
