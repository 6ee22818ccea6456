"""slowhttptest, the program that people attack servers with, against a live `midstream serve`, which answers others meanwhile.

Slowloris (heads that never end), slow bodies, slow reading, and overlapping ranges; 60 connections each, some seconds long.
By default heads and bodies; MIDSTREAM_SLOW=1: all.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving

APP = """
BIG = b"x" * 2_000_000

def app(environ, start_response):
    body = BIG if environ["PATH_INFO"] == "/big" else b"hello r1"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
LIMITS = ["--header-timeout", "2", "--body-timeout", "2", "--write-timeout", "2"]

# Each with the options that slowhttptest knows it by.
ATTACKS = {
    "slow heads": ["-H", "-i", "1"],
    "slow bodies": ["-B", "-i", "1", "-s", "8192"],
    "ranges": ["-R", "-a", "1", "-b", "3000"],
    "slow reading": ["-X", "-w", "10", "-y", "20", "-n", "1", "-z", "5", "-k", "1"],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Server]:
    folder: Path = tmp_path_factory.mktemp("slow")
    serving.point(folder, serving.make_release(folder, "r1", app=APP))
    with serving.running(folder, "--linger", "0", *LIMITS) as running:
        yield running


@pytest.mark.server("slowhttptest")
@pytest.mark.parametrize("attack", list(ATTACKS)[: None if os.environ.get("MIDSTREAM_SLOW") else 2])
def test_others_are_answered_meanwhile(server: serving.Server, attack: str) -> None:
    """More connections than the app threads of all workers; without the limits, none would be left for others."""
    path = "/big" if attack == "slow reading" else "/"
    url = f"http://127.0.0.1:{server.port}{path}"
    slow = subprocess.Popen(
        ["slowhttptest", *ATTACKS[attack], "-c", "60", "-r", "60", "-l", "3", "-p", "10", "-u", url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    answered = 0
    try:
        while slow.poll() is None:
            assert server.get("/").body == "hello r1"
            answered += 1
            try:
                slow.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
    finally:
        if slow.poll() is None:
            slow.kill()
        said = slow.communicate()[0].decode(errors="replace")
    assert answered > 3, said[-2000:]
    assert "closed" in said and "service available" in said, said[-2000:]
