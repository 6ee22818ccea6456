"""Connections that are used once: the thread that ran the app closes them itself, beside the loop."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_wsgi_process import Served, serve

pytest.importorskip("httptools")
pytest.importorskip("uvloop")

CLIENTS = 4
EACH = 150
CLOSE = b"Host: t\r\nConnection: close\r\n"
# in the pieces in which it is sent, and what is answered
WAYS = [
    ([b"GET / HTTP/1.1\r\n" + CLOSE + b"\r\n"], b"hello"),
    ([b"GET / HTTP/1.1\r\n", CLOSE + b"\r\n"], b"hello"),
    ([b"GET / HTTP/1.0\r\n\r\n"], b"hello"),
    ([b"POST /echo HTTP/1.1\r\nContent-Length: 4\r\n" + CLOSE + b"\r\n", b"body"], b"body"),
    ([b"GET / HTTP/1.1\r\n" + CLOSE + b"\r\nmore than one request"], b"hello"),
]


@pytest.fixture(params=[4, 1], ids=["threads", "inline"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    served = serve(tmp_path, threads=request.param)
    served.ask("resume")
    yield served
    served.close()


def descriptors(served: Served) -> int:
    return len(os.listdir(f"/proc/{served.process.pid}/fd"))


def test_each_is_answered_and_none_is_left(served: Served) -> None:
    wrong: list[object] = []

    def client() -> None:
        for pieces, body in itertools.islice(itertools.cycle(WAYS), EACH):
            one = served.client()
            try:
                for piece in pieces:
                    one.send(piece)
                answer = one.answer()
                if (answer.status, answer.body, one.ends()) != (200, body, True):
                    wrong.append((pieces, answer))
            except (OSError, EOFError) as error:
                wrong.append((pieces, error))
            one.close()

    before = descriptors(served)
    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    served.until_traffic(in_flight=0, idle=0)
    while descriptors(served) > before:
        served.ask("traffic")  # a turn of the loop: the last are being closed
    assert served.log() == ""


@pytest.mark.parametrize("served", [4], indirect=True)
def test_a_drain_waits_for_them_and_ends(served: Served) -> None:
    slow = [served.client() for _ in range(3)]
    for one in slow:
        one.send(b"GET /sleep/3 HTTP/1.1\r\n" + CLOSE + b"\r\n")
    served.until_traffic(in_flight=3)
    served.drain(10, 0)
    assert [one.answer().status for one in slow] == [200, 200, 200]
    assert served.cuts() == {"requests": 0, "websockets": 0, "idle_closed": 0}
    for one in slow:
        one.close()


def test_a_bug_of_the_server_costs_no_thread(served: Served) -> None:
    for _ in range(6):  # more than there are threads
        one = served.client()
        assert one.get("/bug").status == 200
        assert one.ends()
        one.close()
    one = served.client()
    assert one.get("/").body == b"hello"
    assert served.log().count("a bug of the server's own") == 6
    served.drain(10, 0)
    assert served.cuts()["requests"] == 0
    one.close()
