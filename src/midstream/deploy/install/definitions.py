"""The texts by which systemd and runit start the agent. Pure: paths in, text out.

The keeper is the main process; services are its children, in cgroups below its own. So whoever supervises the keeper must
leave its children alone (KillMode=process; runit does by itself) and must not take a keeper that it did not start for a
failure: `agent run --stand-by` waits where one runs already.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from midstream.deploy.install.owned_files import marked

UNIT = "midstream.service"
STOP_TIMEOUT_S = 90  # the keeper ends its services within 30 s, then kills them


def systemd_unit(argv: Sequence[str], *, rootless: bool) -> str:
    """A unit of the system, or of a user's own systemd."""
    order = "" if rootless else "Wants=network-online.target\nAfter=network-online.target\n"
    wanted_by = "default.target" if rootless else "multi-user.target"
    return marked(f"""[Unit]
Description=Midstream: deploys, supervises and drains services
{order}StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={_command_line(argv)}
# `systemctl stop` ends every service in order. To bring in a new version under them: midstream agent upgrade
TimeoutStopSec={STOP_TIMEOUT_S}
Restart=always
RestartSec=1
# What the keeper started is the keeper's, in cgroups of its own: it outlives a crash of keeper or agent.
KillMode=process
Delegate=yes
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=524288
# Descriptors that the main process hands to systemd are kept over its restart.
NotifyAccess=main
FileDescriptorStoreMax=1024

[Install]
WantedBy={wanted_by}
""")


def _command_line(argv: Sequence[str]) -> str:
    """As systemd.service(5) reads it: without specifiers and, in arguments, variables; the program's own path has none."""
    program, *arguments = (word.replace("%", "%%") for word in argv)
    return " ".join(_systemd_word(word) for word in (program, *(word.replace("$", "$$") for word in arguments)))


def _systemd_word(word: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./$-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def runit_run(argv: Sequence[str], home: str) -> str:
    """`run` of runsv(8). The environment of runsvdir may have no HOME."""
    return marked(f"#!/bin/sh\nexec 2>&1\nexport HOME={shlex.quote(home)}\nexec {shlex.join(argv)}\n")


def runit_log(folder: str) -> str:
    """`log/run`: svlogd(8) rotates by itself."""
    return marked(f"#!/bin/sh\nmkdir -p {shlex.quote(folder)} || exit 1\nexec svlogd -tt {shlex.quote(folder)}\n")


def at_boot(argv: Sequence[str], log: str) -> str:
    """A crontab line for hosts without a service manager."""
    command = shlex.join(word for word in argv if word != "--stand-by")
    return f"@reboot {command} >>{shlex.quote(log)} 2>&1".replace("%", r"\%")
