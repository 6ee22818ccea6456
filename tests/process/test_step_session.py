"""The process that the steps of a deploy share: real ones, asked as the agent asks them."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from step_programs import Repository

from midstream.agent import step_session
from midstream.agent.accounts import account_of_uid
from midstream.agent.oneshots import Outcome
from midstream.agent.step_requests import request_file
from midstream.agent.step_session import StepSession
from midstream.core import steps
from midstream.core.messages import ProcessKind, SpawnSpec
from midstream.errors import MidstreamError, OperatorError

PATIENCE_S = 60.0


class Session:
    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PLACE_AND_RUN, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,  # or select would not see what was read along
        )
        theirs.close()
        self.lines: list[str] = []

    def send(self, name: str, request: object, *fds: int) -> None:
        with request_file(name, request) as body:
            socket.send_fds(self.sock, [name.encode()], [body, *fds])

    def result(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], PATIENCE_S)[0]:
            line = self.process.stdout.readline().decode().rstrip("\n")
            if line.startswith(steps.RESULT_MARK):
                return steps.read_result(line)
            assert line, f"it ended: {self.lines}"
            self.lines.append(line)
        raise AssertionError("no answer")


_PLACE_AND_RUN = (
    "import os, sys; from midstream.steps.program import main; os.dup2(int(sys.argv[1]), 3); os.closerange(4, 99);"
    'sys.exit(main(["session"]))'
)


@pytest.fixture
def session() -> Iterator[Session]:
    opened = Session()
    yield opened
    opened.sock.close()
    opened.process.kill()
    opened.process.wait()


def prepare(folder: Path, **more: Any) -> steps.Prepare:
    return steps.Prepare(str(folder), **more)


def test_steps_are_answered_in_their_order_by_one_process(session: Session, tmp_path: Path) -> None:
    for name in ("one", "two"):
        session.send("prepare", prepare(tmp_path / name))
    assert [session.result()["current"] for _ in "12"] == [None, None]
    session.send("inspect", steps.Inspect(str(tmp_path / "one")))
    assert session.result()["releases"] == []
    assert (tmp_path / "two/releases").is_dir()


def test_a_step_that_fails_leaves_the_process_whole_and_its_lock_free(session: Session, tmp_path: Path) -> None:
    session.send("prepare", prepare(tmp_path, linked_files=("absent",)))
    with pytest.raises(OperatorError, match="linked file"):
        session.result()
    session.send("cleanup", steps.Cleanup(str(tmp_path), 5))
    assert session.result()["removed"] == []


def deploy(session: Session, repository: Repository, folder: str, number: int) -> None:
    release, sha = f"2026112207000{number}", repository.commit({"app.py": f"{number}"})
    for name, request in (
        ("prepare", steps.Prepare(folder)),
        ("fetch", steps.Fetch(folder, str(repository.path), "main", sha)),
        ("make_release", steps.MakeRelease(folder, f"d{number}", release, sha)),
        ("store_spec", steps.StoreSpec(folder, release)),
        ("switch", steps.Switch(folder, release)),
        ("cleanup", steps.Cleanup(folder, 1, committed=release, current=release)),
        ("inspect", steps.Inspect(folder)),
        ("read_spec", steps.ReadSpec(folder, release)),
    ):
        session.send(name, request)
        session.result()
    session.send("make_release", steps.MakeRelease(folder, "other", release, "0" * 40))
    with pytest.raises(MidstreamError):
        session.result()


def test_what_comes_next_is_loaded_while_nobody_asks(session: Session, tmp_path: Path) -> None:
    """The next step finds it there. Told by ctypes, which only `specs` needs, and its library in the process."""
    maps = Path(f"/proc/{session.process.pid}/maps")
    session.send("prepare", prepare(tmp_path))
    assert session.result()["releases"] == []
    deadline_s = time.monotonic() + PATIENCE_S
    while "ctypes" not in maps.read_text():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_no_descriptor_stays_open_from_deploy_to_deploy(session: Session, tmp_path: Path) -> None:
    """It would end in EMFILE one day; and what a step is given, the next one must not see."""
    folder = f"/proc/{session.process.pid}/fd"
    repository = Repository(tmp_path / "repository")
    counts = []
    for number in range(3):
        deploy(session, repository, str(tmp_path / "app"), number)
        with open(tmp_path / "pack", "wb+") as pack:
            session.send("inspect", steps.Inspect(str(tmp_path / "app")), *([pack.fileno()] if number % 2 else []))
            assert session.result()["releases"] == [f"2026112207000{number}"]
        counts.append(len(targets(folder)))
    assert len(set(counts)) == 1
    deadline_s = time.monotonic() + PATIENCE_S
    while any("pack" in target or "memfd" in target for target in targets(folder)):  # it answers, then lets go
        assert time.monotonic() < deadline_s


def targets(folder: str) -> list[str]:
    return [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]


def test_it_ends_when_the_agent_hangs_up_after_the_step_in_hand(session: Session, tmp_path: Path) -> None:
    session.send("prepare", prepare(tmp_path / "app"))
    session.sock.close()
    assert session.process.wait(PATIENCE_S) == 0
    assert (tmp_path / "app/releases").is_dir()


@pytest.mark.parametrize("name", ["several-of-nothing", "../prepare", ""])
def test_what_is_no_step_ends_it(session: Session, name: str, tmp_path: Path) -> None:
    with (tmp_path / "request").open("w+") as file:
        json.dump({}, file)
        file.flush()
        socket.send_fds(session.sock, [name.encode() or b" "], [file.fileno()])
    assert session.process.wait(PATIENCE_S) == 2


class OneProcess:
    """The agent's one-shots, of which this is the only one: it says what the test says, and ends when the test lets it."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.stopped: list[str] = []

    async def run(self, spec: SpawnSpec, *, fds: tuple[int, ...], on_end: Any, **told: Any) -> Outcome:
        self.asked = socket.socket(fileno=os.dup(fds[0]))
        self.told = told
        outcome = await self.ended
        on_end(outcome)
        return outcome

    async def stop(self, key: str) -> None:
        self.stopped.append(key)
        self.ended.set_result(Outcome(None, "killed by SIGKILL"))

    def answer(self) -> None:
        self.told["on_result"](steps.result_line({"n": 1}))


