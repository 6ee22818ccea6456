"""Notifications reach a real HTTP server through apprise, and whatever goes wrong with them is one warning."""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midstream.core.config_tables import NotifyTable, SecretSource
from midstream.deploy import notify
from midstream.deploy.events import Outcome
from midstream.errors import AppError, AttentionError, InterruptedDeploy, LockedError, OperatorError

pytest.importorskip("apprise")

ABOUT = notify.About(
    "shop", "production", "deploy", "ada", ("web1", "web2"), "main", "3fa2b1c9d0ffff", "Sell more",
    ("3fa2b1c9d0 ada: Sell more", "1111111111 bob: Fix it"),
)  # fmt: skip


class Inbox:
    """A server on loopback that keeps what it is sent. status: of its answers."""

    def __init__(self, status: int = 200) -> None:
        inbox = self
        self.got: queue.Queue[dict[str, Any]] = queue.Queue()
        self.let_go = threading.Event()
        self.let_go.set()

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.got.put(json.loads(body))
                inbox.let_go.wait(60)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server.server_address[1]}/T0KEN-in-the-path"

    def close(self) -> None:
        self.let_go.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@contextlib.contextmanager
def inbox(status: int = 200) -> Iterator[Inbox]:
    made = Inbox(status)
    try:
        yield made
    finally:
        made.close()


def outcome(error: Any = None) -> Outcome:
    return Outcome("id", "deploy", "shop", "production", "20261121190501", "3fa2b1c9d0ffff", "main", 12.3, (), error)


def told(message: notify.Message, box: Inbox) -> dict[str, Any]:
    warnings: list[str] = []
    notifier = notify.Notifier((box.url,), warnings.append)
    notifier.tell(message)
    assert notifier.close(), warnings
    assert warnings == []
    return box.got.get(timeout=10)


def test_a_finished_deploy_is_told_with_its_commits() -> None:
    with inbox() as box:
        got = told(notify.ended(ABOUT, outcome()), box)
    assert got["title"] == "shop (production) is on release 20261121190501"
    assert got["type"] == "success"
    for words in ("main at 3fa2b1c9d0 “Sell more”", "web1, web2", "by ada, in 12.3 s", "2 commits", "bob: Fix it"):
        assert words in got["message"]


def test_a_failed_one_says_what_failed_what_serves_and_what_to_do() -> None:
    error = AppError("web answered 500", where="web2", serving="release 20261120000000", remedy="midstream logs web")
    with inbox() as box:
        got = told(notify.ended(ABOUT, outcome(error)), box)
    assert "deploy FAILED" in got["title"]
    assert got["type"] == "failure"
    for words in ("web answered 500", "web2", "serving: release 20261120000000", "do:      midstream logs web"):
        assert words in got["message"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, {"finished"}),
        (AppError("x"), {"failed"}),
        (AttentionError("x"), {"failed", "attention"}),
        (InterruptedDeploy("x"), {"interrupted"}),
        (LockedError("x"), set()),
    ],
)
def test_what_each_end_counts_as(error: Any, words: set[str]) -> None:
    assert notify.occasions(error) == words


def test_secrets_are_taken_out() -> None:
    warnings: list[str] = []
    with inbox() as box:
        notifier = notify.Notifier((box.url,), warnings.append, lambda text: text.replace("hunter2", "[KEY]"))
        notifier.tell(notify.ended(ABOUT, outcome(AppError("bad key hunter2", detail="hunter2"))))
        assert notifier.close()
        got = box.got.get(timeout=10)
    assert "hunter2" not in json.dumps(got)
    assert "[KEY]" in got["message"]


def test_one_that_refuses_is_one_warning_without_the_address_and_the_others_are_told() -> None:
    warnings: list[str] = []
    with inbox(500) as bad, inbox() as good:
        notifier = notify.Notifier((bad.url, good.url), warnings.append)
        notifier.tell(notify.started(ABOUT))
        notifier.tell(notify.ended(ABOUT, outcome()))
        assert not notifier.close()
        assert [good.got.get(timeout=10)["type"] for _ in range(2)] == ["info", "success"]
    assert len(warnings) == 1
    assert "notify.urls[0] (json) failed" in warnings[0]
    assert "T0KEN" not in warnings[0]


def test_one_that_never_answers_is_given_up() -> None:
    warnings: list[str] = []
    with inbox() as box:
        box.let_go.clear()
        notifier = notify.Notifier((box.url,), warnings.append)
        began_s = time.monotonic()
        notifier.tell(notify.started(ABOUT))
        box.got.get(timeout=10)
        assert not notifier.close(0.05)
        assert time.monotonic() - began_s < 10.0
    assert len(warnings) == 1 and "in time" in warnings[0]


def test_an_address_that_nobody_understands_is_a_warning_too() -> None:
    warnings: list[str] = []
    notifier = notify.Notifier(("nonsense://s3cr3t",), warnings.append)
    notifier.tell(notify.started(ABOUT))
    assert not notifier.close()
    assert len(warnings) == 1 and "s3cr3t" not in warnings[0]


def test_addresses_are_read_from_files_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("json://a/1\n")
    monkeypatch.setenv("CHAT", "json://b/2")
    table = NotifyTable(("json://c/3", SecretSource(file="url"), SecretSource(env="CHAT")))
    assert notify.read_urls(table, tmp_path) == ("json://c/3", "json://a/1", "json://b/2")
    with pytest.raises(OperatorError, match="secret cannot be read"):
        notify.read_urls(NotifyTable((SecretSource(env="MISSING_ONE"),)), tmp_path)
