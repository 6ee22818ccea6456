"""`midstream doctor`: examines this machine, the agent and the project, and says what to do about what it finds."""

from __future__ import annotations

import os
import shutil
import socket as sockets
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import click

import midstream
from midstream.cli.aim import find_config
from midstream.cli.manpage import command, config_option, json_option, socket_option
from midstream.cli.output import echo_json, size, table
from midstream.cli.places import places, socket_to_ask
from midstream.errors import EXIT_FAILED, EXIT_OK, MidstreamError

SOCKET_PATH_MAX_BYTES = 107
LOW_DISK_BYTES = 200 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """level: ok, note, bad. `remedy` for all but ok."""

    level: str
    what: str
    remedy: str = ""


@command(
    "doctor",
    exits=(0, 1, 70),
    examples="""
    midstream doctor
    midstream doctor --json | jq 'select(.level == "bad")'
    """,
)
@config_option
@socket_option
@json_option
def doctor(config_path: str, socket: str, as_json: bool) -> int:
    """Examine this machine, the agent and the project. Exits with 1 when something is bad."""
    found = [*_machine(), *_places(), *_agent(socket), *_project(config_path)]
    if as_json:
        for item in found:
            echo_json({"level": item.level, "what": item.what, "remedy": item.remedy})
    else:
        colours = {"ok": "green", "note": "yellow", "bad": "red"}
        rows = [(click.style(item.level, fg=colours[item.level]), item.what, item.remedy) for item in found]
        click.echo(table(("", "WHAT", "DO"), rows))
    return EXIT_FAILED if any(item.level == "bad" for item in found) else EXIT_OK


def _machine() -> Iterator[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("ok", f"midstream {midstream.__version__}, Python {version}, Linux {os.uname().release}")
    for program, level, why in (("git", "bad", "deploys need it"), ("ssh", "note", "for repositories behind ssh")):
        path = shutil.which(program)
        if path:
            yield Finding("ok", f"{program}: {path}")
        else:
            yield Finding(level, f"{program} is not installed", f"install it: {why}")
    yield _has_pidfd()
    if os.geteuid() != 0:
        yield _lingering()


def _has_pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Finding("bad", f"pidfd_open does not work: {error.strerror}", "Linux 5.4 or newer is needed")
    return Finding("ok", "the kernel has pidfds")


def _lingering() -> Finding:
    """Without lingering systemd kills a user's processes when they log out."""
    if not os.path.isdir("/run/systemd/system"):
        return Finding("ok", "no systemd: nothing ends your processes when you log out")
    import getpass

    if os.path.exists(f"/var/lib/systemd/linger/{getpass.getuser()}"):
        return Finding("ok", "lingering is enabled: your agent outlives your login")
    return Finding("bad", "lingering is off: your agent would end when you log out", "loginctl enable-linger")


def _places() -> Iterator[Finding]:
    here = places()
    length = len(os.fsencode(here.socket))
    if length > SOCKET_PATH_MAX_BYTES:
        yield Finding(
            "bad", f"the socket path has {length} bytes, the kernel takes {SOCKET_PATH_MAX_BYTES}", "--socket"
        )
    folder = here.state
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    if not os.access(folder, os.W_OK):
        yield Finding("bad", f"{folder} cannot be written", "run as root, or set XDG_STATE_HOME")
    free = shutil.disk_usage(folder).free
    level = "bad" if free < LOW_DISK_BYTES else "ok"
    yield Finding(level, f"{here.state}: {size(free)} free", "" if level == "ok" else "make room on that disk")


def _agent(given: str) -> Iterator[Finding]:
    from midstream.deploy.sync_client import connect

    path = socket_to_ask(given)
    try:
        with connect(path) as client:
            hello, apps = client.hello, client.call("status")["apps"]
    except MidstreamError as error:
        yield Finding("note", f"{path}: {error.what}", error.remedy)
        return
    yield Finding("ok", f"agent {hello.get('version')} (pid {hello.get('pid')}) answers on {path}")
    if hello.get("version") != midstream.__version__:
        yield Finding("note", f"this command is {midstream.__version__}", "midstream agent upgrade")
    keeper = hello.get("keeper", {})
    note = keeper.get("note") or ""
    level = "note" if note else "ok"
    remedy = "processes are then found by ancestry instead" if note else ""
    yield Finding(level, f"keeper {keeper.get('version')} (pid {keeper.get('pid')}) {note}".rstrip(), remedy)
    from midstream.cli.status_view import problems

    for text in problems({"apps": apps}):
        yield Finding("bad", text, "midstream status; midstream why SERVICE")


def _project(config_path: str) -> Iterator[Finding]:
    try:
        path = find_config(config_path)
        if path is None:
            yield Finding("note", "no midstream.toml here", "midstream init writes one")
            return
        from midstream.cli.project import open_file, profile_names

        config = open_file(path).load(profiles=profile_names())
    except MidstreamError as error:
        yield Finding("bad", f"{error.what}: {error.detail}".rstrip(": ").replace("\n", "; "), error.remedy)
        return
    yield Finding("ok", f"{path}: stages {', '.join(config.stages)}")
    for stage in config.stages.values():
        for warning in stage.warnings:
            yield Finding("note", f"stage {stage.name}: {warning}", "see docs/configuration.md")
        for service in stage.app.services.values():
            yield from _ports(stage.name, service.name, [listen.address for listen in service.listen])


def _ports(stage: str, service: str, addresses: list[str]) -> Iterator[Finding]:
    """Names in listen addresses that do not resolve here would fail only in a deploy."""
    for address in addresses:
        host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
        if not address.startswith("tcp://") or not host:
            continue
        try:
            sockets.getaddrinfo(host, None)
        except OSError as error:
            yield Finding("note", f"stage {stage}, {service}: {address}: {error.strerror}", "correct `listen`")
