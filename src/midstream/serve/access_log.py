"""One line for each request: combined, JSON, or gunicorn's atoms.

Nothing that a client sends can begin a new line or end a quoted field: control characters, quotes, backslashes and
what is not ASCII are written as \\xHH, as Apache does. Lines are gathered and written once a second by `flush`, or when
there are many. What must not live here: files (`log_output.py`). Runs in the workers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii

from midstream.serve.contract import Answered, Identity
from midstream.serve.log_output import LineOutput
from midstream.serve.say import Voice
from midstream.serve.settings import Settings

_VOICE = Voice()
LINES_MAX = 512  # in one batch

_Line = Callable[[Answered], str]

_ATOM = re.compile(r"%\(([^)]*)\)[-#0 +]*[0-9]*(?:\.[0-9]+)?[sdifr]|%%|(%)")
_UNSAFE = re.compile(r"[^ -!#-\[\]-~]")


class RequestLog:
    """A contract.AccessLog. Raises OSError when the file cannot be opened, ValueError for an unknown format."""

    __slots__ = ("_line", "_lines", "_output", "_said", "enabled")

    def __init__(self, target: str, wanted: str, identity: Identity) -> None:
        self.enabled = True
        self._line = line_of(wanted, identity)
        self._lines: list[str] = []
        self._output = LineOutput(target)
        self._said = (0, "")  # lines lost and the reason, as the error log knows them

    def write(self, request: Answered) -> None:
        """Takes one line; flushes when there are many."""
        lines = self._lines
        lines.append(self._line(request))
        if len(lines) >= LINES_MAX:
            self.flush()

    def flush(self) -> None:
        """Hands what was gathered to the file; to be called about once a second. Never raises."""
        if self._lines:
            batch = "".join(self._lines).encode("ascii", "backslashreplace")
            self._lines.clear()
            self._output.write(batch)
        elif self._output.trouble:
            self._output.write(b"")
        if (self.dropped, self.trouble) != self._said:
            self._tell()

    def _tell(self) -> None:
        """Once when lines cannot be written, and once when they can again: nothing is told in between."""
        lost, before = self._said
        if self.trouble and not before:
            _VOICE.error(f"access log {self._output.target}: {self.trouble}; lines wait, serving goes on")
        elif not self.trouble and self.dropped != lost:
            _VOICE.error(f"access log {self._output.target}: {self.dropped - lost} lines were lost")
        self._said = (lost if self.trouble else self.dropped, self.trouble)

    def reopen(self) -> None:
        """After a rotation (USR1). Raises OSError, and the file that was open is written on."""
        self.flush()
        self._output.reopen()

    def close(self) -> None:
        self.flush()
        self._output.close()

    @property
    def dropped(self) -> int:
        """Lines lost to a full disk or a reader that stood still."""
        return self._output.dropped

    @property
    def trouble(self) -> str:
        """Why lines wait now; "" when none do."""
        return self._output.trouble


class NoRequestLog:
    """The log that is switched off."""

    __slots__ = ()
    enabled = False
    dropped = 0
    trouble = ""

    def write(self, request: Answered) -> None: ...

    def flush(self) -> None: ...

    def reopen(self) -> None: ...

    def close(self) -> None: ...


def open_log(settings: Settings, identity: Identity) -> RequestLog | NoRequestLog:
    """The log that the settings ask for, to be opened in the worker after the fork. Raises OSError, ValueError."""
    if not settings.access_log:
        return NoRequestLog()
    return RequestLog(settings.access_log, settings.access_log_format, identity)


def line_of(wanted: str, identity: Identity) -> _Line:
    """The function that makes lines. wanted: combined, apache, json, or text with atoms. Raises ValueError."""
    makers = {"combined": _combined, "apache": _apache, "json": _json}
    maker = makers.get(wanted)
    if maker is not None:
        return maker(identity)
    if "%" not in wanted:
        raise ValueError(f"{wanted!r} is no format: combined, apache, json, or text with atoms such as %(h)s")
    return _atoms(wanted, identity)


def escaped(text: str) -> str:
    """Fit for a quoted field of one line."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    if char in '"\\':
        return "\\" + char
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8" if ord(char) > 255 else "latin-1", "replace"))


class _Clock:
    """Apache's time stamp, made once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second, self._text = -1, ""

    def __call__(self, unix_s: float) -> str:
        second = int(unix_s)
        if second != self._second:
            now = time.localtime(second)
            # not strftime: it would name the month in the locale's language
            month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[now.tm_mon - 1]
            offset = now.tm_gmtoff
            sign, minutes = ("-" if offset < 0 else "+"), abs(offset) // 60
            self._text = (
                f"[{now.tm_mday:02d}/{month}/{now.tm_year}:{now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d} "
                f"{sign}{minutes // 60:02d}{minutes % 60:02d}]"
            )
            self._second = second
        return self._text


def _apache(identity: Identity, tail: str = "\n") -> _Line:
    clock = _Clock()

    def line(request: Answered) -> str:
        client, target = request.client or "-", request.target
        referer, agent = request.referer or "-", request.user_agent or "-"
        method = request.method
        sent = f"{client}{method}{target}{referer}{agent}"
        if not (sent.isascii() and sent.isprintable() and '"' not in sent and "\\" not in sent):
            client, method, target = escaped(client), escaped(method), escaped(target)
            referer, agent = escaped(referer), escaped(agent)
        return (
            f'{client} - - {clock(request.began_unix_s)} "{method} {target} HTTP/{request.version}" '
            f'{request.status} {request.bytes_sent} "{referer}" "{agent}"{tail}'
        )

    return line


def _combined(identity: Identity) -> _Line:
    """Apache's combined, and behind it the release and the generation."""
    return _apache(identity, f" {_word(identity.release)} {identity.generation}\n")


