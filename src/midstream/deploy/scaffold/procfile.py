"""Reads a Procfile: its processes take the place of what was guessed, `release` becomes the migration. Pure."""

from __future__ import annotations

import dataclasses
import re

from midstream.deploy.scaffold.draft import DRAIN, Draft, Line, ServiceDraft, Setting, any_answer
from midstream.deploy.scaffold.foreign import command as command_of
from midstream.deploy.scaffold.foreign import needs_shell, plain
from midstream.deploy.scaffold.tree import Tree

_PROCESS = re.compile(r"^([A-Za-z0-9_-]+):\s*(\S.*?)\s*$", re.MULTILINE)
_PORT = "8000"
# servers that take the listener; what tells them to bind one of their own goes
_BINDS = {
    "gunicorn": ("-b", "--bind"),
    "uvicorn": ("--host", "--port", "--uds"),
    "hypercorn": ("-b", "--bind"),
    "puma": ("-p", "--port", "-b", "--bind"),
    "unicorn": ("-p", "--port", "-l", "--listen", "-o", "--host"),
    "unicorn_rails": ("-p", "--port", "-l", "--listen", "-o", "--host"),
}
_GIVEN = {"uvicorn": "--fd {fd}", "hypercorn": "--bind fd://{fd}"}
_WORKERS = ("celery", "sidekiq", "rq", "rqworker", "resque", "good_job", "solid_queue", "dramatiq", "delayed")


def with_processes(tree: Tree, draft: Draft | None) -> Draft | None:
    """`draft` with the services of the Procfile, or a draft of those alone; as it is where there is no Procfile."""
    found = ((_own_name(name), plain(line)) for name, line in _PROCESS.findall(tree.text("Procfile")))
    processes = {name: line for name, line in found if line}
    if not processes:
        return draft
    release = processes.pop("release", "")
    before = draft or Draft("an app with a Procfile", ())
    health = next((one for service in before.services for one in service.settings if one.key == "health"), None)
    services = tuple(_service(name, line, before, health) for name, line in processes.items())
    migrate = Line(release, "`release` of the Procfile") if release and not needs_shell(release) else before.migrate
    notes = before.notes
    if release and needs_shell(release):
        notes = (
            *notes,
            f"`release` of the Procfile needs a shell: write [migrate] run = {release!r} with shell = true",
        )
    return dataclasses.replace(before, services=services or before.services, migrate=migrate, notes=notes)


def _own_name(name: str) -> str:
    return name.lower().lstrip("-_0123456789")[:48] or "process"


def _service(name: str, line: str, draft: Draft, health: Setting | None) -> ServiceDraft:
    if name != "web":
        return _worker(name, line)
    server = _server_of(line)
    if server:
        command, shell = command_of(_with_listener(line, server))
        listen = Setting("listen", f'"tcp://127.0.0.1:{_PORT}"', f"held open from release to release; {server} gets it")
        return ServiceDraft(name, command, (*shell, listen, health or any_answer()), "From the Procfile.")
    command, shell = command_of(line)
    port = Setting("env", f'{{ PORT = "{_PORT}" }}', "it binds the port by itself, so ...")
    replace = Setting("handover", '"replace"', "... the old one is stopped before the new one starts, which is noticed")
    return ServiceDraft(name, command, (*shell, port, replace), "From the Procfile.")


def _server_of(line: str) -> str:
    """The server in the first words of the command that takes a listener; "" when it is none."""
    words = line.split()[:5]
    return next((word for word in words if word in _BINDS), "")


def _with_listener(line: str, server: str) -> str:
    """The command without binds of its own, and with the listener where the server has to be told."""
    for option in _BINDS[server]:
        line = re.sub(rf"\s{option}(?:=|\s+|(?<=-[a-z]))(?:\"[^\"]*\"|'[^']*'|\S+)", "", line)
    given = _GIVEN.get(server, "")
    return line if "{fd}" in line or not given else f"{line} {given}"


def _worker(name: str, line: str) -> ServiceDraft:
    command, shell = command_of(line)
    beat = re.search(r"\bbeat\b|clock|schedul", f"{name} {line}") is not None
    if beat or not any(word in line for word in _WORKERS):
        one_at_a_time = Setting("handover", '"replace"', "the old one is stopped before the new one starts")
        return ServiceDraft(name, command, (*shell, one_at_a_time), "From the Procfile.")
    limit = Setting("drain_timeout", '"10m"', "longer than the longest job")
    return ServiceDraft(name, command, (*shell, DRAIN, limit), "From the Procfile.")
