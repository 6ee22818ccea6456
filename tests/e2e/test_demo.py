"""`midstream demo`: it ends well, it tells the truth when something was lost, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from midstream.cli.demo import own_wheel, picture, report
from midstream.cli.demo.board import Board, Handover, Kill
from midstream.cli.demo.clients import Sample, Seen
from midstream.cli.demo.evidence import Began, Fact, Job, Verdict, judge, read_log, reigns
from midstream.cli.demo.orders import OrderBook
from midstream.cli.demo.place import processes_of
from midstream.cli.demo.project_kind import Prospect
from midstream.cli.demo.small_project import small
from midstream.cli.demo.story import Ending
from midstream.cli.demo.wheels import drop_translations

MIDSTREAM = [sys.executable, "-m", "midstream"]


@dataclass(frozen=True)
class Played:
    """A demo that was run to its end. folder: its temporary one."""

    code: int
    summary: dict[str, Any]
    lines: list[str]
    folder: str
    picture: Path


def play(tmp_path: Path, *args: str, program: list[str] | None = None, timeout_s: float = 170.0) -> Played:
    page = tmp_path / "latency.html"
    command = [*(program or [*MIDSTREAM, "demo"]), "--json", "--picture", str(page), *args]
    done = subprocess.run(
        command, env=environment(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows and rows[-1]["type"] == "summary", done.stdout + done.stderr
    lines = [row["text"] for row in rows[:-1]]
    return Played(done.returncode, rows[-1], lines, folder_of(lines), page)


def troubles(played: Played) -> str:
    """What a demo that did not end well says about it."""
    summary = played.summary
    told = {name: summary[name] for name in ("failed", "stale", "stale_jobs", "orders", "drift")}
    unmeant = [one for one in summary["handovers"] if not one["as_meant"]]
    failures = [line for client in summary["clients"] for line in client["failures"]]
    return json.dumps({**told, "unmeant": unmeant, "failures": failures, "lines": played.lines}, indent=1)


def environment(tmp_path: Path) -> dict[str, str]:
    """Without a display, and with this test's own folder for what is temporary."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MIDSTREAM", "DISPLAY", "WAYLAND"))
    }
    folder = tmp_path / "t"
    folder.mkdir(exist_ok=True)
    return kept | {"TMPDIR": str(folder)}


def folder_of(lines: list[str]) -> str:
    return next(line.removeprefix("everything is in ") for line in lines if line.startswith("everything is in "))


