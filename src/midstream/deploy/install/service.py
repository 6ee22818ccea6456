"""The service manager of a host: which one it is, and having it start the agent. Runs on the host; blocks.

Each kind answers the same questions: which files it needs, whether it is set up, and how to set it up. What it starts is
`agent run --stand-by`, so it does no harm where an agent runs already.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from midstream.deploy.install import definitions
from midstream.deploy.install.owned_files import Found, link_at, make_link
from midstream.deploy.install.request import ServiceKind
from midstream.deploy.install.site import Site
from midstream.errors import HostError, OperatorError

SYSTEMD_RUNS = "/run/systemd/system"
LINGER_FOLDER = "/var/lib/systemd/linger"
_COMMAND_MAX_S = 60.0
_MANAGER_MAX_S = 15.0
_TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class Definition:
    """A file that the service manager reads."""

    path: str
    text: str
    mode: int


class Service(Protocol):
    """One way of starting the agent."""

    kind: ServiceKind

    def files(self) -> tuple[Definition, ...]: ...

    def links(self) -> tuple[tuple[str, str], ...]:
        """(path, target) of links that must be nobody else's."""

    def is_on(self) -> bool:
        """Whether the agent is started at boot, and watched now."""

    def turn_on(self) -> None:
        """Have it read its files, and start the agent, now and at boot. May be repeated. Raises HostError."""

    def last_words(self) -> str:
        """The end of the agent's log."""

    def note(self) -> str:
        """What is left for the operator to do; "" for nothing."""


def service_here(wanted: ServiceKind, site: Site) -> Service:
    """The service manager to use. Raises OperatorError when the wanted one does not run here."""
    scanned = _runit_folder(site.uid)
    there = {
        ServiceKind.SYSTEMD: os.path.isdir(SYSTEMD_RUNS),
        ServiceKind.RUNIT: bool(scanned),
        ServiceKind.PLAIN: True,
    }
    kind = next(kind for kind, runs in there.items() if runs) if wanted is ServiceKind.AUTO else wanted
    if not there[kind]:
        raise OperatorError(
            f"{kind.value} does not run on the host",
            serving="nothing was changed",
            remedy=f"leave --service out, or choose from {', '.join(kind.value for kind, runs in there.items() if runs)}",
        )
    match kind:
        case ServiceKind.SYSTEMD:
            return Systemd(site)
        case ServiceKind.RUNIT:
            return Runit(site, scanned)
        case _:
            return Plain(site)


@dataclass(frozen=True, slots=True)
class Systemd:
    site: Site
    kind = ServiceKind.SYSTEMD

    def files(self) -> tuple[Definition, ...]:
        folder = f"{self.site.home}/.config/systemd/user" if self.site.rootless else "/etc/systemd/system"
        text = definitions.systemd_unit(self.site.run_argv(), rootless=self.site.rootless)
        return (Definition(f"{folder}/{definitions.UNIT}", text, 0o644),)

    def links(self) -> tuple[tuple[str, str], ...]:
        return ()

    def is_on(self) -> bool:
        return all(self._systemctl(verb, "--quiet").returncode == 0 for verb in ("is-enabled", "is-active"))

    def turn_on(self) -> None:
        if self.site.rootless:
            self._wait_for_manager()
        self._require("daemon-reload")
        self._require("enable", "--quiet", definitions.UNIT)
        self._require("start", definitions.UNIT)

    def _wait_for_manager(self) -> None:
        """Lingering has just been enabled: logind starts the user's own systemd, which opens its socket."""
        path = f"/run/user/{self.site.uid}/systemd/private"
        deadline_s = time.monotonic() + _MANAGER_MAX_S
        while not os.path.exists(path):
            if time.monotonic() > deadline_s:
                raise HostError(
                    "the user's own systemd does not come up",
                    where=path,
                    remedy=f"as root: systemctl status user@{self.site.uid}.service",
                )
            time.sleep(0.1)

    def _systemctl(self, verb: str, *args: str) -> subprocess.CompletedProcess[str]:
        user = ["--user"] if self.site.rootless else []
        unit = () if (args and args[-1] == definitions.UNIT) or verb == "daemon-reload" else (definitions.UNIT,)
        return run_command(["systemctl", *user, verb, *args, *unit], _user_bus(self.site))

    def _require(self, verb: str, *args: str) -> None:
        done = self._systemctl(verb, *args)
        if done.returncode != 0:
            raise HostError(
                f"systemctl {verb} failed", where=definitions.UNIT, detail=done.stdout, remedy="see journalctl -xe"
            )

    def last_words(self) -> str:
        user = ["--user"] if self.site.rootless else []
        asked = ["journalctl", *user, "-u", definitions.UNIT, "-n", str(_TAIL_LINES), "--no-pager", "-o", "cat"]
        return run_command(asked, _user_bus(self.site)).stdout

    def note(self) -> str:
        return ""


def _user_bus(site: Site) -> dict[str, str]:
    """An ssh session without pam_systemd does not say where the user's own systemd is."""
    return {"XDG_RUNTIME_DIR": f"/run/user/{site.uid}"} if site.rootless else {}