def _word(text: str) -> str:
    return escaped(text).replace(" ", "_") or "-"


def _json(identity: Identity) -> _Line:
    quote = encode_basestring_ascii
    tail = (
        f',"release":{quote(identity.release)},"generation":{identity.generation}'
        f',"worker":{identity.worker},"pid":{identity.pid}}}\n'
    )
    second, text = -1, ""

    def line(request: Answered) -> str:
        nonlocal second, text
        began = request.began_unix_s
        whole = int(began)
        if whole != second:
            second, text = whole, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        return (
            f'{{"time":"{text}.{int((began - whole) * 1000):03d}Z","client":{quote(request.client)}'
            f',"method":{quote(request.method)},"target":{quote(request.target)},"version":{quote(request.version)}'
            f',"status":{request.status},"bytes":{request.bytes_sent},"seconds":{request.seconds:.6f}'
            f',"host":{quote(request.host)},"referer":{quote(request.referer)}'
            f',"user_agent":{quote(request.user_agent)},"request_id":{quote(request.request_id)}{tail}'
        )

    return line


def _microseconds(request: Answered) -> int:
    return int(request.seconds * 1_000_000)


def _atom_table(identity: Identity) -> dict[str, Callable[[Answered], object]]:
    """gunicorn's atoms, and `release`, `generation`, `worker`. Header atoms by their name in lower case."""
    clock = _Clock()
    return {
        "h": lambda request: request.client or "-",
        "l": lambda request: "-",
        "u": lambda request: "-",
        "t": lambda request: clock(request.began_unix_s),
        "r": lambda request: f"{request.method} {request.target} HTTP/{request.version}",
        "s": lambda request: str(request.status),
        "m": lambda request: request.method,
        "U": lambda request: request.target.partition("?")[0],
        "q": lambda request: request.target.partition("?")[2],
        "H": lambda request: f"HTTP/{request.version}",
        "b": lambda request: str(request.bytes_sent),
        "B": lambda request: request.bytes_sent,
        "f": lambda request: request.referer or "-",
        "a": lambda request: request.user_agent or "-",
        "T": lambda request: int(request.seconds),
        "M": lambda request: _microseconds(request) // 1000,
        "D": _microseconds,
        "L": lambda request: f"{_microseconds(request) // 1_000_000}.{_microseconds(request) % 1_000_000:06d}",
        "p": lambda request: f"<{identity.pid}>",
        "{referer}i": lambda request: request.referer or "-",
        "{user-agent}i": lambda request: request.user_agent or "-",
        "{host}i": lambda request: request.host or "-",
        "{x-request-id}i": lambda request: request.request_id or "-",
        "release": lambda request: identity.release or "-",
        "generation": lambda request: identity.generation,
        "worker": lambda request: identity.worker,
    }


def unknown_atoms(wanted: str) -> tuple[str, ...]:
    """Those that are always "-" here. Raises ValueError when the text cannot be filled in at all."""
    found = []
    for match in _ATOM.finditer(wanted):
        if match.group(2):
            near = wanted[match.start() : match.start() + 12]
            raise ValueError(f"{near!r} is no atom: write %(h)s and the like, and %% for a percent sign")
        if match.group(1) is not None:
            found.append(match.group(1))
    table = _atom_table(Identity(0, 0, "", 0))
    missing = tuple(dict.fromkeys(name for name in found if _folded(name) not in table))
    try:
        _ = wanted % {name: table[_folded(name)](_SAMPLE) if name not in missing else "-" for name in found}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wanted!r}: {error}") from error
    return missing


_SAMPLE = Answered("::1", "GET", "/?a", "1.1", 200, 0, 0.0, 0.0)


def _folded(name: str) -> str:
    return name.lower() if name.startswith("{") else name


def _atoms(wanted: str, identity: Identity) -> _Line:
    missing = unknown_atoms(wanted)
    table = _atom_table(identity)
    names = {match.group(1) for match in _ATOM.finditer(wanted) if match.group(1) is not None}
    used = tuple((name, table[_folded(name)]) for name in names if name not in missing)
    nothing: Mapping[str, object] = dict.fromkeys(missing, "-")

    def line(request: Answered) -> str:
        values = dict(nothing)
        for name, value_of in used:
            value = value_of(request)
            values[name] = escaped(value) if isinstance(value, str) else value
        return wanted % values + "\n"

    return line
