"""What several hosts say alike is told once, with all their names; and what the summary of a deploy keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_control_runner import app_spec, deploy, on_fleet

from midstream.cli.ask import Answer, Answers
from midstream.deploy import runner
from midstream.errors import HostError, OperatorError
from midstream.testing.fake_agent import FakeAgent


def _not_there(host: str) -> HostError:
    return HostError("midstream is not there", where=host, remedy=f"install it: `midstream agent install {host}`")


def test_the_same_error_of_several_hosts_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    rows: tuple[Answer[int], ...] = tuple(
        Answer(host, error=_not_there(host)) for host in ("deploy@web1", "deploy@web10")
    )
    other: Answer[int] = Answer("deploy@db1", error=OperatorError("port 80 needs a grant", where="services.web.listen"))
    assert Answers((*rows, other), several=True).conclude() == 1
    assert capsys.readouterr().err == (
        "midstream: deploy@web1, deploy@web10: midstream is not there\n"
        "  do:      install it: `midstream agent install HOST`\n"
        "midstream: deploy@db1: port 80 needs a grant\n"
        "  where:   services.web.listen\n"
    )


def test_what_differs_between_hosts_is_told_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    rows: tuple[Answer[int], ...] = tuple(
        Answer(host, error=HostError(f"{free} free", where=host)) for host, free in (("a", 1), ("b", 2))
    )
    assert Answers(rows, several=True).conclude() == 1
    assert capsys.readouterr().err == "midstream: 1 free\n  where:   a\nmidstream: 2 free\n  where:   b\n"


def test_the_summary_names_the_services_of_a_host_that_was_asked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PROOF_GOOD_FOR_S", 0.0)

    @on_fleet(tmp_path, "web1", "batch1")
    async def story(agents: dict[str, FakeAgent]) -> None:
        outcome = await deploy(agents, {"web1": app_spec("web"), "batch1": app_spec("batch")})
        assert agents["web1"].methods().count("deploy.publish") == 2
        assert [[row["service"] for row in host.services] for host in outcome.hosts] == [["web"], ["jobs"]]
