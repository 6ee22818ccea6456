"""The errors of not reaching an agent: here, or behind ssh. Pure, and imports nothing but errors: short commands start
with it.

ssh says what went wrong in words on stderr and with exit status 255; every other status comes from the far end
(ssh(1), EXIT STATUS). `_SSH` and `_FAR_END` are the tables from those words to what an operator needs: what it means,
what to do, and whether trying again may help.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from midstream.errors import HostError, MidstreamError, NotAllowedError, OperatorError

SSH_FAILED = 255
MISSING = "midstream-is-not-installed"  # said by the line that `ssh.py` runs at the far end
NO_AGENT = "no agent answers"
NOT_INSTALLED = "midstream is not installed on the host, or not where it is looked for"
_GOES_ON = "whatever runs there goes on running; services do not depend on being reached"
_LINES_SHOWN = 12


class NotNow(OSError):
    """Nothing answers now, and trying again may help. `error`: what to raise when there is no more time."""

    def __init__(self, error: MidstreamError) -> None:
        super().__init__(error.what)
        self.error = error


def not_allowed(socket_path: str) -> NotAllowedError:
    return NotAllowedError(
        "this user may not talk to the agent",
        where=socket_path,
        remedy="run it as root, as the owner of the app, or name your own agent with --socket",
    )


def no_agent(socket_path: str, last: str, *, where: str = "") -> HostError:
    """No agent answers on `socket_path`. Its services may well run: nothing dies with its watcher."""
    return HostError(
        NO_AGENT,
        where=f"{where}: {socket_path}" if where else socket_path,
        detail=last,
        serving="whatever ran goes on running; services do not depend on the agent",
        remedy="start one with `midstream agent run`, or name it with --socket or MIDSTREAM_SOCKET",
    )


@dataclass(frozen=True, slots=True)
class _Case:
    """`words`: a pattern in what was said. `{host}` is filled in. `again`: another attempt may succeed."""

    words: str
    what: str
    remedy: str
    again: bool = False
    kind: type[MidstreamError] = HostError


_BY_HAND = "`{ssh} {host} true` by hand tells more"

# The first that fits counts. Texts of OpenSSH 8 to 9; of older ones most.
_SSH = (
    _Case(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .* has changed",
        "the host key is not the one that is known: either the host was set up anew, or somebody is in between",
        "compare the fingerprint on the host's console; if it is the new host, `ssh-keygen -R {name}`, then "
        "`{ssh} {host}` once by hand",
    ),
    _Case(
        r"Host key verification failed|No \S+ host key is known for|is marked as revoked",
        "the host key is not known here, and is never accepted unseen",
        "`{ssh} {host}` once by hand, and compare the fingerprint that it shows with the host's own",
    ),
    _Case(
        r"Could not resolve hostname|Name or service not known|nodename nor servname",
        "the name of the host cannot be resolved",
        "check the address in midstream.toml, the Host entries of ~/.ssh/config, and DNS",
        again=True,
    ),
    _Case(
        r"Permission denied|Too many authentication failures|No more authentication methods|no mutual signature",
        "the host refused the log-in",
        "passwords are not asked: put your public key into ~/.ssh/authorized_keys of that user; a key with a "
        "passphrase has to be in ssh-agent (ssh-add). " + _BY_HAND,
    ),
    _Case(
        r"Connection refused",
        "the connection was refused: no sshd listens there",
        "check the port (ssh://user@host:port, or Port in ~/.ssh/config), and that sshd runs on the host",
        again=True,
    ),
    _Case(
        r"No route to host|Network is unreachable|Host is down|Host is unreachable",
        "there is no route to the host: it is down, or cut off",
        "check the host and the network; a deploy can go past it with --without {name}",
        again=True,
    ),
    _Case(
        r"timed out|Timeout, server|not responding|Timeout before authentication",
        "the host did not answer in time",
        "check the host, the network and firewalls; a deploy can go past it with --without {name}",
        again=True,
    ),
    _Case(
        r"Bad configuration option|bad configuration option|Can't open user config file|Unsupported option|"
        r"[Bb]ad port|command-line line \d+|hostname contains invalid characters|Bad owner or permissions on",
        "ssh does not accept its own configuration",
        "mend ~/.ssh/config, or what MIDSTREAM_SSH names",
        kind=OperatorError,
    ),
    _Case(
        r"Unable to negotiate|no matching (host key|cipher|key exchange|mac)",
        "ssh and the host's sshd have no algorithm in common",
        "bring sshd on the host up to date, or allow the algorithm for it in ~/.ssh/config",
    ),
    _Case(
        r"Connection closed by|Connection reset|kex_exchange_identification|ssh_exchange_identification|Broken pipe|"
        r"closed by remote host|Connection to .* closed",
        "the host closed the connection",
        "sshd may be starting anew, be full (MaxStartups), or refuse this address. " + _BY_HAND,
        again=True,
    ),
)

_FAR_END = (
    _Case(
        MISSING,
        NOT_INSTALLED,
        "install it: `midstream agent install {host}`, or on all hosts of the stage: `midstream setup STAGE`",
    ),
    _Case(
        r"midstream needs Python|requires? Python 3\.1[1-9]",
        "the Python of the host is too old: Midstream needs 3.11 or newer",
        "install a newer Python on the host, then `midstream agent install {host}`",
    ),
    _Case(
        r"python3?[\d.]*\S?: (No such file|not found|command not found)|"
        r"bad interpreter|exec: \S*midstream: not found",
        "there is no python3 on the host",
        "install Python 3.11 or newer on the host, then `midstream agent install {host}`",
    ),
    _Case(
        r"[Nn]o such option|[Nn]o such command",
        "the midstream on the host is older than this command",
        "`midstream agent upgrade {host}`, or install this version: `midstream agent install {host}`",
    ),
)


def ssh_failed(host: str, status: int, said: str, *, ssh: str = "ssh", hint: str = "") -> MidstreamError | NotNow:
    """What the end of an ssh to a host means, before the agent there had said a word.

    status: ssh's exit status, negative for a signal. said: what ssh and the far end printed. ssh: the command as the
    operator would type it. hint: a further sentence, on a refused log-in. A NotNow where trying again may help.
    """
    mine = status == SSH_FAILED
    case = next((case for case in (_SSH if mine else _FAR_END) if re.search(case.words, said)), None)
    case = case or _unknown(status, said)
    names = {"host": host, "name": name_of(host), "ssh": ssh}
    remedy = case.remedy.format(**names)
    if hint and case.what == "the host refused the log-in":
        remedy = f"{hint}. {remedy}"
    shown = [line.rstrip() for line in said.splitlines() if line.strip() and MISSING not in line]
    error = case.kind(case.what, where=host, detail="\n".join(shown[-_LINES_SHOWN:]), serving=_GOES_ON, remedy=remedy)
    return NotNow(error) if case.again else error


def _unknown(status: int, said: str) -> _Case:
    if status < 0:
        return _Case("", f"ssh was ended by signal {-status}", "try again", again=True)
    if status == SSH_FAILED:
        return _Case("", "ssh failed" + ("" if said.strip() else ", and did not say why"), _BY_HAND)
    return _Case(
        "",
        f"the far end ended with status {status} instead of speaking for the agent",
        "the user may run no command, or its shell's start files end the session. " + _BY_HAND,
    )


def name_of(address: str) -> str:
    """The host's own name in what ssh takes as an address: without scheme, user and port."""
    rest = address.removeprefix("ssh://")
    is_url = rest != address
    rest = rest.rpartition("@")[2]
    if not is_url:
        return rest
    rest = rest.partition("/")[0]
    return rest[1:].partition("]")[0] if rest.startswith("[") else rest.partition(":")[0]


