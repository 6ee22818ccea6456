"""What several settings must be together, and values whose form is a language of its own (formats, networks, headers).

Pure, standard library only. What one value must be is in `settings.py` and `setting_values.py`; what this machine must
have for it is in `check.py`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from midstream.serve.access_log import unknown_atoms
from midstream.serve.settings import Settings

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z", re.ASCII)
_APP = re.compile(r"[A-Za-z_][\w.]*(?::[A-Za-z_][\w.]*(?:\(.*\))?)?\Z", re.ASCII)
_HOST = re.compile(r"\.?[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]+)*\.?\Z|\[[0-9A-Fa-f:.]+\]\Z", re.ASCII)


def mistakes(settings: Settings) -> Iterator[tuple[str, str]]:
    """(name of a setting, what is wrong with it)."""
    yield from _app(settings)
    yield from _addresses(settings)
    yield from _headers(settings)
    yield from _tls(settings)
    yield from _log(settings)
    for item in settings.env:
        if not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", item, re.ASCII):
            yield "env", f"expected NAME=VALUE, not {item!r}"


def notes(settings: Settings) -> Iterator[str]:
    """What is allowed and probably not meant."""
    if settings.max_requests_jitter and not settings.max_requests:
        yield "--max-requests-jitter does nothing without --max-requests"
    if settings.linger_s == 0 and not settings.reload:
        yield "--linger 0: at an upgrade idle connections are closed at once, and a request on its way is lost"
    if 0 < settings.keep_alive_s <= 60:
        yield "--keep-alive of a minute or less: nginx keeps connections for 60 s and may use one that just closed"
    if settings.access_log:
        for name in unknown_atoms(settings.access_log_format):
            yield f"--access-log-format: %({name})s is not known here and always -"
    if "*" in settings.forwarded_allow_ips and any(bind.startswith("tcp://0.0.0.0:") for bind in settings.bind):
        yield "--forwarded-allow-ips '*' on a public address: anybody may claim any address and https"


def _app(settings: Settings) -> Iterator[tuple[str, str]]:
    if not settings.app:
        yield "app", "say which app: midstream serve MODULE:NAME"
    elif not _APP.match(settings.app):
        yield "app", f"expected MODULE:NAME or MODULE:FACTORY(), not {settings.app!r}"
    if settings.health_path and not settings.health_path.startswith("/"):
        yield "health_path", f"expected a path such as /up, not {settings.health_path!r}"
    if not all(char.isprintable() and char != " " for char in settings.health_path + settings.health_host):
        yield "health_path", "blanks and control characters have no place in it or in the host"
    if settings.script_name and (not settings.script_name.startswith("/") or settings.script_name.endswith("/")):
        yield "script_name", f"expected a path such as /shop, not {settings.script_name!r}"


def _addresses(settings: Settings) -> Iterator[tuple[str, str]]:
    if not settings.bind:
        yield "bind", "needs at least one address"
    for address in {item for item in settings.bind if settings.bind.count(item) > 1 and not item.endswith(":0")}:
        yield "bind", f"{address} is named twice"
    if settings.metrics and settings.metrics in settings.bind:
        yield "metrics", f"{settings.metrics} is a --bind of the app"
    for item in settings.forwarded_allow_ips:
        if item in ("*", "unix"):
            continue
        try:
            ipaddress.ip_network(item, strict=False)
        except ValueError:
            yield "forwarded_allow_ips", f"expected addresses, networks such as 10.0.0.0/8, unix or *, not {item!r}"
    for item in settings.hosts:
        if item != "*" and not _HOST.match(item):
            yield "hosts", f"{item!r} is no name of a host (no port, no scheme)"


def _headers(settings: Settings) -> Iterator[tuple[str, str]]:
    if settings.release_header and not _TOKEN.match(settings.release_header):
        yield "release_header", f"{settings.release_header!r} is no name of a header"
    if not settings.server_header.isprintable() or not settings.server_header.isascii():
        yield "server_header", "only printable ASCII"
    for item in settings.health_headers:
        name, colon, value = item.partition(":")
        if not colon or not _TOKEN.match(name) or not value.isprintable():
            yield "health_headers", f'expected "NAME: VALUE", not {item!r}'


def _tls(settings: Settings) -> Iterator[tuple[str, str]]:
    for name in ("keyfile", "ca_certs"):
        if getattr(settings, name) and not settings.certfile:
            yield name, "needs --certfile beside it"


def _log(settings: Settings) -> Iterator[tuple[str, str]]:
    try:
        unknown_atoms(settings.access_log_format) if "%" in settings.access_log_format else ()
    except ValueError as error:
        yield "access_log_format", str(error)
    if "%" not in settings.access_log_format and settings.access_log_format not in ("combined", "apache", "json"):
        yield "access_log_format", f"expected combined, apache, json or atoms, not {settings.access_log_format!r}"
