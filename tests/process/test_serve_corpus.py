"""Requests from the tests of gunicorn and llhttp, sent to a live `midstream serve`, WSGI and ASGI.

What they accept and refuse is compared with what we do. Where we differ, the case stands in a table with our verdict and the
reason; a line there that is no longer true fails as well. The files are fetched, not ours (`foreign.py`).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import foreign
import foreign_requests
import pytest
import serving
from foreign_requests import Case, Expected

pytest.importorskip("h11")
pytest.importorskip("uvloop")

from serve_fuzz_peers import Reading, read_answers, seen

WAIT_S = 30.0

WSGI = """
import json

def app(environ, start_response):
    body = environ["wsgi.input"].read().decode("latin-1")
    said = json.dumps([environ["REQUEST_METHOD"], environ["RAW_URI"], body]).encode()
    start_response("200 OK", [("X-Said", said.decode()[:2000]), ("Content-Length", str(len(said)))])
    return [said]
"""
ASGI = """
import json

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    target = scope["raw_path"].decode() + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
    said = json.dumps([scope["method"], target, body.decode("latin-1")]).encode()
    headers = [(b"x-said", said[:2000]), (b"content-length", b"%d" % len(said))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """accepted: the requests that the app was given, in order. status: of the refusal behind them; 0: none."""

    accepted: tuple[Expected, ...]
    status: int

    def __str__(self) -> str:
        return f"{len(self.accepted)}" + (f" then {self.status}" if self.status else "")


@pytest.fixture(scope="module", params=["wsgi", "asgi"])
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Which of the two, and the port."""
    folder = tmp_path_factory.mktemp(request.param)
    serving.point(folder, serving.make_release(folder, "r1", app=WSGI if request.param == "wsgi" else ASGI))
    with serving.running(folder, "--linger", "0") as server:
        yield request.param, server.port


def sent(port: int, data: bytes) -> bytes:
    """All that comes back for these bytes, which are all that is sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before it has taken all
        raw = b""
        try:
            while piece := sock.recv(65536):
                raw += piece
        except ConnectionResetError:
            pass
        return raw


def verdict(case: Case, port: int) -> Verdict:
    reading = Reading(raw=sent(port, case.data))
    asked = [one.method for one in case.accepted]
    reading.requests = [seen(method, "/", [], b"") for method in asked]  # HEAD decides how an answer is read
    read_answers(reading)
    said = [body for status, body in reading.answers if status == 200]
    refusals = [status for status, _ in reading.answers if status != 200]
    accepted = [Expected(*_parts(body)) if body else case.accepted[at] for at, body in enumerate(said)]
    return Verdict(tuple(accepted), refusals[0] if refusals else 0)


def _parts(said: bytes) -> tuple[str, str, bytes]:
    method, target, body = json.loads(said)
    return method, target, body.encode("latin-1")


def agree(case: Case, ours: Verdict) -> bool:
    """Whether we take what they take, and refuse what they refuse. What follows an accepted request that is the last of
    its connection is read by nobody; that they tell it as an error is no difference."""
    if len(ours.accepted) != len(case.accepted):
        return False
    for mine, theirs in zip(ours.accepted, case.accepted, strict=True):
        if mine.method != theirs.method or _place(mine) != _place(theirs):
            return False
        if theirs.body is not None and mine.body != theirs.body:
            return False
    return case.refused or not ours.status


def _place(one: Expected) -> tuple[str, str]:
    found = seen("GET", one.target, [], b"")
    return found.path, found.query


# Where we judge otherwise: cases by the beginning of their names; for WSGI and for ASGI how many requests we accept and with
# which status we refuse what follows ("": as they do); and why.
CODINGS = (
    "of transfer codings only chunked is known: nobody would undo the others (RFC 9112 6.1: 501); two lines are 400"
)
ENCODINGS_ONCE = (
    "gunicorn valid/025",
    "gunicorn valid/029",
    "gunicorn valid/030",
    "llhttp transfer-encoding 21",
)
PROXY = "we are no proxy"
DIFFERENT: dict[str, tuple[str, str, str]] = {
    "gunicorn invalid/006": ("1", "1", "our limit of a request line is 8190 bytes, not 4094"),
    "gunicorn invalid/008": ("1", "1", "our limit of all fields together is larger"),
    "gunicorn invalid/017": ("1", "1", "a field of exactly our limit"),
    "gunicorn valid/005": ("0 then 400", "0 then 400", "a request target has no fragment (RFC 9112 3.2)"),
    "llhttp uri 8": ("0 then 400", "0 then 400", "a request target has no fragment"),
    "gunicorn valid/013": (
        "",
        "0 then 400",
        "llhttp takes no blank before a chunk extension (RFC 9112 7.1.1: bad whitespace)",
    ),
    **dict.fromkeys(ENCODINGS_ONCE, ("0 then 400", "0 then 400", CODINGS)),
    "gunicorn valid/025_line": ("0 then 501", "0 then 501", CODINGS),
    "gunicorn valid/rfc9112_smuggle_gzip_chunked_01": ("0 then 501", "0 then 501", CODINGS),
    "gunicorn valid/rfc9112_smuggle_te_identity_chunked_01": ("0 then 501", "0 then 501", CODINGS),
    "gunicorn valid/031": ("0 then 501", "0 then 501", "llhttp knows the methods that there are"),
    "gunicorn valid/099": ("0", "0", "the file's body is shorter than its Content-Length"),
    "gunicorn valid/rfc9112_target_absolute_userinfo_01": (
        "0 then 400",
        "0 then 400",
        "no user in a URL (RFC 9110 4.2.4)",
    ),
    "llhttp uri 10": ("0 then 400", "0 then 400", "no user in a URL (RFC 9110 4.2.4)"),
    "gunicorn valid/rfc9112_target_authority_connect_01": ("0 then 501", "0 then 501", PROXY),
    "gunicorn valid/rfc9112_target_authority_ipv6_01": ("0 then 501", "0 then 501", PROXY),
    **{f"llhttp method {number}": ("0 then 501", "0 then 501", PROXY) for number in (2, 3, 4)},
    "llhttp uri 9": ("0 then 501", "0 then 501", PROXY),
    "llhttp connection 12": ("", "0 then 400", "ASGI makes it a WebSocket, whose handshake it is not"),
    "llhttp connection 18": ("", "0 then 400", "ASGI makes it a WebSocket; this handshake was a draft's of 2010"),
    "llhttp method 5": ("0 then 400", "0 then 400", "the target * is for OPTIONS (RFC 9112 3.2.4)"),
    "llhttp transfer-encoding 20": (
        "0 then 400",
        "0 then 501",
        "WSGI names the fragment in the target, ASGI the coding",
    ),
    "llhttp connection 5": ("", "1 then 400", "two empty lines; WSGI says so when the request behind them is whole"),
    "llhttp method 12": ("0 then 400", "0 then 400", "ICE is not HTTP"),
    "llhttp method 13": ("0 then 400", "0 then 400", "RTSP is not HTTP"),
    "llhttp method 14": ("0 then 400", "0 then 400", "RTSP is not HTTP"),
    "llhttp sample 10": ("0 then 400", "0 then 400", "HTTP/0.9 is not spoken"),
}


def check(cases: Iterator[Case], live: tuple[str, int], at_least: int) -> None:
    kind, port = live
    wrong: list[str] = []
    compared = listed = 0
    for case in cases:
        if case.options:
            continue  # expected under an option of theirs that we do not have
        compared += 1
        ours = verdict(case, port)
        entry = DIFFERENT.get(case.name.partition(":")[0], ("", "", ""))[0 if kind == "wsgi" else 1]
        listed += bool(entry)
        if agree(case, ours) == bool(entry) or (entry and str(ours) != entry):
            theirs = f"{len(case.accepted)}" + (" then an error" if case.refused else "")
            wrong.append(f"{case.name}: {ours}, listed {entry!r}, they: {theirs}; {case.data[:200]!r} {ours.accepted}")
    assert not wrong, "\n".join(wrong)
    assert compared >= at_least
    print(f"{kind}: {compared} cases, {listed} judged otherwise")


def test_gunicorns_requests(live: tuple[str, int]) -> None:
    check(foreign_requests.of_gunicorn(foreign.folder(foreign.GUNICORN)), live, 100)


def test_llhttps_requests(live: tuple[str, int]) -> None:
    check(foreign_requests.of_llhttp(foreign.folder(foreign.LLHTTP)), live, 100)


def test_the_table_names_cases_that_exist() -> None:
    folders: list[Path] = [foreign.folder(foreign.GUNICORN), foreign.folder(foreign.LLHTTP)]
    cases = [*foreign_requests.of_gunicorn(folders[0]), *foreign_requests.of_llhttp(folders[1])]
    assert set(DIFFERENT) <= {case.name.partition(":")[0] for case in cases if not case.options}