def no_ssh(command: str, why: str) -> OperatorError:
    return OperatorError(
        f"ssh cannot be started: {why}",
        where=command,
        remedy="install the OpenSSH client (openssh-client), or name it with MIDSTREAM_SSH",
    )


def bad_address(address: str) -> OperatorError:
    return OperatorError(
        f"{address!r} is no address of a host",
        remedy="user@host, a name from ~/.ssh/config, or ssh://user@host:port",
    )


def mute(host: str, said: str, seconds: float) -> NotNow:
    """Connected, but no word of the agent."""
    return NotNow(
        HostError(
            f"the host took the connection, but its agent said nothing within {seconds:g} s",
            where=host,
            detail=said,
            serving=_GOES_ON,
            remedy=f"look at the agent's log on {name_of(host)}",
        )
    )


def noisy(host: str, noise: str) -> HostError:
    """The far end printed and printed, and never a word of the protocol."""
    return HostError(
        "the far end prints text where the agent should speak",
        where=host,
        detail=noise[:2000],
        serving=_GOES_ON,
        remedy=f"have the start files of the user's shell on {name_of(host)} print nothing for non-interactive sessions",
    )


def told_by_far_end(host: str, error: MidstreamError) -> MidstreamError:
    """What `midstream agent connect` at the far end answered instead of an agent, put for somebody who is here."""
    error.where = f"{host}: {error.where}" if error.where else host
    if error.what == NO_AGENT:
        error.remedy = (
            f"start it on {name_of(host)} (`systemctl start midstream`, or `midstream agent run`); "
            f"where there is none yet: `midstream agent install {host}`"
        )
    return error
