"""The first article's case in short: deploys of Sidekiq on two hosts under a storm of kills. In full: tests/bench/article.py.

The counting is tried on made-up histories first: it has to find what the storm must never produce.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from crash_points import ALL
from fleet import why_no_fleet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import article_capistrano
import article_midstream
from article_counts import Counts, History, Line, Strike, Turn, count

DEPLOYS = 3 if ALL else 2
TURNS = {"batch1": History([Turn("r1", 0, 10, True), Turn("r2", 20, 30, False), Turn("r3", 40, 50, True)])}


def line(what: str, at_s: float, release: str, job: str = "-", pid: int = 7) -> Line:
    return Line("batch1", what, job, release, "", at_s, pid)


def counted(*lines: Line, strikes: tuple[Strike, ...] = ()) -> Counts:
    return count(lines, TURNS, strikes, {"j1": 0.0, "j2": 1.0})


@pytest.mark.parametrize(
    ("release", "at_s", "is_right"),
    [
        ("r1", 15, True),  # committed
        ("r1", 25, True),  # committed, while another is handed over to
        ("r2", 25, True),  # being handed over to
        ("r2", 31, False),  # put back
        ("r2", 19, False),  # not made yet
        ("r2", 19.98, False),
        ("r1", 49, True),
        ("r3", 49, True),
        ("r1", 51, False),  # old, after the switch
        ("r3", 51, True),
        ("r2", 51, False),
    ],
)
def test_what_may_run_when(release: str, at_s: float, is_right: bool) -> None:
    found = counted(line("boot", at_s, release), line("begin", at_s, release, "j1"), line("end", 99, release, "j1"))
    assert len(found.strays) == len(found.late) == (0 if is_right else 1)


def test_a_boot_is_known_to_a_tick_and_a_job_to_the_instant() -> None:
    found = counted(line("boot", 19.995, "r2"), line("begin", 19.995, "r2", "j1"), line("end", 99, "r2", "j1"))
    assert (found.strays, len(found.late)) == ((), 1)


def test_a_job_that_ends_late_on_old_code_is_right_and_one_that_never_ends_is_lost() -> None:
    found = counted(line("begin", 49, "r1", "j1"), line("end", 99, "r1", "j1"), line("begin", 49, "r1", "j2"))
    assert (found.late, found.lost, found.in_hand) == ((), ("j2",), ())


@pytest.mark.parametrize(("pid", "word", "is_lost"), [(7, "KILL", False), (7, "TERM", True), (8, "KILL", True)])
def test_only_what_a_sidekiq_killed_9_had_in_hand_is_counted_apart(pid: int, word: str, is_lost: bool) -> None:
    strike = Strike("batch1", "sidekiq", word, pid, 49.5, "")
    found = counted(
        line("begin", 48, "r1", "j1"), line("end", 48.1, "r1", "j1"), line("begin", 49, "r1", "j2"), strikes=(strike,)
    )
    assert (found.lost, found.in_hand) == ((("j2",), ()) if is_lost else ((), ("j2",)))


def test_a_deploy_that_was_put_back_and_resumed_has_two_turns() -> None:
    turns = list(article_midstream.lives("r2", [20.0, 21.0, 40.0], [30.0], 50.0, True))
    assert turns == [Turn("r2", 20, 30, False), Turn("r2", 40, 50, True)]
    assert list(article_midstream.lives("r2", [20.0], [30.0], 0.0, False)) == [Turn("r2", 20, 30, False)]
    assert list(article_midstream.lives("r2", [20.0], [], float("inf"), False)) == [Turn("r2", 20, float("inf"), False)]


def test_a_turn_whose_release_a_refused_resume_wrote_over_is_named_by_the_other_host() -> None:
    there = {"batch1": {"d1": [Turn("r2", 20, 30, False)]}, "batch2": {"d1": [Turn("", 21, 31, False)], "d2": []}}
    assert article_midstream.named(there) == {
        "batch1": {"d1": [Turn("r2", 20, 30, False)]},
        "batch2": {"d1": [Turn("r2", 21, 31, False)], "d2": []},
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("owner", ["agent", "monit"])
def test_deploys_under_a_storm(owner: str, tmp_path: Path) -> None:
    if why := why_no_fleet() or article_capistrano.missing("cap"):
        pytest.skip(why)
    found = article_midstream.replay(owner, DEPLOYS, storm=True, seed=4, keep=tmp_path / "records")
    assert found.strikes and found.counts and found.counts.jobs > 20
    assert not any(found.faults().values()), f"{found.faults()}, records in {tmp_path}\n{found.counts}\n{found.strikes}"
