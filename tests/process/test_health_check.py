"""Health checks against servers that answer well, badly, strangely or not at all."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_servers import Yard, eventually, listener_at, yard_in

from midstream.agent.health import (
    BODY_MAX_BYTES,
    Address,
    HealthResult,
    address_of,
    check,
    command_check,
    parse_address,
    read_verdict,
    request_bytes,
)
from midstream.core.spec import HealthSpec

UP = HealthSpec(http="/up", timeout_s=20.0)
HERE = Address(host="127.0.0.1", port=80)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with yard_in(tmp_path) as found:
        yield found


def judged(answer: bytes, spec: HealthSpec = UP, *, stays_open: bool = False) -> HealthResult:
    """The verdict on raw bytes from a server, which closes behind them or not."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def serve() -> None:
        try:
            theirs.sendall(answer)
            if not stays_open:
                theirs.shutdown(socket.SHUT_WR)
        except OSError:  # we have seen enough and closed
            pass

    server = threading.Thread(target=serve)
    server.start()

    async def ask() -> HealthResult:
        async with asyncio.timeout(20):
            return await read_verdict(spec, HERE, ours)

    try:
        return asyncio.run(ask())
    finally:
        ours.close()
        server.join()
        theirs.close()


def checked(spec: HealthSpec, where: Address | str) -> HealthResult:
    return asyncio.run(check(spec, where))


def answered(yard: Yard, spec: HealthSpec, misbehave: str = "") -> HealthResult:
    with listener_at() as listener:
        yard.drain_server({"web": listener}, misbehave=misbehave)
        return checked(spec, address_of(listener))


def test_a_good_answer_is_healthy_over_tcp_and_unix(yard: Yard, tmp_path: Path) -> None:
    with listener_at() as tcp, listener_at(("::1", 0)) as six, listener_at(str(tmp_path / "s")) as unix:
        yard.drain_server({"a": tcp, "b": six, "c": unix})
        for listener in (tcp, six, unix):
            result = checked(UP, address_of(listener))
            assert (result.ok, result.status, result.reason) == (True, 200, "GET /up answered 200")
            assert result.seconds > 0
            assert result.headers["content-length"] == "3"
            assert checked(HealthSpec(tcp=True), str(address_of(listener))).ok


def test_a_redirect_to_https_names_the_header_and_the_header_cures_it(yard: Yard) -> None:
    result = answered(yard, UP, "redirect")
    assert not result.ok
    assert "https://127.0.0.1" in result.reason
    assert 'headers = { X-Forwarded-Proto = "https" }' in result.reason
    cured = HealthSpec(http="/up", headers={"X-Forwarded-Proto": "https"})
    assert answered(yard, cured, "redirect").ok
    assert answered(yard, HealthSpec(http="/up", status=(302,)), "redirect").ok


def test_a_refused_host_names_the_setting_and_the_setting_cures_it(yard: Yard) -> None:
    result = answered(yard, UP, "picky")
    assert result.status == 400
    assert "ALLOWED_HOSTS" in result.reason
    assert 'host = "' in result.reason
    assert "Invalid HTTP_HOST header" in result.reason
    assert answered(yard, HealthSpec(http="/up", host="shop.test"), "picky").ok


def test_a_failure_shows_the_first_lines_of_the_body(yard: Yard) -> None:
    result = answered(yard, UP, "unhealthy")
    assert (result.ok, result.status) == (False, 500)
    assert "| Traceback (most recent call last):" in result.reason
    assert "|   the database is not there" in result.reason


