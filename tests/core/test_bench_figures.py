"""The arithmetic of the benchmarks: what becomes a figure, a verdict and a table. No server is measured here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(scope="module")
def bench() -> Any:
    """The benchmarks' own modules, which lie beside each other and not in a package."""
    sys.path.append(str(BENCH))
    yield importlib.import_module
    sys.path.remove(str(BENCH))


def record(bench: Any, *items: tuple[str, str, float]) -> dict[str, Any]:
    measurement = bench("measurement").Measurement
    machine = {"cores": 2, "cpu": "x", "memory_gb": 1, "kernel": "6", "python": "3.11", "load": "0"}
    measured = [measurement(metric, subject, value, "µs").to_json() for metric, subject, value in items]
    return {"date": "", "quick": False, "runs": 1, "machine": machine, "versions": {}, "measurements": measured}


def test_percentile_is_a_value_that_was_measured(bench: Any) -> None:
    percentile = bench("measurement").percentile
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 0.99), percentile(values, 0.5), percentile([7.0], 0.99)) == (99.0, 50.0, 7.0)
    with pytest.raises(ValueError):
        percentile([], 0.99)


@pytest.mark.parametrize(("ours", "peer", "verdict"), [(9.0, 10.0, True), (9.1, 10.0, False), (9.0, 0.0, None)])
def test_a_budget_beside_a_peer_is_judged_by_the_ratio_of_medians(
    bench: Any, ours: float, peer: float, verdict: bool | None
) -> None:
    budgets, summed_up = bench("budgets"), bench("measurement").summed_up
    measured = [("m", "midstream", 1.0), ("m", "midstream", ours), ("m", "midstream", 99.0), ("m", "granian", peer)]
    found = summed_up(bench("report").measurements(record(bench, *measured)))
    judged = budgets.judge(budgets.Budget("m", "", "", 0.9, "granian"), found["m"])
    assert judged.passed is verdict


def test_the_worst_run_counts_where_nothing_may_fail(bench: Any) -> None:
    budgets = bench("budgets")
    measured = [("m", "midstream", 0.0), ("m", "midstream", 0.0), ("m", "midstream", 1.0)]
    found = bench("measurement").summed_up(bench("report").measurements(record(bench, *measured)))
    assert budgets.judge(budgets.Budget("m", "", "0", 0.0, worst=True), found["m"]).passed is False


def test_two_budgets_of_a_metric_stand_in_one_row(bench: Any) -> None:
    measured = [
        ("wsgi_closing_us", "midstream", 90.0),
        ("wsgi_closing_us", "granian", 60.0),
        ("wsgi_closing_us", "gunicorn sync", 200.0),
    ]
    page = bench("report").page(record(bench, *measured))
    assert (
        "| closing, 4 clients | 90 | 60 | 200 | 1.50 of granian, 0.45 of gunicorn sync | "
        "≤ 1.6 of granian, ≤ 0.4 of gunicorn sync | pass, OVER |"
    ) in page


def test_a_peer_that_is_missing_is_named_with_the_reason(bench: Any) -> None:
    measured = record(bench, ("wsgi_c4_us", "midstream", 20.0))
    absent = bench("measurement").absent("wsgi_c4_us", "puma", "µs", "puma is not installed")
    measured["measurements"].append(absent.to_json())
    page = bench("report").page(measured)
    assert "| keep-alive, 4 clients | 20 | - |" in page
    assert "- puma: puma is not installed (wsgi_c4_us)\n" in page


def test_upgrades_are_a_row_a_server_and_a_last_one_for_our_budget(bench: Any) -> None:
    measured = [
        ("upgrade_failed", "midstream", 0.0),
        ("upgrade_failed", "gunicorn", 7.0),
        ("upgrade_s", "midstream", 1.5),
    ]
    page = bench("report").page(record(bench, *measured))
    assert "| midstream | 0 | 1.5 |" in page
    assert "| gunicorn | 7 |  |" in page
    assert "| budget | 0 pass |  |" in page


def test_every_workload_has_its_row(bench: Any) -> None:
    sections = bench("server_budgets").SERVER_SECTIONS
    metrics = {budget.metric for section in sections for budget in section.budgets}
    for workload in bench("workloads").WORKLOADS:
        for interface in workload.interfaces:
            assert {f"{interface}_{workload.key}_us", f"{interface}_{workload.key}_rps"} <= metrics


def test_wrk_is_believed_only_when_every_answer_was_good(bench: Any) -> None:
    wrk = bench("wrk")
    said = "  31415 requests in 1.10s, 4.13MB read\nRequests/sec:  28559.09\n"
    assert wrk.counts(said) == wrk.Counts(31415, 1.1)
    for more in ("Non-2xx or 3xx responses: 3", "Socket errors: connect 0, read 4, write 0, timeout 0"):
        with pytest.raises(RuntimeError):
            wrk.counts(said + more)
    with pytest.raises(RuntimeError):
        wrk.counts("  0 requests in 1.10s, 0.00B read")


def test_the_gap_is_that_of_new_connections_while_kept_ones_are_answered(bench: Any) -> None:
    upgrading = bench("cases.upgrading")
    kept = [upgrading.Answer(at / 10, 0.0, True, True, "1") for at in range(100)]
    closing = [upgrading.Answer(at, 0.0, True, False, "1") for at in (0.5, 1.0, 1.5, 6.0, 6.5)]
    failed = [upgrading.Answer(3.0, 0.0, False, False, "closing: refused")]
    assert upgrading.longest_gap_s(upgrading.Story([0.5], [6.5], "", [*kept, *closing, *failed])) == 4.5
    assert upgrading.longest_gap_s(upgrading.Story([0.5], [6.5], "", kept)) == 6.0


def test_an_upgrade_that_never_ends_does_not_hide_those_before_it(bench: Any) -> None:
    upgrading = bench("cases.upgrading")
    answers = [upgrading.Answer(at / 10, 0.0, True, kept, "1") for at in range(20) for kept in (True, False)]
    judged = upgrading._judged("x", upgrading.Story([0.0], [1.5], "upgrade 2: not seen", answers))
    found = {item.metric: item.value for item in judged}
    assert (found["upgrade_count"], found["upgrade_vain"], found["upgrade_s"]) == (1, 1, 0.5)
    with pytest.raises(TimeoutError, match="upgrade 1"):
        upgrading._judged("x", upgrading.Story([], [], "upgrade 1: not seen", answers))
