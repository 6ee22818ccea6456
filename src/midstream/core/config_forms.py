"""Readers of values that have a form of their own: paths, commands, addresses, health checks, limits.

Pure. As `core/config_values.py`, which has the plain values, names and collections that these are made of.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from typing import Any

from midstream.core import durations
from midstream.core.config_mistakes import Misfit, nearest, shown
from midstream.core.config_values import CONTROL, Reader, choice, list_of, one_line, plain_text, refuse, table_of, text
from midstream.core.config_values import line as line_reader

RLIMITS = frozenset(
    [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z", re.ASCII)
_HOST_HEADER = re.compile(r"[A-Za-z0-9._:\[\]-]+\Z", re.ASCII)
_PORT_ONLY = re.compile(r"(?:[^/:\s]*:)?[0-9]+\Z", re.ASCII)

# paths


def _inside(value: Any) -> str:
    """A path below some folder, in its shortest form: no leading slash, no `..`, no `.` parts."""
    parts = [part for part in one_line(value).split("/") if part not in ("", ".")]
    if not parts or value.startswith(("/", "~")) or ".." in parts:
        raise refuse('a path inside the release, without a leading "/" and without ".."', value)
    return "/".join(parts)


def _below(value: Any) -> str:
    """As `_inside`, but "" and "." are the folder itself."""
    return "" if value in ("", ".", "./") else _inside(value)


def _deploy_to(value: Any) -> str:
    path = one_line(value).rstrip("/")
    parts = path.split("/")
    if not (path.startswith(("/", "~/"))) or len(path) < 2 or "//" in path:
        raise refuse('an absolute path such as "/srv/shop"', value)
    if any(part in (".", "..") for part in parts):
        raise refuse('an absolute path without "." and ".." parts', value)
    return path


def _search_entry(value: Any) -> str:
    entry = one_line(value)
    if not entry or ":" in entry or ".." in entry.split("/"):
        raise refuse("one folder, absolute or inside the release", value)
    return entry.rstrip("/") or "/"


def _log_path(value: Any) -> str:
    path = one_line(value)
    if not path.startswith(("/", "{shared}/", "{deploy_to}/")) or ".." in path.split("/"):
        raise refuse('an absolute path or one that begins with "{shared}/"', value)
    return path


inside = Reader(_inside, "a path inside the release")
below = Reader(_below, "a path inside the release")
deploy_to = Reader(_deploy_to, "an absolute path")
search_entry = Reader(_search_entry, "a folder, absolute or inside the release")
log_path = Reader(_log_path, "an absolute path or one that begins with `{shared}/`")


# commands


def split_command(value: str) -> tuple[str, ...]:
    """argv of one command line, by the shell's rules of quoting; no shell runs."""
    try:
        words = tuple(shlex.split(value))
    except ValueError as error:
        raise Misfit(f"cannot be split into words ({error}): {shown(value)}") from None
    if not words:
        raise Misfit("expected a command, got an empty one")
    return words


def _command(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return split_command(plain_text(value))
    if not isinstance(value, list) or not value:
        raise refuse('a command such as "bin/server --port 80" or ["bin/server", "--port", "80"]', value)
    words = list_of(text)(value)
    if not words[0]:
        raise Misfit("expected the program to run, got an empty string", (0,))
    return tuple(words)


command = Reader(
    _command, "a command: a string (split by the shell's rules, no shell runs) or a list of words", "a command"
)


# addresses


def _listen_address(value: Any) -> str:
    if not isinstance(value, str):
        raise refuse('an address such as "tcp://127.0.0.1:8000" or "unix:///run/shop/web.sock"', value)
    scheme, found, rest = value.partition("://")
    if found and scheme == "tcp":
        return _tcp(value, rest)
    if found and scheme == "unix":
        return _unix(value, rest)
    near = ""
    if _PORT_ONLY.match(value):
        host, _, port = value.rpartition(":")
        near = f'; write "tcp://{"127.0.0.1" if host in ("", "tcp") else host}:{port}"'
    elif value.startswith(("/", "unix:/")):
        near = f'; write "unix://{value.removeprefix("unix:")}"'
    raise Misfit(f'expected "tcp://HOST:PORT" or "unix:///PATH", got {shown(value)}{near}')


def _tcp(value: str, rest: str) -> str:
    host, _, port = rest.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
        raise Misfit(f"expected a port from 1 to 65535 (0: the kernel chooses one) in {shown(value)}")
    host = "127.0.0.1" if host == "localhost" else host
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise Misfit(f"expected an IP address or localhost as host in {shown(value)}") from None
    if (ip.version == 6) != bracketed:
        raise Misfit(f"an IPv6 address stands in brackets, an IPv4 address does not: {shown(value)}")
    return f"tcp://{f'[{ip}]' if bracketed else ip}:{int(port)}"


def _unix(value: str, path: str) -> str:
    if not path.startswith(("/", "{shared}/", "{deploy_to}/")) or path.endswith("/") or CONTROL.search(path):
        raise Misfit(f'expected an absolute path, as in "unix:///run/shop/web.sock", got {shown(value)}')
    if ".." in path.split("/"):
        raise Misfit(f'expected a path without "..", got {shown(value)}')
    return f"unix://{path}"


listen_address = Reader(_listen_address, '"tcp://HOST:PORT", "tcp://[V6]:PORT" or "unix:///PATH"')


def _http_path(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"/[!-~]*", value, re.ASCII):
        raise refuse('a path such as "/up"', value)
    return value


def _host_header(value: Any) -> str:
    if not isinstance(value, str) or not _HOST_HEADER.match(value):
        raise refuse('a host such as "shop.example.com"', value)
    return value


http_path = Reader(_http_path, 'a path such as "/up"')
host_header = Reader(_host_header, 'a host such as "shop.example.com"')
http_method = choice(("GET", "HEAD", "OPTIONS", "POST"))


def _header_name(value: Any) -> str:
    if not isinstance(value, str) or not _HEADER.match(value):
        raise refuse("the name of a header", value)
    return value


headers = table_of(Reader(_header_name, "the name of a header"), line_reader)


def _rlimit(value: Any) -> tuple[int, int]:
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2:
        raise refuse("one limit or [soft, hard]", value)
    soft, hard = (_rlimit_value(one) for one in pair)
    if hard != -1 and (soft == -1 or soft > hard):
        raise Misfit(f"the soft limit is above the hard one in {pair}")
    return soft, hard


def _rlimit_value(value: Any) -> int:
    if value == "unlimited":
        return -1
    try:
        return durations.parse_size(value)
    except ValueError:
        raise refuse('a whole number, a size or "unlimited"', value) from None


def _rlimit_name(value: Any) -> str:
    if value not in RLIMITS:
        near = nearest(str(value), RLIMITS)
        hint = f'did you mean "{near}"?' if near else f"known are {', '.join(sorted(RLIMITS))}"
        raise Misfit(f"no such limit; {hint}")
    return str(value)


rlimits = table_of(
    Reader(_rlimit_name, "the name of a limit"),
    Reader(_rlimit, 'a number, a size, "unlimited", or [soft, hard]'),
)
