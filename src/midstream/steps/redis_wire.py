"""A Redis client for asking a few questions: RESP 2 over TCP or a unix socket, with AUTH and SELECT.

What must not live here: what the answers mean (`workers.py`). Blocking, one connection, a time-out for each answer. No TLS,
no cluster, no sentinel: such a URL is refused. redis-py would be a hundred times this, on every host, for HGETALL.
Used by the step program `workers`, under the app's uid.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

from midstream.errors import HostError, OperatorError

TIMEOUT_S = 3.0
_ANSWER_MAX_BYTES = 16 * 1024 * 1024
_NESTED_MAX = 8

Answer = bytes | int | list["Answer"] | None


class RedisRefused(Exception):
    """Redis answered with an error."""


@dataclass(frozen=True, slots=True)
class Where:
    """A Redis. path: of its unix socket, else host and port. prefix: of every key (redis-namespace)."""

    host: str = "localhost"
    port: int = 6379
    path: str = ""
    database: int = 0
    user: str = ""
    password: str = ""
    prefix: str = ""

    def __str__(self) -> str:
        return f"redis at {self.path or f'{self.host}:{self.port}'}/{self.database}"


def parse_url(url: str) -> Where:
    """`redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `unix:///PATH[?db=N]`; `namespace=` is a prefix of all keys. Raises
    OperatorError, without the URL in it: it may hold a password."""
    try:
        parts = urlsplit(url)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        prefix = f"{query['namespace']}:" if query.get("namespace") else ""
        if parts.scheme == "unix":
            database = int(query.get("db", "0"))
            return Where(path=unquote(parts.path), database=database, user=user, password=password, prefix=prefix)
        if parts.scheme == "redis":
            database = int(query.get("db") or parts.path.strip("/") or 0)
            host = parts.hostname or "localhost"
            return Where(host, parts.port or 6379, "", database, user, password, prefix)
    except ValueError:
        raise OperatorError("the Redis URL cannot be read", where="redis", remedy="redis://HOST:PORT/DB") from None
    raise OperatorError(
        f"a Redis URL of the kind {parts.scheme}:// cannot be asked",
        where="redis",
        remedy='name a plain one for the agent in `redis`, or do without proof: `handover = "overlap"`, `ready = "alive"`',
    )


class Redis:
    """One connection. Raises HostError when it cannot be had or breaks, RedisRefused for an error in an answer."""

    def __init__(self, where: Where) -> None:
        self._where = where
        try:
            if where.path:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(TIMEOUT_S)
                self._socket.connect(where.path)
            else:
                self._socket = socket.create_connection((where.host, where.port), TIMEOUT_S)
        except OSError as error:
            raise self._lost(error) from None
        self._file = self._socket.makefile("rb")
        try:
            if where.password:
                self.ask("AUTH", *([where.user] if where.user else []), where.password)
            if where.database:
                self.ask("SELECT", str(where.database))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, *words: str) -> Answer:
        """One command, one answer."""
        parts = [word.encode() for word in words]
        body = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        try:
            self._socket.sendall(b"*%d\r\n%s" % (len(parts), body))
            return self._answer(_NESTED_MAX)
        except (OSError, ValueError) as error:
            raise self._lost(error) from None

    def members(self, key: str) -> list[str]:
        answer = self.ask("SMEMBERS", self._where.prefix + key)
        return sorted(_text(item) for item in answer) if isinstance(answer, list) else []

    def hash(self, key: str) -> dict[str, str]:
        answer = self.ask("HGETALL", self._where.prefix + key)
        items = [_text(item) for item in answer] if isinstance(answer, list) else []
        return dict(zip(items[::2], items[1::2], strict=False))

    def fields(self, key: str, *names: str) -> list[str]:
        """The named fields of a hash, "" for those that it has not."""
        answer = self.ask("HMGET", self._where.prefix + key, *names)
        return [_text(item) for item in answer] if isinstance(answer, list) else [""] * len(names)

    def _answer(self, depth: int) -> Answer:
        line = self._file.readline(65536)
        if not line.endswith(b"\r\n"):
            raise OSError("the connection was closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisRefused(rest.decode("utf-8", "replace")[:200])
        if kind == b":":
            return int(rest)
        size = int(rest)
        if kind not in (b"$", b"*") or size > _ANSWER_MAX_BYTES or depth == 0:
            raise ValueError("it does not speak Redis's protocol")
        if size < 0:
            return None
        if kind == b"*":
            return [self._answer(depth - 1) for _ in range(size)]
        data = self._file.read(size + 2)
        if len(data) != size + 2:
            raise OSError("the connection was closed")
        return data[:-2]

    def _lost(self, error: Exception) -> HostError:
        text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        return HostError(f"{self._where}: {text or type(error).__name__}", remedy="see that Redis runs, and `redis`")


def _text(item: Answer) -> str:
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else ""
