"""The steps that speak to Monit, against a real one of their own.

What goes wrong in a deploy's way of doing it by hand is the subject: `monit unmonitor` answers before it is applied, a start
under way completes all the same, `restart` of what is not monitored does nothing, dependants are let go along.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
import monit as real
from machine import wait_for

from midstream.core.steps import MonitHold, MonitLook, MonitQuiet, MonitRelease, MonitRestart
from midstream.errors import AppError, HostError, OperatorError
from midstream.linux.process import read_stat
from midstream.steps import monit as steps

pytestmark = pytest.mark.skipif(real.MISSING, reason="monit is not installed")


@pytest.fixture
def monit(tmp_path: Path) -> Iterator[real.PrivateMonit]:
    """Two services: `jobs`, and `dash`, which depends on it; both started through a link."""
    one = tmp_path / "one"
    one.mkdir()
    (tmp_path / "current").symlink_to(one)
    with real.private_monit(tmp_path / "m") as private:
        private.service("jobs", tmp_path / "current", "sleep 1000", start_timeout_s=7)
        private.service("dash", tmp_path / "current", "sleep 1001", depends_on="jobs")
        private.start()
        wait_for("both to run", lambda: private.pid_of("jobs") and private.pid_of("dash") and settled(private))
        yield private


def settled(private: real.PrivateMonit) -> bool:
    return private.is_watched("jobs") and private.is_watched("dash")


def move(private: real.PrivateMonit, name: str) -> None:
    """`current` to another folder."""
    folder = private.folder.parent
    (folder / name).mkdir(exist_ok=True)
    (folder / "new").symlink_to(folder / name)
    os.rename(folder / "new", folder / "current")


def test_a_look_tells_process_and_what_is_watched_and_changes_nothing(monit: real.PrivateMonit) -> None:
    found = steps.monit_look(MonitLook(str(monit.control), "jobs"))
    pid = monit.pid_of("jobs")
    stat = read_stat(pid)
    assert stat is not None
    assert (found["pid"], found["start_ticks"], found["is_watched"]) == (pid, stat.start_ticks, True)
    assert {"jobs", "dash"} <= set(found["watched"])
    assert settled(monit)


def test_a_hold_is_applied_when_it_is_answered(monit: real.PrivateMonit) -> None:
    found = steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    assert monit.is_left_alone("jobs")
    assert "jobs" not in found["watched"]
    assert "dash" not in found["watched"], "what depends on it is let go along"
    pid = monit.pid_of("jobs")
    assert found["pid"] == pid, "the process is known although Monit does not show it any more"
    again = steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    assert again["pid"] == pid


def test_a_start_under_way_is_waited_for(monit: real.PrivateMonit) -> None:
    """It would complete after the answer of `monit unmonitor`, with whatever `current` is by then."""
    (monit.folder / "jobs.slow").write_text("2")
    os.kill(monit.pid_of("jobs"), signal.SIGKILL)
    wait_for("Monit to start it again", lambda: monit.log().count("'jobs' start:") == 2)
    assert monit.pid_of("jobs") == 0, "the start is under way"
    found = steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    assert found["pid"] and found["pid"] == monit.pid_of("jobs"), "what was under way has been completed"
    assert monit.is_left_alone("jobs")


def test_a_start_that_hangs_is_named_when_the_time_is_up(monit: real.PrivateMonit) -> None:
    (monit.folder / "jobs.slow").write_text("6")
    os.kill(monit.pid_of("jobs"), signal.SIGKILL)
    wait_for("Monit to start it again", lambda: monit.log().count("'jobs' start:") == 2)
    with pytest.raises(HostError) as failed:
        steps.monit_hold(MonitHold(str(monit.control), "jobs", 1.0))
    assert "did not leave 'jobs' alone within 1 s" in failed.value.what
    assert "jobs.start" in failed.value.what


def test_release_takes_back_what_is_named_and_passes_over_what_monit_forgot(monit: real.PrivateMonit) -> None:
    steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    found = steps.monit_release(MonitRelease(str(monit.control), ("jobs", "dash", "gone"), 20.0))
    assert found == {"watched": ["dash", "jobs"], "unknown": ["gone"]}
    assert settled(monit)


def test_restart_of_a_held_service_runs_it_anew_and_leaves_it_held(monit: real.PrivateMonit) -> None:
    """Monit's own `restart` of a service that is not monitored only turns monitoring on."""
    held = steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    old_dash = monit.pid_of("dash")
    move(monit, "two")
    found = steps.monit_restart(MonitRestart(str(monit.control), "jobs", ("dash",), min_uptime_s=0.3))
    assert found["pid"] == monit.pid_of("jobs") != held["pid"]
    assert monit.cwd_of("jobs") == "two"
    assert not Path(f"/proc/{held['pid']}").exists()
    assert monit.is_left_alone("jobs")
    wait_for("what depends on it to run anew, as Monit has it", lambda: monit.pid_of("dash") not in (0, old_dash))


