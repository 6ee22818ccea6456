"""What is proposed: the parts of a `midstream.toml`, each with the comment that explains it. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Line:
    """A command line and why it is there."""

    command: str
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """One `key = value` of a table. value: as TOML writes it. off: written as a comment, for the reader to turn on."""

    key: str
    value: str
    comment: str = ""
    off: bool = False


@dataclass(frozen=True, slots=True)
class ServiceDraft:
    """A `[services.NAME]`. command: as it is written, a string."""

    name: str
    command: str
    settings: tuple[Setting, ...] = ()
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """A whole proposal before it is written. what: "a Django project". variables, migrate, …: as in the file. notes:
    what the operator has to know or do, said by the command and written into the file."""

    what: str
    services: tuple[ServiceDraft, ...]
    path: tuple[str, ...] = ()
    variables: tuple[Setting, ...] = ()
    build: tuple[Line, ...] = ()
    build_env: tuple[tuple[str, str], ...] = ()
    migrate: Line | None = None
    console: str = ""
    linked_dirs: tuple[str, ...] = ()
    linked_files: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """What `midstream init` says: the text of the file, and notes for whoever ran it."""

    text: str
    notes: tuple[str, ...] = field(default=())


DRAIN = Setting("handover", '"drain"', "the old one fetches no more, the new one begins, the old one finishes its jobs")


def any_answer(host: str = "", https: bool = False, also: tuple[int, ...] = ()) -> Setting:
    """A check of `/` that any answer passes but an error of the server: what can be asked of an unknown app."""
    parts = _request("/", host, https)
    parts.append(f"status = {sorted({200, 204, 301, 302, 303, 307, 308, 401, 403, 404, *also})}")
    comment = "any answer that is no error of the server; better name a page of your own that returns 200"
    return Setting("health", f"{{ {', '.join(parts)} }}", comment)


def answer_of(path: str, host: str = "", https: bool = False) -> Setting:
    """A check of a page that is there to be checked."""
    parts = _request(path, host, https)
    return Setting("health", f"{{ {', '.join(parts)} }}", "answered by the new release before the old one is let go")


def _request(path: str, host: str, https: bool) -> list[str]:
    parts = [f'http = "{path}"']
    if host:
        parts.append(f'host = "{host}"')
    if https:
        parts.append('headers = { X-Forwarded-Proto = "https" }')
    return parts
