"""What is known about other people's supervisors, as data: their program, their words, how their processes are told.

Pure values and parsers of text; who asks them is `steps/monit.py`, who decides is `agent/external.py`. Facts about Monit
(5.20 to 5.35) that the driver relies on, each tried:

- a command is taken at once and done later, by the daemon's one main thread; until then `status` shows it as
  `OK - unmonitor pending`. A start that is under way when `unmonitor` is said is completed first;
- `stop` and `restart` of a service that is not monitored do nothing but change its monitoring;
- `unmonitor` reaches what depends on the service, `monitor` what it depends on: not the same services;
- what Monit starts has MONIT_SERVICE in its environment.
"""

from __future__ import annotations

import re
from dataclasses import field

from midstream.core.values import dataclass

MONIT = "monit"
SUPPORTED = (MONIT,)
SERVICE_VARIABLE = "MONIT_SERVICE"

_ENTRY = re.compile(r"^(?P<kind>[A-Z][A-Za-z ]*?) '(?P<name>.*)'\s*$")
_FIELD = re.compile(r"^  (?P<key>[a-z][a-z0-9 ]*?)\s{2,}(?P<value>.*?)\s*$")
_PENDING = re.compile(r" - (?P<action>\w+) pending$")
_CONFIG_ENTRY = re.compile(r"^(?P<kind>[A-Z][A-Za-z ]*?) Name\s+= (?P<name>.*?)\s*$")
_CONFIG_FIELD = re.compile(r"^ (?P<key>[A-Z][A-Za-z ]*?)\s+= (?P<value>.*?)\s*$")
_TIMEOUT = re.compile(r" timeout (?P<number>[0-9.]+) (?P<unit>ms|s|m|h)\b")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

# Sidekiq's process title: `sidekiq 6.4.1 shop [2 of 10 busy] stopping`; the last word appears once it is quiet.
_BUSY_TITLE = re.compile(r"\[(?P<busy>\d+) of \d+ busy\](?P<quiet> stopping)?")


@dataclass(frozen=True, slots=True)
class Watched:
    """One service as `monit status` shows it. pending: the action that was asked for and is not done ("" for none).
    pid: 0 where Monit shows none, which it does for all that it does not monitor."""

    name: str
    kind: str
    status: str
    is_watched: bool
    pending: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Declared:
    """One service as the control file declares it. pid_file: "" for services that are matched by command line."""

    name: str
    pid_file: str = ""
    start_timeout_s: float = 30.0
    stop_timeout_s: float = 30.0
    has_start: bool = False
    has_stop: bool = False
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Control:
    """What `monit -vt` says of its control file."""

    daemon_pid_file: str = ""
    services: dict[str, Declared] = field(default_factory=dict)


def read_status(text: str) -> dict[str, Watched]:
    """The answer of `monit -B status`, by service."""
    found: dict[str, Watched] = {}
    name, kind, fields = "", "", dict[str, str]()

    def close() -> None:
        if name:
            found[name] = _watched(name, kind, fields)

    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            close()
            name, kind, fields = entry["name"], entry["kind"], {}
        elif (item := _FIELD.match(line)) and item["key"] not in fields:
            fields[item["key"]] = item["value"]
    close()
    return found


def _watched(name: str, kind: str, fields: dict[str, str]) -> Watched:
    status = fields.get("status", "")
    pending = _PENDING.search(status)
    pid = fields.get("pid", "")
    return Watched(
        name,
        kind,
        _PENDING.sub("", status),
        is_watched=fields.get("monitoring status", "Not monitored") != "Not monitored",
        pending=pending["action"] if pending else "",
        pid=int(pid) if pid.isdecimal() else 0,
    )


def read_control(text: str) -> Control:
    """The output of `monit -vt`. What it does not say keeps its default: the output is meant for people."""
    daemon, name, fields = "", "", dict[str, list[str]]()
    found: dict[str, Declared] = {}

    def close() -> None:
        if name:
            found[name] = _declared(name, fields)

    for line in text.splitlines():
        if entry := _CONFIG_ENTRY.match(line):
            close()
            name, fields = entry["name"], {}
        elif item := _CONFIG_FIELD.match(line):
            if not name and item["key"] == "Pid file":
                daemon = item["value"]
            fields.setdefault(item["key"], []).append(item["value"])
    close()
    return Control(daemon, found)


def _declared(name: str, fields: dict[str, list[str]]) -> Declared:
    start, stop = fields.get("Start program", [""])[0], fields.get("Stop program", [""])[0]
    return Declared(
        name,
        pid_file=fields.get("Pid file", [""])[0],
        start_timeout_s=_timeout_s(start),
        stop_timeout_s=_timeout_s(stop),
        has_start=bool(start),
        has_stop=bool(stop),
        depends_on=tuple(fields.get("Depends on Service", ())),
    )


def _timeout_s(program: str) -> float:
    found = list(_TIMEOUT.finditer(program))  # the last one counts: the command itself may speak of a timeout
    return float(found[-1]["number"]) * _UNITS_S[found[-1]["unit"]] if found else 30.0


def is_idle(title: str) -> bool | None:
    """Whether a worker that was told to be quiet has finished its jobs, by its process title. None: it does not say."""
    found = _BUSY_TITLE.search(title)
    if found is None:
        return None
    return bool(found["quiet"]) and found["busy"] == "0"
