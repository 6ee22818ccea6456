"""What a deploy shows and tells: notifications at a real receiver, lines for several hosts, secrets taken out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_cli import TOML, Shop, shop

from midstream.cli.output import clean
from midstream.cli.progress import HostLine, LivePrinter
from midstream.core.plan import Kind, Plan
from midstream.deploy.events import Event, EventKind
from midstream.errors import AppError, AttentionError, LockedError
from midstream.testing.fake_agent import Fail

sys.path.insert(0, str(Path(__file__).parent.parent / "process"))

__all__ = ["shop"]

NOTIFY = """
[notify]
urls = [{ env = "CHAT" }]
on = ["started", "finished", "failed", "interrupted"]
"""


@pytest.fixture
def told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("apprise")
    from test_notify import inbox

    with inbox() as box:
        monkeypatch.setenv("CHAT", box.url)
        shop.commit("midstream.toml", TOML + NOTIFY)
        yield box


def test_the_beginning_and_the_end_of_a_deploy_are_told_with_its_commits(shop: Shop, told: Any) -> None:
    shop.ok("deploy")
    assert [told.got.get(timeout=60)["type"] for _ in range(2)] == ["info", "success"]
    shop.commit("app.py", "2")
    result = shop.ok("deploy")
    assert told.got.get(timeout=60)["title"].endswith("deploy started by " + _user())
    end = told.got.get(timeout=60)
    assert "is on release " + shop.agent.apps["shop"].committed in end["title"]
    assert "1 commit:" in end["message"] and "A: Change app.py" in end["message"]
    assert "T0KEN" not in result.out + result.err


def _user() -> str:
    from midstream.cli.deploy_run import operator_name

    return operator_name()


def test_a_failure_is_told_in_the_words_of_the_terminal_without_secrets(shop: Shop, told: Any, tmp_path: Path) -> None:
    shop.agent.script("deploy.publish", Fail(AppError("no answer; key hunter2-hunter2", detail="ImportError: x")))
    result = shop.run("deploy")
    assert result.code == 1
    told.got.get(timeout=60)
    end = told.got.get(timeout=60)
    assert "FAILED" in end["title"] and end["type"] == "failure"
    assert "no answer; key [SECRET_KEY]" in end["message"] and "ImportError: x" in end["message"]
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"T0KEN" in path.read_bytes()]
    assert kept == []


def test_a_deploy_refused_by_a_lock_is_not_told_and_one_needing_attention_is(shop: Shop, told: Any) -> None:
    shop.agent.script("deploy.open", Fail(LockedError("berta is deploying")))
    assert shop.run("deploy").code == 4
    shop.agent.script("deploy.publish", Fail(AttentionError("half migrated")))
    assert shop.run("deploy").code == 5
    titles = [told.got.get(timeout=60)["title"] for _ in range(2)]
    assert "started" in titles[0] and "needs attention" in titles[1]
    assert told.got.empty()


@pytest.mark.parametrize("url", ["json://127.0.0.1:9/T0KEN", "nonsense://T0KEN"])
def test_a_notification_that_fails_is_one_warning_and_the_deploy_is_done(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("CHAT", url)
    shop.commit("midstream.toml", TOML + NOTIFY)
    result = shop.ok("deploy")
    assert result.err.count("warning: the notification") == 1
    assert "T0KEN" not in result.err
    monkeypatch.delenv("CHAT")
    result = shop.ok("deploy")
    assert result.err.count("warning: nobody is notified") == 1


def test_notify_shows_who_is_told_and_tries_it(shop: Shop, told: Any) -> None:
    shown = shop.ok("notify").out
    assert "from the variable CHAT" in shown and "started, finished, failed, interrupted" in shown
    assert "accepted by all" in shop.ok("notify", "production", "--test").out
    assert told.got.get(timeout=60)["title"] == "shop (production): a test"
    told.close()
    result = shop.run("notify", "--test")
    assert result.code == 1
    assert "notify.urls[0]" in result.err and "T0KEN" not in result.err


def test_what_cannot_even_be_reached_is_told_with_the_place_of_the_log(
    shop: Shop, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDSTREAM_SSH", "false")
    shop.commit("midstream.toml", TOML.replace("[stages.production]", '[stages.production]\nhosts = ["web1"]') + NOTIFY)
    monkeypatch.delenv("MIDSTREAM_SOCKET")
    result = shop.run("deploy")
    assert result.code == 1
    assert Path(result.err.split("full log: ")[1].splitlines()[0]).exists()
    assert "FAILED" in told.got.get(timeout=60)["title"]


# ---------------------------------------------------------------------- lines


def _step(kind: EventKind, phase: str, step: str, host: str = "web1", **more: Any) -> Event:
    return Event(kind, host=host, phase=phase, step=step, **more)


def test_a_host_has_one_line_for_each_phase_it_has_ended() -> None:
    row = HostLine(0.0)
    begin, end = EventKind.BEGIN, EventKind.END
    told = [
        row.take(event, now_s)
        for now_s, event in [
            (0.0, _step(begin, "updating", "git:update")),
            (1.0, _step(end, "updating", "git:update", ok=True)),
            (1.0, _step(begin, "updating", "git:create_release")),
            (2.0, _step(end, "updating", "git:create_release", ok=True)),
            (2.0, _step(begin, "updated", "build")),
            (3.0, _step(EventKind.LINE, "updated", "build", text="\x1b[31mcompiling")),
        ]
    ]
    assert [line for line in told if line] == ["updating      2.0s  git:update, git:create_release"]
    assert row.words == "updated     build | " + clean("\x1b[31mcompiling")
    assert row.summary(9.0) == ""


def test_several_hosts_show_phases_and_a_failed_step_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    printer = LivePrinter(verbose=False)
    hosts = ("web1", "web2")
    printer.begin(Plan("shop", "production", Kind.DEPLOY, hosts, "web1", ()), "id", "shop: main")
    for host in hosts:
        printer.event(_step(EventKind.BEGIN, "updating", "git:update", host))
        printer.event(_step(EventKind.END, "updating", "git:update", host, ok=True, seconds=0.1))
    printer.event(_step(EventKind.BEGIN, "updated", "build", "web1"))
    printer.event(_step(EventKind.END, "updated", "build", "web2", ok=False, seconds=0.1, text="exit 1"))
    printer.close()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    updating = [line for line in lines if line.startswith("web") and " updating " in line]
    assert [line.split()[0] for line in updating] == ["web1", "web2"]
    assert any(line.startswith("web2 updated build FAILED") and line.endswith("exit 1") for line in lines)


def test_of_one_host_each_step_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    printer = LivePrinter(verbose=False)
    printer.begin(Plan("shop", "production", Kind.DEPLOY, ("web1",), "web1", ()), "id", "shop: main")
    printer.event(_step(EventKind.BEGIN, "updating", "git:update"))
    printer.event(_step(EventKind.END, "updating", "git:update", ok=True, seconds=0.1))
    printer.pause()
    printer.go_on()
    printer.close()
    assert "git:update" in capsys.readouterr().out
    assert time.monotonic() - printer._now["web1"].since_s < 60.0
