"""The WSGI environ: what is the same for a listener, for a connection, and what each request adds.

What must not live here: sockets, parsing of bytes into fields (llhttp does that, `http1.py` calls it). Runs in the
workers. PEP 3333: texts are bytes decoded as latin-1; the path is percent-decoded before.
"""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import unquote_to_bytes

from midstream.serve.contract import Listener
from midstream.serve.limits import Refused
from midstream.serve.proxies import Proxies, scheme
from midstream.serve.settings import Settings

Environ = dict[str, Any]

DROPPED = ""  # the key of fields that no app may see
_KEYS_MAX = 512

# Fields that may stand in several lines are joined by a comma (RFC 9110 5.3), cookies as RFC 6265 says; the rest says
# something different to each reader when it is given twice.
_JOINED = {"HTTP_COOKIE": "; "}
_ONCE = frozenset({"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING", "HTTP_AUTHORIZATION"})


def template(listener: Listener, settings: Settings, file_wrapper: Any) -> Environ:
    """What all requests by one listener have in common."""
    name, port = _name_and_port(listener)
    tls = listener.tls
    return {
        "SCRIPT_NAME": settings.script_name.rstrip("/"),
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "SERVER_SOFTWARE": "midstream",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": settings.url_scheme or ("https" if tls else "http"),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": settings.threads > 1,
        "wsgi.multiprocess": settings.workers > 1,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": file_wrapper,
        "wsgi.input_terminated": True,
    }


def of_peer(common: Environ, address: Any) -> tuple[Environ, str]:
    """The environ of one connection, and the peer's address; "" for a unix socket. address: as accept(2) gives it."""
    environ = common.copy()
    if isinstance(address, tuple):
        environ["REMOTE_ADDR"] = peer = str(address[0])
        environ["REMOTE_PORT"] = str(address[1])
    else:
        environ["REMOTE_ADDR"] = peer = ""
    return environ, peer


def _name_and_port(listener: Listener) -> tuple[str, str]:
    try:
        address = listener.sock.getsockname()
    except OSError:
        return "localhost", ""
    if isinstance(address, tuple):
        return str(address[0]), str(address[1])
    return "localhost", ""


class Keys(dict[bytes, str]):
    """From a field's name as it came to its key in the environ. Remembers the spellings it has seen, a bounded number."""

    def __missing__(self, name: bytes) -> str:
        key = _key(name)
        if len(self) < _KEYS_MAX and len(name) <= 64:
            self[name] = key
        return key


def _key(name: bytes) -> str:
    """An underscore in a field's name would look like the hyphen of another field: "X_Forwarded_For" (CVE-2015-0219)."""
    if b"_" in name:
        return DROPPED
    upper = name.upper().replace(b"-", b"_").decode("latin-1")
    if upper in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        return upper
    if upper == "PROXY":  # HTTP_PROXY is read by libraries as the proxy to use (CVE-2016-5385)
        return DROPPED
    return "HTTP_" + upper


def join(environ: Environ, key: str, value: str) -> None:
    """One more line of a field that is there already. Raises Refused."""
    if key in _ONCE:
        raise Refused(400, f"{key.removeprefix('HTTP_').replace('_', '-').title()} is given twice")
    environ[key] = environ[key] + _JOINED.get(key, ",") + value


def add_target(environ: Environ, method: str, target: str) -> None:
    """PATH_INFO and its friends, from a request target that llhttp has found well formed. Raises Refused."""
    environ["RAW_URI"] = environ["REQUEST_URI"] = target
    if "#" in target:
        raise Refused(400, "a request target has no fragment")
    path, _, query = target.partition("?")
    environ["QUERY_STRING"] = query
    if not path.startswith("/"):
        path = _other_form(environ, method, path)
    if "%" in path:
        path = unquote_to_bytes(path).decode("latin-1")
    script = environ["SCRIPT_NAME"]
    if script and (path == script or path.startswith(script + "/")):
        path = path[len(script) :]
    environ["PATH_INFO"] = path


def _other_form(environ: Environ, method: str, path: str) -> str:
    """The path of `*` and of a whole URL, whose host counts and not the Host field's (RFC 9112 3.2.2)."""
    if path == "*":
        if method != "OPTIONS":
            raise Refused(400, "the request target * is for OPTIONS")
        return "*"
    word, mark, rest = path.partition("://")
    if not mark or word.lower() not in ("http", "https"):
        raise Refused(400, "the request target is neither a path nor an http URL")
    authority, slash, path = rest.partition("/")
    if not authority:
        raise Refused(400, "the URL in the request line has no host")
    environ["HTTP_HOST"] = authority
    return slash + path or "/"


def believe(environ: Environ, proxies: Proxies, settings: Settings) -> None:
    """What a trusted peer says of the client it speaks for."""
    forwarded_for = environ.get("HTTP_X_FORWARDED_FOR")
    if forwarded_for is not None:
        client = proxies.client(forwarded_for)
        if client:
            environ["REMOTE_ADDR"] = client
            environ["REMOTE_PORT"] = "0"  # nobody says it
    proto = environ.get("HTTP_X_FORWARDED_PROTO")
    if proto is not None and not settings.url_scheme:
        said = scheme(proto)
        if said:
            environ["wsgi.url_scheme"] = said
