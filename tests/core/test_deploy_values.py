"""Small pure parts of the deployer and the command line: redaction, verdicts, release ids, places, words for people."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.cli import output
from midstream.cli.deploy_run import pick_release
from midstream.cli.fleet_view import clock_lines
from midstream.cli.places import places, socket_to_ask
from midstream.cli.status_view import problems, status_text
from midstream.core.names import is_release
from midstream.deploy.events import Event, EventKind
from midstream.deploy.record import ENDED, KEPT, UNTOUCHED, Memo, Record, last_memo, memo_of, new_deploy_id
from midstream.deploy.redact import Redactor
from midstream.deploy.verdict import Facts, judge
from midstream.errors import AppError, AttentionError, HostError, InterruptedDeploy, LockedError, OperatorError

NOW_S = 1_795_287_901.0  # 2026-11-21 19:05:01 UTC
R1, R2 = "20261121190501", "20261121190502"


# ---------------------------------------------------------------------- redaction


@pytest.mark.parametrize(
    "text",
    [
        "KEY=hunter2/hunter2",
        "https://u:hunter2%2Fhunter2@example.com",
        '{"key": "hunter2/hunter2"}',
        "hunter2/hunter2hunter2/hunter2",
    ],
)
def test_a_secret_is_taken_out_in_every_form(text: str) -> None:
    assert "hunter2" not in Redactor({"KEY": "hunter2/hunter2"})(text)
    assert "[KEY]" in Redactor({"KEY": "hunter2/hunter2"})(text)


def test_lines_and_json_of_a_multi_line_secret_are_taken_out() -> None:
    value = '-----BEGIN-----\nabc"def\n-----END-----\n'
    redact = Redactor({"PEM": value})
    assert redact('  abc"def') == "  [PEM]"
    assert "def" not in redact(json.dumps({"pem": value}))


def test_a_short_secret_is_taken_out_as_a_word_and_blanks_nothing_else() -> None:
    redact = Redactor({"PIN": "12"})
    assert redact("pin 12, port 8123, 12.5 s") == "pin [PIN], port 8123, [PIN].5 s"


def test_of_two_secrets_the_longer_wins() -> None:
    assert Redactor({"A": "abcd", "B": "abcdefgh"})("abcdefgh abcd") == "[B] [A]"


def test_no_secrets_changes_nothing_and_values_are_searched_through() -> None:
    assert Redactor({})("text") == "text"
    assert Redactor({"K": "secret"}).value({"a": ["secret", 1, {"b": "x secret"}]}) == {"a": ["[K]", 1, {"b": "x [K]"}]}


@given(st.dictionaries(st.sampled_from("ABC"), st.text(min_size=4), max_size=3), st.text(), st.text())
def test_no_long_secret_survives_whatever_surrounds_it(secrets: dict[str, str], before: str, after: str) -> None:
    redact = Redactor(secrets)
    for value in secrets.values():
        if value.strip() and not any(value.strip() in f"[{name}]" for name in secrets):
            assert value.strip() not in redact(f"{before}{value}{after}") or value.strip() in before + after


# ---------------------------------------------------------------------- verdicts


def facts(error: Exception, **more: object) -> Facts:
    return Facts(error, "web1", "production", "deploy", **more)  # type: ignore[arg-type]


def test_a_plain_failure_keeps_its_kind_and_says_where_what_serves_and_what_to_do() -> None:
    verdict = judge(facts(AppError("it does not boot", where="web"), before={"web1": R1}))
    assert (type(verdict), verdict.exit_code) == (AppError, 1)
    assert verdict.where == "web1: web"
    assert R1 in verdict.serving
    assert "midstream deploy production" in verdict.remedy


@pytest.mark.parametrize(
    ("error", "more", "exit_code"),
    [
        (OperatorError("no .env"), {}, 2),
        (LockedError("locked"), {}, 4),
        (InterruptedDeploy("interrupted"), {}, 130),
        (AppError("x"), {"put_back_failed": {"web2": HostError("gone")}}, 5),
        (AppError("x"), {"undecided": ("web2",)}, 5),
        (AppError("x"), {"migrated_release": R2}, 5),
        (InterruptedDeploy("x"), {"migrated_release": R2}, 5),
        (AppError("x"), {"went_on": ("db1",)}, 5),
        (AppError("x"), {"not_closed": {"web2": HostError("gone")}}, 1),
    ],
)
def test_the_worst_thing_decides_the_exit_code(error: Exception, more: dict[str, object], exit_code: int) -> None:
    assert judge(facts(error, **more)).exit_code == exit_code


def test_a_migration_that_stays_is_told_as_schema_and_code() -> None:
    verdict = judge(facts(AppError("x"), migrated_release=R2, before={"web1": R1}))
    assert isinstance(verdict, AttentionError)
    assert f"schema: {R2}, code: {R1}" in verdict.serving


def test_hosts_in_trouble_are_named() -> None:
    more = {"put_back_failed": {"web2": HostError("no space")}, "not_closed": {"web3": HostError("gone")}}
    text = str(judge(facts(AppError("x"), **more)))
    assert "web2 was NOT put back: no space" in text
    assert "web3" in text
    assert "by itself within 15 s" in text


def test_a_first_deploy_that_fails_says_that_nothing_serves() -> None:
    assert "nothing yet" in judge(facts(AppError("x"), before={"web1": ""})).serving


# ---------------------------------------------------------------------- release ids


def test_a_release_id_is_now_and_later_than_all_there_are() -> None:
    assert pick_release([], NOW_S) == R1
    assert pick_release(["20200101000000"], NOW_S) == R1
    assert pick_release([R1], NOW_S) == R2, "taken"
    assert pick_release(["20261121235959"], NOW_S) == "20261122000000", "the clock of another deployer is ahead"


def test_a_release_from_the_far_future_is_a_mistake_and_not_followed() -> None:
    assert pick_release(["99991231235959"], NOW_S) == R1
    assert pick_release(["20261399999999"], NOW_S) == R1, "no date at all"


@given(st.lists(st.from_regex(r"\A[0-9]{14}\Z")))
def test_the_id_is_always_free(taken: list[str]) -> None:
    picked = pick_release(taken, NOW_S)
    assert is_release(picked)
    assert picked not in taken or any(not _is_date(release) for release in taken)


def _is_date(release: str) -> bool:
    from midstream.core.releases import next_release_id

    try:
        next_release_id(release)
    except (ValueError, OverflowError):
        return False
    return True


# ---------------------------------------------------------------------- places


def test_root_has_the_system_places_and_others_have_xdgs() -> None:
    root = places(env={}, uid=0)
    assert (root.state, root.socket) == ("/var/lib/midstream", "/run/midstream/agent.sock")
    env = {"HOME": "/home/anna", "XDG_RUNTIME_DIR": "/run/user/1000"}
    user = places(env=env, uid=1000)
    assert (user.state, user.socket) == ("/home/anna/.local/state/midstream", "/run/user/1000/midstream/agent.sock")


def test_an_agent_with_a_state_of_its_own_shares_no_runtime_folder() -> None:
    one = places(state="/tmp/m", env={}, uid=0)
    assert (one.runtime, one.socket) == ("/tmp/m/run", "/tmp/m/run/agent.sock")
    two = places(state="/tmp/m", socket="/tmp/x.sock", env={}, uid=0)
    assert (two.runtime, two.socket) == ("/tmp/m/run", "/tmp/x.sock")


def test_which_socket_is_asked() -> None:
    assert socket_to_ask("/a.sock", {"MIDSTREAM_SOCKET": "/b.sock"}) == "/a.sock"
    assert socket_to_ask("", {"MIDSTREAM_SOCKET": "/b.sock"}) == "/b.sock"


# ---------------------------------------------------------------------- the record


def memo(deploy_id: str = "20261121T190501-aa", **more: str) -> Memo:
    return Memo(deploy_id, "deploy", "shop", "production", "/x/midstream.toml", "/a.sock", "anna", **more)  # type: ignore[arg-type]


def test_a_record_remembers_how_far_a_deploy_came(tmp_path: Path) -> None:
    record = Record(str(tmp_path), memo(), print)
    record.begin()
    record.event(Event(EventKind.STATE, text="publishing", release=R1))
    record.event(Event(EventKind.LINE, host="web1", step="deploy:build", text="\x1b[31mred"))
    record.close()
    found = last_memo(str(tmp_path), "shop", "production")
    assert found is not None
    assert (found.state, found.release) == ("publishing", R1)
    assert memo_of(str(tmp_path), found.deploy_id) == found
    log = Path(record.log_path).read_text()
    assert "\x1b" not in log
    assert "red" in log
    assert (Path(record.log_path).stat().st_mode & 0o077, tmp_path.stat().st_mode & 0o700) == (0, 0o700)


def test_two_processes_cannot_run_one_deploy(tmp_path: Path) -> None:
    first, second = Record(str(tmp_path), memo(), print), Record(str(tmp_path), memo(), print)
    first.begin()
    with pytest.raises(LockedError, match="still being run"):
        second.begin()
    first.close()
    second.begin()
    second.ended(ENDED[1])


def test_a_disk_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    record = Record(str(tmp_path / "file" / "deploys"), memo(), said.append)
    record.begin()
    record.line("text")
    record.event(Event(EventKind.STATE, text="opened"))
    record.close()
    assert len(said) == 1


def test_a_deploy_that_was_refused_hides_no_unfinished_one(tmp_path: Path) -> None:
    """A deployer is killed, the next deploy is refused because of it: `midstream resume` means the first."""
    killed = Record(str(tmp_path), memo("20261121T190501-aa"), print)
    killed.begin()
    killed.event(Event(EventKind.STATE, text="publishing", release=R1))
    killed.close()
    refused = Record(str(tmp_path), memo("20261121T190502-bb"), print)
    refused.begin()
    refused.ended(UNTOUCHED)
    found = last_memo(str(tmp_path), "shop", "production")
    assert found is not None and found.deploy_id == killed.memo.deploy_id
    done = Record(str(tmp_path), memo("20261121T190503-cc"), print)
    done.begin()
    done.ended(ENDED[0])
    found = last_memo(str(tmp_path), "shop", "production")
    assert found is not None and found.state in ENDED, "what came after it and went through has settled it"


def test_other_apps_and_spoilt_records_are_passed_over(tmp_path: Path) -> None:
    Record(str(tmp_path), memo("20261121T190501-aa"), print).begin()
    (tmp_path / "20261121T190502-bb.json").write_text("{")
    assert last_memo(str(tmp_path), "blog") is None
    assert last_memo(str(tmp_path), "shop", "staging") is None
    assert last_memo(str(tmp_path), "shop") is not None


def test_a_deploy_sorts_after_the_last_one_also_when_the_clock_was_set_back(tmp_path: Path) -> None:
    now = datetime(2026, 11, 19, 19, 5, 1, tzinfo=UTC)
    for number in range(KEPT):
        Record(str(tmp_path), memo(f"20261121T1905{number:02}-aa", state=ENDED[0]), print).begin()
    late = Record(str(tmp_path), memo(new_deploy_id(now, folder=str(tmp_path))), print)
    late.begin()
    late.event(Event(EventKind.STATE, text="publishing", release=R1))
    late.close()
    found = last_memo(str(tmp_path), "shop", "production")
    assert found is not None and found.deploy_id == late.memo.deploy_id, "`resume` carries this one on"
    assert late.memo.deploy_id.startswith("20261121T190550-")
    (tmp_path / "20269999T000000-x.json").write_text("{}")
    assert new_deploy_id(now, folder=str(tmp_path)).startswith("20261119T190501-"), "a stranger's file is no moment"
    assert new_deploy_id(now, folder=str(tmp_path / "none")).startswith("20261119T190501-")


# ---------------------------------------------------------------------- words for people


def test_clocks_that_differ_are_told_and_slow_answers_are_no_difference() -> None:
    seen = {"ahead": NOW_S + 3 * 86400, "behind": NOW_S - 3600, "right": NOW_S + 8, "a bit off": NOW_S - 50}
    assert clock_lines({host: {"time": time_s} for host, time_s in seen.items()}, NOW_S, NOW_S + 15) == [
        "ahead: its clock is 3d ahead of this one's; the times that it tells are its own",
        "behind: its clock is 1h behind this one's; the times that it tells are its own",
    ]
    assert clock_lines({"old": {}}, NOW_S, NOW_S) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.04, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (61, "1m 1s"), (3600, "1h"), (90061, "1d 1h")],
)
def test_spans(seconds: float | None, text: str) -> None:
    assert output.span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (512, "512"), (2048, "2.0K"), (31 * 2**20, "31M"), (3 * 2**30, "3.0G")]
)
def test_sizes(count: int | None, text: str) -> None:
    assert output.size(count) == text


def test_tables_line_up_with_wide_letters_and_colours() -> None:
    import click

    rows = [("a", "数据", "x"), (click.style("bb", fg="red"), "b", "y")]
    lines = [click.unstyle(line) for line in output.table(("K", "NAME", "Z"), rows).splitlines()]
    assert lines == ["K   NAME  Z", "a   数据  x", "bb  b     y"]


def test_control_bytes_are_shown() -> None:
    assert output.clean("a\x1b[2Jb\x9b\tc") == "a\\x1b[2Jb\\x9b\tc"


# ---------------------------------------------------------------------- status

INSTANCE = {
    "slot": 0,
    "pid": 7,
    "state": "ready",
    "ready": True,
    "release_running": R1,
    "uptime_s": 5.0,
    "restarts": 0,
    "memory_bytes": 1,
    "status_text": "",
    "last_exit": None,
}


def a_status(state: str = "running", want: str = "up", runs: str = R1, **app: object) -> dict[str, object]:
    generation = {
        "generation": 3,
        "release": R1,
        "state": "committed",
        "parked": False,
        "since_s": 1.0,
        "note": "",
        "instances": [{**INSTANCE, "release_running": runs}],
    }
    service = {"service": "web", "want": want, "state": state, "hold": None, "generations": [generation]}
    head = {"app": "shop", "stage": "production", "release": R1, "revision": "1" * 40, "branch": "main"}
    one = {**head, "current": R1, "lock": None, "deploy": None, "services": [service], "drift": [], **app}
    agent = {"pid": 2, "uptime_s": 1.0, "version": "1"}
    return {"host": "h", "agent": agent, "keeper": {"pid": 1, "attached": True}, "apps": [one]}


@pytest.mark.parametrize(
    ("status", "bad"),
    [
        (a_status(), False),
        (a_status("backoff"), True),
        (a_status("degraded"), True),
        (a_status("stopped"), True),
        (a_status("stopped", want="down"), True),
        (a_status("held"), False),
        (a_status("handover"), False),
        (a_status(runs=R2), True),
        (a_status(drift=[{"kind": "current", "expected": R1, "found": R2}]), True),
        (a_status(drift=[{"service": "web", "slot": 0, "kind": "down", "expected": R1, "found": "no process"}]), True),
    ],
)
def test_what_status_check_is_not_content_with(status: dict[str, object], bad: bool) -> None:
    assert bool(problems(status)) is bad


def test_one_drift_is_reported_once() -> None:
    drift = [{"service": "web", "slot": 0, "pid": 7, "kind": "release", "expected": R1, "found": R2}]
    assert len(problems(a_status(runs=R2, drift=drift))) == 1


def test_status_shows_drift_beside_its_process() -> None:
    text = status_text(a_status(runs=R2))
    row = next(line for line in text.splitlines() if line.startswith("web/0"))
    assert R2 in row
    assert f"DRIFT: should run {R1}" in row