def test_a_service_that_does_not_start_is_told_soon(monit: real.PrivateMonit) -> None:
    steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    (monit.folder / "jobs.broken").touch()
    with pytest.raises(AppError) as failed:
        steps.monit_restart(MonitRestart(str(monit.control), "jobs", min_uptime_s=0.3))
    assert "could not start 'jobs'" in failed.value.what or "does not stay up" in failed.value.what


def test_a_service_that_dies_again_and_again_is_not_waited_for_until_the_time_is_up(monit: real.PrivateMonit) -> None:
    """Monit would start it once a cycle, for ever."""
    steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    start = monit.folder / "jobs.start"
    start.write_text(start.read_text().replace("sleep 1000", "sleep 0.7"))
    before = monit.log().count("'jobs' start:")
    with pytest.raises(AppError) as failed:
        steps.monit_restart(MonitRestart(str(monit.control), "jobs", min_uptime_s=30.0, timeout_s=120.0))
    assert "could not start 'jobs'" in failed.value.what or "does not stay up" in failed.value.what
    assert monit.log().count("'jobs' start:") - before < 10


def test_a_service_that_does_not_stop_is_told_with_its_pid(monit: real.PrivateMonit) -> None:
    held = steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    (monit.folder / "jobs.stop").write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(AppError) as failed:
        steps.monit_restart(MonitRestart(str(monit.control), "jobs", min_uptime_s=0.3, timeout_s=4.0))
    assert f"pid {held['pid']} still runs" in failed.value.what
    assert "did not leave 'jobs' alone" in failed.value.detail  # its restart is pending still, and that is told too


def test_only_what_is_down_is_started(monit: real.PrivateMonit) -> None:
    held = steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    same = steps.monit_restart(MonitRestart(str(monit.control), "jobs", start=True, min_uptime_s=0.1))
    assert same["pid"] == held["pid"]
    os.kill(held["pid"], signal.SIGKILL)
    wait_for("it to be gone", lambda: monit.pid_of("jobs") == 0)
    found = steps.monit_restart(MonitRestart(str(monit.control), "jobs", start=True, min_uptime_s=0.1))
    assert found["pid"] == monit.pid_of("jobs") not in (0, held["pid"])
    assert monit.is_left_alone("jobs")


def test_a_worker_whose_title_tells_nothing_is_not_waited_for(monit: real.PrivateMonit) -> None:
    """USR2 ends `sleep`: the signal arrived."""
    pid = monit.pid_of("jobs")
    steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    steps.monit_quiet(MonitQuiet(str(monit.control), "jobs", "USR2", 30.0))
    wait_for("the signal to arrive", lambda: monit.pid_of("jobs") == 0)
    assert steps.monit_quiet(MonitQuiet(str(monit.control), "jobs", "USR2", 30.0))["pid"] == 0
    assert pid


def test_a_hold_goes_through_a_reload_of_monit(monit: real.PrivateMonit) -> None:
    monit.run("reload")
    steps.monit_hold(MonitHold(str(monit.control), "jobs", 20.0))
    monit.run("reload")
    wait_for("the reload", lambda: monit.log().count("Reinitializing Monit") == 2 and monit.answers())
    assert steps.monit_look(MonitLook(str(monit.control), "jobs"))["is_watched"] is False


@pytest.mark.parametrize("request_of", [lambda c, s: MonitLook(c, s), lambda c, s: MonitHold(c, s, 5.0)])
def test_an_unknown_service_is_named(monit: real.PrivateMonit, request_of: object) -> None:
    with pytest.raises(OperatorError, match="Monit knows no service 'nosuch'"):
        steps.monit_look(MonitLook(str(monit.control), "nosuch"))
    with pytest.raises(OperatorError, match="Monit knows no service 'nosuch'"):
        steps.monit_hold(MonitHold(str(monit.control), "nosuch", 5.0))


def test_a_control_file_that_others_may_read_is_named(monit: real.PrivateMonit) -> None:
    monit.control.chmod(0o644)
    with pytest.raises(OperatorError) as failed:
        steps.monit_look(MonitLook(str(monit.control), "jobs"))
    assert "permission 0644 is wrong" in failed.value.what
    assert "chmod 600" in failed.value.remedy


def test_a_control_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="is not a file"):
        steps.monit_look(MonitLook(str(tmp_path / "nosuch"), "jobs"))


def test_a_monit_that_does_not_run_is_told(monit: real.PrivateMonit) -> None:
    monit.stop()
    with pytest.raises(HostError, match="Monit is not running"):
        steps.monit_look(MonitLook(str(monit.control), "jobs"))


def test_a_monit_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(HostError, match="Monit is not installed"):
        steps.monit_look(MonitLook("", "jobs"))
