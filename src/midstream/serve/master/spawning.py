"""Starting a zygote: the exec of the release's interpreter, as the right user, in the resolved folder. The master.

What lives here: the child's beginning and its first words in Python, which are ours, not the release's: what runs before
`midstream` is imported has to say clearly that it cannot be, or that the interpreter is too old.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass

from midstream.linux.spawn import Launch, Placement, launch, read_report
from midstream.serve.account import RunAs
from midstream.serve.channel import Channel, pair
from midstream.serve.contract import REMEDY
from midstream.serve.interpreter import Source, environment
from midstream.serve.settings import Settings
from midstream.serve.signals import DIALECTS

# Runs with any Python 3: descriptor 3 is the channel (zygote_under_master.CHANNEL_FD). sys.path[0] is the working folder,
# the app's: what is named like a module of Python's must not be imported in its place before we are there.
_FIRST_WORDS = f"""
import sys
sys.path[:] = [entry for entry in sys.path if entry]
def tell(what, detail=""):
    import json, os
    words = {{"what": what, "detail": detail[-8000:], "remedy": {REMEDY!r}, "where": sys.executable}}
    os.write(3, json.dumps({{"failed": words}}).encode())
    sys.exit(1)
if sys.version_info < (3, 11):
    tell("the release's Python is %d.%d, and Midstream needs 3.11" % sys.version_info[:2])
try:
    from midstream.serve.zygote_under_master import main
except ImportError as error:
    import traceback
    missing = (getattr(error, "name", "") or "").partition(".")[0] == "midstream"
    tell("there is no midstream with `serve` in the release's virtualenv" if missing
         else "midstream cannot be imported in the release's virtualenv: %s" % error, traceback.format_exc())
sys.exit(main())
"""


@dataclass(slots=True)
class Spawned:
    """pid: the zygote, leader of a session of its own. report_fd: why the exec failed, if it did."""

    pid: int
    channel: Channel
    report_fd: int

    def exec_failure(self) -> str:
        """ "" when it got as far as its program. Closes the report; once, after the end of the process."""
        if self.report_fd < 0:
            return ""
        report = read_report(self.report_fd)
        os.close(self.report_fd)
        self.report_fd = -1
        return f"{report[0]}: {os.strerror(report[1])}" if report is not None and report[0] else ""


def spawn(settings: Settings, source: Source, account: RunAs) -> Spawned:
    """Raises OSError when there can be no child."""
    channel, theirs = pair()
    env = environment(os.environ, settings, source)
    if account.name:
        env |= {"USER": account.name, "LOGNAME": account.name, "HOME": account.home}
    handled = (*DIALECTS[settings.signals], signal.SIGCHLD, signal.SIGPIPE)
    try:
        launched = launch(
            Launch(
                argv=(source.python, "-c", _FIRST_WORDS),
                env=env,
                cwd=source.folder,
                uid=account.uid,
                gid=account.gid,
                groups=account.groups,
                umask=settings.umask,
                placements=(Placement(0, None), Placement(1, 1), Placement(2, 2), Placement(3, theirs.fileno())),
                reset_signals=tuple(int(number) for number in handled),
            )
        )
    except OSError:
        channel.close()
        raise
    finally:
        theirs.close()
    return Spawned(launched.pid, channel, launched.report_fd)


def boot(
    channel: Channel,
    settings: Settings,
    source: Source,
    generation: int,
    workers: int,
    listeners: list[tuple[str, socket.socket]],
) -> None:
    """The answer to its hello: what it is to load, and on what it will listen."""
    channel.send(
        "boot",
        tuple(sock.fileno() for _, sock in listeners),
        settings=settings.to_json(),
        release=source.release,
        generation=generation,
        workers=workers,
        listeners=[name for name, _ in listeners],
    )