@dataclass(frozen=True, slots=True)
class Runit:
    """`scanned`: the folder that runsvdir(8) watches."""

    site: Site
    scanned: str
    kind = ServiceKind.RUNIT

    @property
    def folder(self) -> str:
        return f"{self.site.prefix}/sv/midstream" if self.site.rootless else "/etc/sv/midstream"

    @property
    def _log(self) -> str:
        return f"{self.site.state}/log-of-agent" if self.site.rootless else "/var/log/midstream"

    def files(self) -> tuple[Definition, ...]:
        run = definitions.runit_run(self.site.run_argv(), self.site.home)
        return (
            Definition(f"{self.folder}/log/run", definitions.runit_log(self._log), 0o755),
            Definition(f"{self.folder}/run", run, 0o755),
        )

    def links(self) -> tuple[tuple[str, str], ...]:
        return ((f"{self.scanned}/midstream", self.folder),)

    def is_on(self) -> bool:
        (path, target) = self.links()[0]
        asked = run_command(["sv", "status", path])
        return link_at(path, target) is Found.SAME and asked.stdout.startswith("run:")

    def turn_on(self) -> None:
        (path, target) = self.links()[0]
        if link_at(path, target) is Found.ABSENT:
            make_link(path, target)
        deadline_s = time.monotonic() + _MANAGER_MAX_S  # runsvdir looks every five seconds
        while not os.path.exists(f"{path}/supervise/ok"):
            if time.monotonic() > deadline_s:
                raise HostError(
                    "runsvdir does not take the service up",
                    where=path,
                    remedy="is it the folder that runsvdir watches?",
                )
            time.sleep(0.1)
        done = run_command(["sv", "up", path])
        if done.returncode != 0:
            raise HostError(
                "sv up failed", where=path, detail=done.stdout, remedy="`sv status` and the service's log say why"
            )

    def last_words(self) -> str:
        return tail(f"{self._log}/current")

    def note(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Plain:
    """No service manager: the keeper is started detached. Keeper and agent start each other again, but after a boot
    somebody has to."""

    site: Site
    kind = ServiceKind.PLAIN

    @property
    def _log(self) -> str:
        return f"{self.site.state}/agent.log"

    def files(self) -> tuple[Definition, ...]:
        return ()

    def links(self) -> tuple[tuple[str, str], ...]:
        return ()

    def is_on(self) -> bool:
        return True  # nothing watches

    def turn_on(self) -> None:
        try:
            os.makedirs(self.site.state, mode=0o700, exist_ok=True)
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"it cannot be written: {error.strerror}",
                where=self._log,
                remedy="give the state folder to this user, or choose another one: --state DIR",
            ) from error
        argv = [word for word in self.site.run_argv() if word != "--stand-by"]
        try:
            subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True)
        finally:
            os.close(log)

    def last_words(self) -> str:
        return tail(self._log)

    def note(self) -> str:
        line = definitions.at_boot(self.site.run_argv(), self._log)
        return f"nothing starts it at boot; put this into the crontab of {self.site.user}: {line}"


def _runit_folder(uid: int) -> str:
    """The folder that a runsvdir of this user watches; "" when none runs."""
    for argv in _programs("runsvdir", uid):
        words = [word for word in argv[1:] if not word.startswith("-")]
        if words and os.path.isdir(words[0]):
            return words[0]
    return ""


def _programs(name: str, uid: int) -> Iterator[list[str]]:
    """argv of each process of that name and user."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", encoding="ascii", errors="replace") as file:
                if file.read().strip() != name or os.stat(f"/proc/{pid}").st_uid != uid:
                    continue
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                yield os.fsdecode(file.read()).rstrip("\0").split("\0")
        except OSError:
            continue


def enable_lingering(site: Site) -> None:
    """Without it logind ends a user's processes, and takes /run/user/UID away, when he logs out. Raises HostError."""
    done = run_command(["loginctl", "enable-linger", site.user])  # named: an ssh without pam_systemd is no session
    if not is_lingering(site):
        raise HostError(
            "lingering is off and cannot be enabled: at the user's log-out the agent and every service would be killed",
            where=f"{LINGER_FOLDER}/{site.user}",
            detail=done.stdout,
            serving="nothing was changed",
            remedy=f"as root: loginctl enable-linger {site.user}, then run this again",
        )


def is_lingering(site: Site) -> bool:
    """True where there is no logind, too."""
    return not os.path.isdir(SYSTEMD_RUNS) or os.path.exists(f"{LINGER_FOLDER}/{site.user}")


def run_command(argv: Sequence[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Its exit status and output, both streams; 127 for a program that is not there, 124 for one that does not end."""
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | (env or {}),
            timeout=_COMMAND_MAX_S,
        )
    except OSError as error:
        return subprocess.CompletedProcess(argv, 127, f"{argv[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, f"{argv[0]} did not end within {_COMMAND_MAX_S:g} s")


def tail(path: str) -> str:
    """The last lines of a log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 4000))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:])
    except OSError as error:
        return f"({path}: {error.strerror})"
