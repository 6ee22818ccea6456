"""Asking Monit, and waiting until it has done what it was asked: look, hold, release, restart, start, quiet.

Each is one step program, run as the user whose Monit it is (root, by a grant; else the app's owner). Monit is spoken to
through its own command line, which reads the control file for the way to its daemon and the password. It answers
before it has acted, so every step looks until the state is what was asked for, bounded, with an error that says what Monit
showed last. Looking again is all that Monit offers. All block.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from midstream.core.steps import MonitHold, MonitLook, MonitQuiet, MonitRelease, MonitRestart
from midstream.errors import AppError, HostError, MidstreamError, OperatorError
from midstream.linux import process, tree
from midstream.linux.process import ProcStat
from midstream.profiles.supervisors import (
    SERVICE_VARIABLE,
    Control,
    Declared,
    Watched,
    is_idle,
    read_control,
    read_status,
)

T = TypeVar("T")

_COMMAND_TIMEOUT_S = 20.0
_GRACE_S = 5.0  # for a daemon that is being restarted or reloaded just now
_LOOK_S = 0.1
_SAY_AGAIN_S = 2.0
_FAILED_S = 3.0  # a start that failed is believed when it has looked so for this long
_DEATHS = 3  # new processes that Monit started, one after the other, and that died: it would go on until the time is up
_SPARE_S = 15.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class NotReached(HostError):
    """The daemon could not be asked; it may be back in a moment."""


class Monit:
    """One Monit, named by its control file ("": where Monit itself looks for it)."""

    def __init__(self, control: str) -> None:
        self._program = shutil.which("monit") or shutil.which("monit", path="/usr/local/bin:/usr/bin:/usr/sbin") or ""
        self.control_file = control
        if not self._program:
            raise HostError(
                "Monit is not installed on this host", where="[[holds]]", remedy="install it, or take the hold out"
            )

    @property
    def where(self) -> str:
        return self.control_file or "Monit's default control file"

    def _run(self, *words: str) -> str:
        """Its output. Raises NotReached, OperatorError (control file), HostError."""
        argv = [self._program, *(("-c", self.control_file) if self.control_file else ()), *words]
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise NotReached(
                f"Monit did not answer `{' '.join(words)}` within {_COMMAND_TIMEOUT_S:g} s", where=self.where
            ) from None
        text = _COLOURS.sub("", (done.stdout + done.stderr).decode("utf-8", "replace"))
        if done.returncode != 0:
            raise self._error(words, text.strip())
        return text

    def _error(self, words: tuple[str, ...], text: str) -> MidstreamError:
        last = text.splitlines()[-1] if text else "no output"
        if "control file" in text.lower() or "cannot find the monit" in text.lower():
            return OperatorError(
                f"Monit refuses its control file: {last}",
                where=self.where,
                remedy='name the right one (`control = "…"` in [[holds]]), readable for its owner alone (chmod 600)',
            )
        if "not running" in text:
            return NotReached(
                "Monit is not running",
                where=self.where,
                detail=text,
                remedy="start it (systemctl start monit), or take the hold out of midstream.toml",
            )
        if "no service named" in text or "doesn't exist" in text or "not found" in text:
            return self.unknown(words[-1], text)
        if "progress" in text:
            return NotReached(f"Monit is busy: {last}", where=self.where)
        return NotReached(f"Monit could not do `{' '.join(words)}`: {last}", where=self.where, detail=text)

    def unknown(self, service: str, text: str = "") -> OperatorError:
        return OperatorError(
            f"Monit knows no service {service!r}",
            where=self.where,
            detail=text,
            remedy=f"it knows those of `monit {f'-c {self.control_file} ' if self.control_file else ''}summary`",
        )

    def ask(self, *words: str) -> None:
        """Says it; a daemon that is away or busy just now is asked again."""
        self._patiently(lambda: self._run(*words))

    def status(self) -> dict[str, Watched]:
        found = self._patiently(lambda: read_status(self._run("-B", "status")))
        if not found:
            raise HostError(
                "the words of Monit's status are not understood",
                where=self.where,
                remedy="which version is it? monit -V",
            )
        return found

    def control(self) -> Control:
        return read_control(self._run("-vt"))

    def _patiently(self, do: Callable[[], T]) -> T:
        deadline_s = time.monotonic() + _GRACE_S
        while True:
            try:
                return do()
            except NotReached:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_LOOK_S)

    # one service

    def known(self, service: str) -> Declared:
        """As declared. Raises OperatorError for one that Monit does not know."""
        if service not in self.status():
            raise self.unknown(service)
        return self.control().services.get(service, Declared(service))

    def seen(self, service: str) -> Watched:
        found = self.status().get(service)
        if found is None:
            raise self.unknown(service)
        return found

    def in_flight(self, service: str, own: int) -> list[ProcStat]:
        """Children of a Monit daemon that were started for the service and are not the service itself (`own`: its pid)."""
        everything = tree.snapshot()
        family = _ancestors(own, everything)
        found = []
        for stat in everything.values():
            parent = everything.get(stat.ppid)
            if parent is None or stat.pid in family or not _is_monit(parent.pid):
                continue
            environ = process.read_environ(stat.pid) or {}
            if environ.get(SERVICE_VARIABLE.encode()) == service.encode():
                found.append(stat)
        return found


def _is_monit(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip() == "monit"
    except OSError:
        return False


def _ancestors(pid: int, everything: dict[int, ProcStat]) -> set[int]:
    found: set[int] = set()
    while pid in everything and pid not in found:
        found.add(pid)
        pid = everything[pid].ppid
    return found


def pid_of(declared: Declared, seen: Watched) -> tuple[int, int]:
    """The service's process (pid, start ticks) as Monit knows it: what it shows, else its pid file, else the one process
    that it stamped. (0, 0): there is none."""
    for pid in (seen.pid, _pid_in(declared.pid_file)):
        stat = process.read_stat(pid) if pid else None
        if stat is not None and stat.is_live:
            return stat.pid, stat.start_ticks
    if declared.pid_file:
        return 0, 0
    stamped = {stat.pid: stat for stat in tree.snapshot().values() if _is_stamped(stat.pid, declared.name)}
    tops = [stat for stat in stamped.values() if stat.ppid not in stamped]
    return (tops[0].pid, tops[0].start_ticks) if len(tops) == 1 else (0, 0)


def _is_stamped(pid: int, service: str) -> bool:
    environ = process.read_environ(pid) or {}
    return environ.get(SERVICE_VARIABLE.encode()) == service.encode()


def _pid_in(path: str) -> int:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            word = file.read(32).split()
    except OSError:
        return 0
    return int(word[0]) if word and word[0].isdecimal() else 0


# -- the steps -------------------------------------------------------------------------------------------------------


def monit_look(request: MonitLook) -> dict[str, Any]:
    """As it is, changing nothing."""
    monit = Monit(request.control)
    declared = monit.known(request.service)
    return _facts(monit, declared)


def _facts(monit: Monit, declared: Declared) -> dict[str, Any]:
    everything = monit.status()
    seen = everything.get(declared.name)
    if seen is None:
        raise monit.unknown(declared.name)
    pid, start_ticks = pid_of(declared, seen)
    return {
        "watched": sorted(name for name, one in everything.items() if one.is_watched),
        "is_watched": seen.is_watched,
        "pending": seen.pending,
        "status": seen.status,
        "pid": pid,
        "start_ticks": start_ticks,
        "title": process.read_command(pid) if pid else "",
    }


def monit_hold(request: MonitHold) -> dict[str, Any]:
    """Unmonitored, and nothing that Monit began for it still under way."""
    monit = Monit(request.control)
    declared = monit.known(request.service)
    _hold(monit, declared, request.timeout_s)
    return _facts(monit, declared)


def _hold(monit: Monit, declared: Declared, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    said_s = 0.0
    calm = 0
    while True:
        seen = monit.seen(declared.name)
        pid, _ = pid_of(declared, seen)
        under_way = monit.in_flight(declared.name, pid)
        if not seen.is_watched and not seen.pending and not under_way:
            calm += 1
            if calm == 2:
                return
            continue
        calm = 0
        now_s = time.monotonic()
        if now_s > deadline_s:
            raise _not_applied(monit, declared.name, seen, under_way, timeout_s)
        if seen.is_watched and not seen.pending and now_s - said_s > _SAY_AGAIN_S:
            monit.ask("unmonitor", declared.name)
            said_s = now_s
            print(f"monit unmonitor {declared.name}", flush=True)
        time.sleep(_LOOK_S)


def _not_applied(monit: Monit, service: str, seen: Watched, under_way: list[ProcStat], timeout_s: float) -> HostError:
    words = "; ".join(f"pid {stat.pid}: {process.read_command(stat.pid)}" for stat in under_way)
    state = f"{seen.status} - {seen.pending} pending" if seen.pending else seen.status
    return HostError(
        f"Monit did not leave {service!r} alone within {timeout_s:g} s: {state}"
        + (f"; still under way: {words}" if words else ""),
        where=monit.where,
        remedy="look at Monit's log; a start program that hangs keeps Monit from doing anything else",
    )


def monit_release(request: MonitRelease) -> dict[str, Any]:
    """All of them watched again; those that Monit no longer knows are named, not missed."""
    monit = Monit(request.control)
    deadline_s = time.monotonic() + request.timeout_s
    said: dict[str, float] = {}
    while True:
        everything = monit.status()
        unknown = [name for name in request.services if name not in everything]
        missing = [name for name in request.services if name in everything and not _is_given_back(everything[name])]
        if not missing:
            return {"watched": sorted(set(request.services) - set(unknown)), "unknown": unknown}
        if time.monotonic() > deadline_s:
            shown = "; ".join(f"{name}: {everything[name].status}" for name in missing)
            raise HostError(
                f"Monit did not take {', '.join(missing)} back within {request.timeout_s:g} s: {shown}",
                where=monit.where,
                remedy=f"monit monitor {missing[0]}",
            )
        for name in missing:
            if not everything[name].pending and time.monotonic() - said.get(name, 0.0) > _SAY_AGAIN_S:
                monit.ask("monitor", name)
                said[name] = time.monotonic()
                print(f"monit monitor {name}", flush=True)
        time.sleep(_LOOK_S)


def _is_given_back(seen: Watched) -> bool:
    return seen.is_watched and seen.pending not in ("unmonitor", "stop")


def monit_quiet(request: MonitQuiet) -> dict[str, Any]:
    """The service's process is told to fetch no more jobs; waits until it says that it is idle, bounded. A title that does
    not tell how busy it is, is not waited for."""
    monit = Monit(request.control)
    declared = monit.known(request.service)
    pid, start_ticks = pid_of(declared, monit.seen(request.service))
    if not pid:
        return {"pid": 0, "idle": True, "title": ""}
    number = getattr(signal, f"SIG{request.signal.removeprefix('SIG')}")
    sent = process.send_signal(pid, start_ticks, number)
    deadline_s = time.monotonic() + request.timeout_s
    while sent and process.is_alive(pid, start_ticks):
        title = process.read_command(pid)
        idle = is_idle(title)
        if idle is None or idle or time.monotonic() > deadline_s:
            return {"pid": pid, "idle": bool(idle), "title": title}
        time.sleep(_LOOK_S)
    return {"pid": pid, "idle": True, "title": ""}


def monit_restart(request: MonitRestart) -> dict[str, Any]:
    """New processes through Monit's own programs: what is under way is waited for, monitoring is turned on (without it Monit
    restarts nothing), then `restart`. Answers once the new process has stayed up for `min_uptime_s` and the old one is
    gone; held again if `hold`. `start`: only what is down is started."""
    monit = Monit(request.control)
    declared = monit.known(request.service)
    timeout_s = request.timeout_s or declared.stop_timeout_s + declared.start_timeout_s + _SPARE_S
    _require_programs(monit, declared, request.start)
    _hold(monit, declared, timeout_s)
    old = pid_of(declared, monit.seen(request.service))
    if request.start and old[0]:
        return _facts(monit, declared)
    if not request.start:
        _watch(monit, [request.service, *request.along], timeout_s)
    verb = "start" if request.start else "restart"
    monit.ask(verb, request.service)
    print(f"monit {verb} {request.service}", flush=True)
    try:
        _until_up(monit, declared, old, timeout_s, request.min_uptime_s)
    except MidstreamError as error:
        if request.hold:
            _hold_after(error, monit, declared, timeout_s)
        raise
    if request.hold:  # both verbs turn monitoring on, also where they fail
        _hold(monit, declared, timeout_s)
    return _facts(monit, declared)


def _hold_after(error: MidstreamError, monit: Monit, declared: Declared, timeout_s: float) -> None:
    """Held again after a failure, which stays what is told: that Monit is busy with it still is a part of it."""
    try:
        _hold(monit, declared, timeout_s)
    except MidstreamError as more:
        error.detail = "\n".join(filter(None, (error.detail, more.what)))


def _require_programs(monit: Monit, declared: Declared, start_only: bool) -> None:
    if declared.has_start and (start_only or declared.has_stop):
        return
    missing = "start" if not declared.has_start else "stop"
    raise OperatorError(
        f"Monit's {declared.name!r} has no {missing} program, so it cannot be restarted through Monit",
        where=monit.where,
        remedy="give it one in the control file, or say `restart = false` in [[holds]]",
    )


def _watch(monit: Monit, services: Iterable[str], timeout_s: float) -> None:
    monit_release(MonitRelease(monit.control_file, tuple(services), timeout_s))


def _until_up(monit: Monit, declared: Declared, old: tuple[int, int], timeout_s: float, min_uptime_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    up: tuple[int, int] = (0, 0)
    up_since_s = failing_since_s = 0.0
    deaths = 0
    while True:
        seen = monit.seen(declared.name)
        now_s = time.monotonic()
        new = pid_of(declared, seen)
        fresh = new[0] != 0 and new != old
        if up[0] and up != new and not process.is_alive(*up):
            deaths, up = deaths + 1, (0, 0)
        if fresh and new != up:
            up, up_since_s = new, now_s
        old_is_gone = not old[0] or not process.is_alive(*old)
        if fresh and old_is_gone and not seen.pending and now_s - up_since_s >= min_uptime_s:
            return
        under_way = seen.pending or fresh or monit.in_flight(declared.name, new[0])
        failing_since_s = 0.0 if under_way else failing_since_s or now_s
        failed = failing_since_s and now_s - failing_since_s > _FAILED_S
        if now_s > deadline_s or failed or deaths >= _DEATHS:
            raise _did_not_come_up(monit, declared, seen, old, new)
        time.sleep(_LOOK_S)


def _did_not_come_up(
    monit: Monit, declared: Declared, seen: Watched, old: tuple[int, int], new: tuple[int, int]
) -> AppError:
    state = f"{seen.status} - {seen.pending} pending" if seen.pending else seen.status
    if old[0] and process.is_alive(*old):
        what = f"Monit did not stop {declared.name!r}: pid {old[0]} still runs ({process.read_command(old[0])})"
    elif new[0]:
        what = f"Monit's {declared.name!r} does not stay up (pid {new[0]})"
    else:
        what = f"Monit could not start {declared.name!r}"
    return AppError(
        f"{what}; Monit says: {state}",
        where=f"{monit.where}, {os.uname().nodename}",
        remedy="look at Monit's log and at the service's own",
    )