async def begun() -> tuple[OneProcess, StepSession]:
    process = OneProcess()
    program = SpawnSpec("shop/+steps/1/0/0", ("steps",), {}, "/", ProcessKind.ONE_SHOT)
    opened = StepSession(process, program, account_of_uid(os.getuid()))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    return process, opened


async def step(opened: StepSession, timeout_s: float = PATIENCE_S) -> Outcome:
    with request_file("inspect", steps.Inspect("/")) as body:
        return await opened.run("inspect", body, (), timeout_s=timeout_s, on_line=lambda line: None)


def test_a_process_that_is_killed_while_it_waits_is_not_the_next_steps_fault() -> None:
    async def story() -> None:
        process, opened = await begun()
        first = asyncio.create_task(step(opened))
        await asyncio.sleep(0)
        process.answer()
        assert steps.read_result((await first).result) == {"n": 1} and opened.is_free
        second = asyncio.create_task(step(opened))
        await asyncio.sleep(0)
        process.ended.set_result(Outcome(None, "killed by SIGKILL"))
        assert (await second).lost and opened.is_over

    asyncio.run(story())


def test_a_step_that_has_its_process_killed_is_told_so() -> None:
    async def story() -> None:
        process, opened = await begun()
        only = asyncio.create_task(step(opened))
        await asyncio.sleep(0)
        process.ended.set_result(Outcome(None, "killed by SIGKILL"))
        outcome = await only
        assert not outcome.lost and outcome.text == "killed by SIGKILL" and not outcome.result

    asyncio.run(story())


def test_a_step_that_hangs_is_ended_with_its_process() -> None:
    async def story() -> None:
        process, opened = await begun()
        outcome = await step(opened, timeout_s=0.01)
        assert outcome.timed_out and not outcome.lost and process.stopped and opened.is_over

    asyncio.run(story())


def test_an_interrupted_step_has_the_process_end_after_it() -> None:
    """What it answers then must not be taken for the answer to the next step."""

    async def story() -> None:
        process, opened = await begun()
        only = asyncio.create_task(step(opened))
        await asyncio.sleep(0)
        only.cancel()
        await asyncio.gather(only, return_exceptions=True)
        assert opened.is_over and not opened.is_free
        assert process.asked.recv(64) == b"inspect"
        process.answer()
        process.ended.set_result(Outcome(0, "exit 0"))
        await opened.life

    asyncio.run(story())


def test_a_process_that_nobody_needs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_session, "IDLE_S", 0.01)

    async def story() -> None:
        process, opened = await begun()
        only = asyncio.create_task(step(opened))
        await asyncio.sleep(0)
        process.answer()
        await only
        while not opened.is_over:
            await asyncio.sleep(0.01)
        process.ended.set_result(Outcome(0, "exit 0"))
        await opened.life

    asyncio.run(story())