def gone(folder: str, timeout_s: float = 30.0) -> bool:
    """Whether no process of the demo is left; looks again for a while."""
    deadline = time.monotonic() + timeout_s
    while processes_of(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return play(tmp_path_factory.mktemp("demo"), "--quick")


# ------------------------------------------------------------------------------------------- a whole demo


def test_not_a_request_is_lost_and_nothing_stale_is_started(quick: Played) -> None:
    assert quick.code == 0, troubles(quick)
    assert quick.summary["ok"] is True
    assert quick.summary["requests"] > 300
    assert quick.summary["failed"] == 0
    assert quick.summary["stale"] == []
    assert quick.summary["stale_jobs"] == []
    assert quick.summary["processes"] > 12  # six handovers of two services; the log was written and was read
    assert quick.summary["jobs"] > 20


def test_both_kinds_of_clients_were_there_in_each_handover(quick: Played) -> None:
    kinds = {client["kind"]: client["requests"] for client in quick.summary["clients"]}
    assert kinds["page, keep-alive"] > 50
    assert kinds["page, closing"] > 50
    assert kinds["slow page, keep-alive"] > 5
    assert all(handover["requests"] > 0 for handover in quick.summary["handovers"][1:])


def test_good_releases_are_committed_and_bad_ones_put_back(quick: Played) -> None:
    found = [(one["label"], one["committed"], one["as_meant"]) for one in quick.summary["handovers"]]
    assert found == [
        ("release 1", True, True),
        ("release 2", True, True),
        ("release 3", True, True),
        ("release 4", False, True),
        ("release 5", False, True),
        ("back to release 2", True, True),
    ]
    assert "exit 3" in quick.summary["handovers"][3]["reason"]
    assert "500" in quick.summary["handovers"][4]["reason"]


def test_the_code_that_was_committed_is_that_of_the_story(quick: Played) -> None:
    """By the agent's journal: releases 1, 2, 3, and 2 again; for the web server and for the worker."""
    first, second, third = (quick.summary["handovers"][index]["release"] for index in range(3))
    for service in ("web", "jobs"):
        committed = [row["release"] for row in quick.summary["committed"] if row["service"] == service]
        assert committed == [first, second, third, second]


def test_worker_and_agent_were_killed(quick: Played) -> None:
    killed = [kill["what"] for kill in quick.summary["kills"]]
    assert killed.count("worker") >= 3
    assert killed.count("agent") == 1
    assert any("the agent is back" in line for line in quick.lines)


def test_nothing_is_left_but_the_picture(quick: Played) -> None:
    assert processes_of(quick.folder) == []
    assert not Path(quick.folder).exists()
    assert list(Path(quick.folder).parent.iterdir()) == []
    svg = quick.picture.read_text(encoding="utf-8").partition("<svg viewBox")[2].partition("</svg>")[0]
    drawing = ElementTree.fromstring(f"<svg viewBox{svg}</svg>")
    kinds = [element.get("class") for element in drawing.iter("rect")]
    assert (kinds.count("band"), kinds.count("refused")) == (3, 2)


# ------------------------------------------------------------------------------------------- when things go wrong


SPOILED = """
import sys
from dataclasses import replace
from midstream.cli.demo import run, small_project
kind = small_project.small()
first = kind.changes[0]
files = first.files | {"server.py": first.files["server.py"].replace("SIGTERM, server.drain", "SIGTERM, server.quit")}
assert files != first.files
run.small = lambda: replace(kind, changes=(replace(first, files=files), *kind.changes[1:]))
from midstream.cli.main import main
sys.argv[1:1] = ["demo", "--quick"]
main()
"""


@pytest.mark.slow
def test_a_server_that_drops_what_it_has_in_hand_is_told_and_exits_with_1(tmp_path: Path) -> None:
    """The same story with a server that ends at TERM at once: requests fail, and the demo says so."""
    played = play(tmp_path, program=[sys.executable, "-c", SPOILED])
    assert played.code == 1
    assert played.summary["ok"] is False
    assert played.summary["failed"] > 0
    assert sum(handover["failed"] for handover in played.summary["handovers"]) > 0
    assert 'class="failure"' in played.picture.read_text(encoding="utf-8").partition("</svg>")[0]
    assert gone(played.folder)


def test_without_a_first_release_it_says_why_and_ends(tmp_path: Path) -> None:
    """Nobody is asked for pages that nobody can answer."""
    program = SPOILED.replace("SIGTERM, server.drain", "def misbehaviour()").replace(
        "SIGTERM, server.quit", "def misbehaviour_no_more()"
    )
    assert program != SPOILED
    done = subprocess.run(
        [sys.executable, "-c", program, "--json"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "release 1 of the demo could not be deployed" in done.stderr
    assert "misbehaviour" in done.stderr  # the traceback of the service, as the deploy told it
    assert "clients begin" not in done.stdout
    assert list((tmp_path / "t").iterdir()) == []


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo whose clients are at work, and its folder."""
    process = subprocess.Popen(
        [*MIDSTREAM, "demo", "--quick", "--json"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines = []
    try:
        for row in process.stdout:
            lines.append(json.loads(row)["text"])
            if lines[-1].startswith("clients begin"):
                break
        yield process, folder_of(lines)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if lines and (folder := folder_of(lines)):
            gone(folder, 60.0)
            shutil.rmtree(
                folder, ignore_errors=True
            )  # of the demo that was killed: outside tmp_path where that is long


def test_an_interrupt_leaves_nothing(begun: tuple[subprocess.Popen[str], str]) -> None:
    process, folder = begun
    assert processes_of(folder)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert processes_of(folder) == []
    assert not Path(folder).exists()


def test_kill_9_of_the_demo_leaves_no_process(begun: tuple[subprocess.Popen[str], str]) -> None:
    """Its keeper then stops the services, the agent and itself."""
    process, folder = begun
    process.kill()
    assert gone(folder, 60.0), processes_of(folder)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_django_shop(tmp_path: Path) -> None:
    """The demo as people run it. Needs the package index."""
    played = play(tmp_path, timeout_s=380.0)
    assert played.code == 0, troubles(played)
    assert played.summary["failed"] == 0
    assert played.summary["stale"] == []
    assert played.summary["orders"]["placed"] == played.summary["orders"]["delivered"] > 10
    kinds = {client["kind"]: client["requests"] for client in played.summary["clients"]}
    assert kinds["order, closing"] > 5
    assert gone(played.folder)
    assert not Path(played.folder).exists()


# ------------------------------------------------------------------------------------------- the evidence


def facts(*rows: tuple[float, str, int, str, str, str]) -> list[Fact]:
    return [Fact(*row) for row in rows]


# Release A is deployed at 10, B at 20 (committed at 22), C is tried from 30 to 32 and put back.
STORY = facts(
    (10.0, "jobs", 1, "start", "attempt 0", "d1"),
    (11.0, "jobs", 1, "generation", "soaking -> committed", "d1"),
    (11.1, "", 1, "commit", "release A is committed", "d1"),
    (20.0, "jobs", 2, "start", "attempt 0", "d2"),
    (22.0, "jobs", 1, "generation", "committed -> draining", "d2"),
    (22.0, "jobs", 2, "generation", "soaking -> committed", "d2"),
    (22.1, "", 2, "commit", "release B is committed", "d2"),
    (30.0, "jobs", 3, "start", "attempt 0", "d3"),
    (32.0, "", 3, "revert", "release C was not proven", "d3"),
)
BROUGHT = {"d1": "A", "d2": "B", "d3": "C"}


@pytest.mark.parametrize(
    ("release", "moment", "stale"),
    [
        ("A", 8.0, True),  # before anything was asked for
        ("A", 10.5, False),  # being brought
        ("A", 15.0, False),  # committed
        ("A", 21.0, False),  # a crash in the middle of the handover: the committed one comes back
        ("A", 22.05, False),  # decided before the commit, forked just after it
        ("A", 22.5, True),  # the old release, started by somebody after the commit
        ("B", 15.0, True),  # the new release before its handover
        ("B", 19.5, False),  # forked before the keeper's answer was noted
        ("B", 21.0, False),
        ("B", 31.0, False),
        ("C", 31.0, False),  # on trial
        ("C", 33.0, True),  # put back, and yet started
        ("D", 31.0, True),  # nobody asked for it
    ],
)
def test_a_process_is_stale_unless_its_release_was_committed_or_being_brought(
    release: str, moment: float, stale: bool
) -> None:
    verdict = judge([Began(moment, 7, "jobs", release, False)], [], reigns(STORY, BROUGHT))
    assert bool(verdict.stale) is stale, verdict
    assert all(f"release {release}" in sentence for sentence in verdict.stale)


def test_an_agent_that_is_killed_notes_a_start_when_the_next_one_is_there() -> None:
    began = [Began(15.5, 7, "jobs", "B", False)]
    assert judge(began, [], reigns(STORY, BROUGHT)).stale
    assert not judge(began, [], reigns(STORY, BROUGHT, agent_killed=[16.0])).stale
    assert judge([Began(14.5, 7, "jobs", "B", False)], [], reigns(STORY, BROUGHT, agent_killed=[16.0])).stale


def test_a_job_taken_by_the_old_release_after_the_commit_is_stale() -> None:
    spans = reigns(STORY, BROUGHT)
    assert judge([], [Job(22.3, 7, "jobs", "A")], spans).stale_jobs == ()
    assert len(judge([], [Job(23.0, 7, "jobs", "A")], spans).stale_jobs) == 1


def test_another_services_commit_is_no_excuse() -> None:
    assert judge([Began(21.0, 7, "web", "B", False)], [], reigns(STORY, BROUGHT)).stale


def test_the_log_is_read_but_for_a_line_cut_by_a_kill() -> None:
    whole = {"what": "began", "time": 2.0, "pid": 3, "release": "A", "service": "web", "trying": True, "began": 1.5}
    job = {"what": "job", "time": 4.0, "pid": 3, "release": "A", "service": "jobs", "trying": False, "job": 1}
    began, jobs = read_log([json.dumps(whole), json.dumps(job), '{"what": "beg'])
    assert began == [Began(1.5, 3, "web", "A", True)]
    assert jobs == [Job(4.0, 3, "jobs", "A")]


# ------------------------------------------------------------------------------------------- the verdict


def ending(**changes: Any) -> Ending:
    """A good end of a short story, but for the changes."""
    board = Board("a shop", "/nowhere", began=100.0, wall_offset_s=0.0)
    board.handovers = [
        Handover("release 1", "deploy", Prospect.GOOD, begin=101.0, decided=102.0, committed=True, as_meant=True),
        Handover("release 2", "deploy", Prospect.ANSWERS_500, begin=106.0, decided=108.0, as_meant=True),
    ]
    board.kills = [Kill(107.0, 5, "worker", "A"), Kill(107.5, 6, "agent", "")]
    samples = tuple(Sample(103.0 + index / 10, 0.004, True) for index in range(60))
    good = Ending(
        board,
        (Seen("page, closing", 4, samples, (), 0),),
        Verdict(5, 1, 8, (), ()),
        tuple(reigns(STORY, BROUGHT)),
        OrderBook(3, 3),
        "",
    )
    return replace(good, **changes)


def test_a_good_end() -> None:
    assert ending().good
    assert report.as_json(ending())["ok"] is True
    assert "none failed" in report.text(ending())


FAILED = (Seen("page, closing", 4, (Sample(107.0, 0.2, False), Sample(107.5, 0.01, True)), ("reset <by> peer",), 0),)


@pytest.mark.parametrize(
    "changes",
    [
        {"seen": FAILED},
        {"seen": ()},
        {"verdict": Verdict(5, 1, 8, ("process 7 was stale",), ())},
        {"verdict": Verdict(5, 1, 8, (), ("process 7 took a job",))},
        {"orders": OrderBook(3, 2)},
        {"drift": "jobs/0 runs another release"},
    ],
    ids=["request failed", "no request", "stale process", "stale job", "order lost", "drift"],
)
def test_whatever_was_lost_is_no_good_end(changes: dict[str, Any]) -> None:
    bad = ending(**changes)
    assert not bad.good
    assert "did not go as it should" in report.text(bad)


def test_a_deploy_that_ended_otherwise_than_meant_is_no_good_end() -> None:
    bad = ending()
    bad.board.handovers[1].as_meant = False
    assert not bad.good


def test_a_failure_is_marked_in_the_picture_and_counted_in_its_handover() -> None:
    bad = ending(seen=FAILED)
    page = picture.page(bad)
    drawing = page.partition("<svg viewBox")[2].partition("</svg>")[0]
    marks = [
        e for e in ElementTree.fromstring(f"<svg viewBox{drawing}</svg>").iter("path") if e.get("class") == "failure"
    ]
    assert len(marks) == 1
    assert "1 failed" in page
    assert report.as_json(bad)["handovers"][1]["failed"] == 1


# ------------------------------------------------------------------------------------------- small parts


def test_the_small_project_is_a_project_of_one_file_each() -> None:
    kind = small()
    assert [change.prospect for change in kind.changes] == [
        Prospect.GOOD,
        Prospect.GOOD,
        Prospect.GOOD,
        Prospect.DOES_NOT_BOOT,
        Prospect.ANSWERS_500,
    ]


def test_releases_get_the_midstream_that_runs_the_demo(tmp_path: Path) -> None:
    """Its wheel can be installed, is a program, and asks the index for what pyproject.toml asks for."""
    wheel = own_wheel.build(tmp_path / "wheels")
    home = tmp_path / "venv"
    venv.create(home)
    pip = [sys.executable, "-m", "pip", "--python", str(home), "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True)
    told = subprocess.run([home / "bin" / "midstream", "serve", "--help"], capture_output=True, text=True, check=True)
    assert "--workers" in told.stdout
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert list(own_wheel.SERVE) == project["optional-dependencies"]["serve"]
    [metadata] = home.glob("lib/python3*/site-packages/midstream-*.dist-info/METADATA")
    needed = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist: ")]
    assert needed == [f'Requires-Dist: {one}; extra == "serve"' for one in own_wheel.SERVE]


def test_only_other_languages_go_out_of_a_wheel(tmp_path: Path) -> None:
    import zipfile

    names = [
        "django/conf/locale/__init__.py",
        "django/conf/locale/en/formats.py",
        "django/conf/locale/de/formats.py",
        "django/contrib/admin/locale/pt_BR/LC_MESSAGES/django.mo",
        "django/utils/translation.py",
    ]
    wheel = tmp_path / "django-5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in names:
            file.writestr(name, name)
        file.writestr("django-5.dist-info/RECORD", "".join(f"{name},sha256=x,1\n" for name in names))
    drop_translations(wheel)
    with zipfile.ZipFile(wheel) as file:
        assert file.namelist() == [names[0], names[1], names[4], "django-5.dist-info/RECORD"]
        assert file.read("django-5.dist-info/RECORD").decode().count("\n") == 3
        assert file.read(names[4]).decode() == names[4]