def test_a_missing_page_names_the_path(yard: Yard) -> None:
    assert "the path /nowhere" in answered(yard, HealthSpec(http="/nowhere")).reason


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (b"301 Moved\r\nLocation: /up/", "/up/"),
        (b"302 Found", "(nowhere)"),
        (b"401 No", "no login"),
        (b"403 No", "no login"),
        (b"418 Teapot", "expected 2xx"),
        (b"503 Busy", "answered 503"),
    ],
)
def test_each_status_has_its_own_sentence(status: bytes, words: str) -> None:
    result = judged(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
    assert not result.ok
    assert result.answered
    assert words in result.reason


def test_a_command_is_returned_to_be_spawned() -> None:
    spec = HealthSpec(command=("pg_isready", "-q"), timeout_s=3.0)
    found = command_check(spec)
    assert found is not None
    assert (found.argv, found.timeout_s) == (("pg_isready", "-q"), 3.0)
    assert command_check(UP) is None
    with pytest.raises(ValueError, match="spawned"):
        checked(spec, HERE)


def test_nothing_there_is_told_from_refused(tmp_path: Path) -> None:
    with listener_at() as listener:
        address = address_of(listener)
    assert "refuses connections" in checked(UP, address).reason
    assert "no such socket" in checked(UP, f"unix://{tmp_path}/nothing").reason


def test_a_server_that_accepts_and_says_nothing_runs_into_the_time_out() -> None:
    with listener_at() as listener:
        result = checked(HealthSpec(http="/up", timeout_s=0.2), address_of(listener))
    assert not result.ok
    assert "not answered within 0.2 s" in result.reason


def test_a_unix_listener_with_a_full_queue_is_a_time_out_not_success(tmp_path: Path) -> None:
    with listener_at(str(tmp_path / "s"), backlog=0) as listener:
        filler = socket.socket(socket.AF_UNIX)
        filler.connect(listener.getsockname())
        with filler:
            result = checked(HealthSpec(tcp=True, timeout_s=0.2), address_of(listener))
    assert not result.ok


def test_a_server_that_hangs_up_is_told_with_what_it_said() -> None:
    assert "closed the connection without an answer" in judged(b"").reason
    assert "it said 'HTTP/1.1 200'" in judged(b"HTTP/1.1 200").reason


def test_what_is_no_http_is_quoted() -> None:
    assert "does not speak HTTP: it said 'SSH-2.0-x" in judged(b"SSH-2.0-x\r\n\r\n").reason


def test_headers_and_bodies_are_bounded() -> None:
    assert "more than 64 KiB of headers" in judged(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 40_000).reason
    endless = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (3 * BODY_MAX_BYTES)
    assert judged(endless).ok
    hostile = b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 6000 + b"\r\n\r\nok"
    assert judged(hostile).ok


def test_the_length_ends_an_answer_on_a_connection_that_stays_open() -> None:
    assert judged(OK, stays_open=True).ok
    assert judged(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n", stays_open=True).ok
    assert judged(
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", HealthSpec(http="/", method="HEAD"), stays_open=True
    ).ok


def test_a_body_that_breaks_off_is_no_answer() -> None:
    result = judged(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")
    assert (result.ok, result.answered) == (False, False)
    assert "broke off" in result.reason
    assert not judged(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok").ok


def test_an_interim_answer_is_followed_by_the_real_one() -> None:
    assert judged(b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n\r\n" + OK).status == 200


def test_the_body_must_contain_what_is_asked_for() -> None:
    spec = HealthSpec(http="/up", contains="database: ok")
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\ndatabase\r\n4;x=y\r\n: ok\r\n0\r\n\r\n"
    assert judged(chunked, spec).ok
    result = judged(OK, spec)
    assert not result.ok
    assert "without 'database: ok'; it begins 'ok" in result.reason


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"]),
    st.binary(max_size=300),
)
def test_whatever_a_server_says_there_is_a_verdict(head: bytes, rest: bytes) -> None:
    """Nothing that a service sends raises, and every bad verdict has a reason."""
    result = judged(head + rest)
    assert result.reason


def test_the_request_carries_the_headers_as_configured() -> None:
    spec = HealthSpec(http="/up?x=1", host="shop.test", headers={"X-Forwarded-Proto": "https", "user-agent": "me"})
    lines = request_bytes(spec, HERE).decode().split("\r\n")
    assert lines[0] == "GET /up?x=1 HTTP/1.1"
    assert set(lines[1:-2]) == {
        "Host: shop.test",
        "User-Agent: me",
        "Accept: */*",
        "X-Forwarded-Proto: https",
        "Connection: close",
    }
    assert "Host: 127.0.0.1:80" in request_bytes(UP, HERE).decode()
    assert "Host: localhost" in request_bytes(UP, Address(path="/s")).decode()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://127.0.0.1:8000", Address(host="127.0.0.1", port=8000)),
        ("tcp://0.0.0.0:8000", Address(host="127.0.0.1", port=8000)),
        ("tcp://[::]:8000", Address(host="::1", port=8000)),
        ("tcp://[::1]:8000", Address(host="::1", port=8000)),
        ("unix:///run/a b.sock", Address(path="/run/a b.sock")),
    ],
)
def test_an_address_is_read_and_a_wildcard_is_asked_on_the_loopback(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["", "127.0.0.1:80", "tcp://x", "tcp://x:y", "unix://", "http://x:1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        parse_address(text)


def test_a_check_in_a_drain_is_answered_until_nobody_listens(yard: Yard) -> None:
    with listener_at() as listener:
        address = address_of(listener)
        child = yard.drain_server({"web": listener})
        eventually("it is up", lambda: checked(UP, address).ok)
        child.signal("TERM")
        child.wait()
    assert "refuses" in checked(UP, address).reason
