"""Output of services over real FIFOs into real files: nothing lost, nobody blocked, whatever the disk does."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import resource
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.process.limits import limited

import midstream
from midstream.agent.logs import (
    ChannelName,
    LogEvent,
    LogLine,
    Logs,
    follow,
    intake,
    log_file,
    sink,
    unfinished,
    writer,
)
from midstream.core import logline
from midstream.core.spec import LogSpec
from midstream.errors import OperatorError
from midstream.linux.file_identity import FileUser

WEB = ChannelName("shop", "web", 42, 0)
PATIENCE_S = 60


class Desk:
    """Logs in a folder, with FIFOs as the keeper makes them: read-write, blocking, shared with the service."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder = folder
        self.events: list[LogEvent] = []
        self.now_s = 1_000_000_000.0
        self.logs = Logs(str(folder / "logs"), self.events.append, clock=lambda: self.now_s, **options)  # type: ignore[arg-type]
        self.ends: dict[ChannelName, int] = {}
        self.logs.start()

    def open(self, name: ChannelName = WEB) -> int:
        path = self.folder / str(name).replace("/", "_")
        if not path.exists():
            os.mkfifo(path)
        end = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.ends[name] = end
        self.logs.attach(name, os.dup(end))
        return end

    def file(self, service: str = "web", suffix: str = "") -> Path:
        return self.folder / "logs" / "shop" / f"{service}.log{suffix}"

    def stored(self, service: str = "web", suffix: str = "") -> list[bytes]:
        path = self.file(service, suffix)
        return [line.split(b" ", 2)[2] for line in path.read_bytes().splitlines()] if path.exists() else []

    async def told(self, kind: str) -> LogEvent:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := [event for event in self.events if event.kind == kind]):
                await asyncio.sleep(0.01)
            return found[0]

    async def answers(self, path: Path) -> None:
        """Until what hung has come to an end."""
        async with asyncio.timeout(PATIENCE_S):
            while not path.exists() or self.logs.sink("shop", "web")._hanging is not None:
                await asyncio.sleep(0.01)

    async def settled(self, name: ChannelName = WEB) -> None:
        """Until everything written so far has been dealt with: a marker through the same FIFO came out."""
        async with (
            asyncio.timeout(PATIENCE_S),
            contextlib.aclosing(self.logs.follow("shop", [name.service], 0)) as live,
        ):
            marker = asyncio.ensure_future(anext(_only(live, "marker")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.to_thread(os.write, self.ends[name], b"marker\n")
            await marker

    def close(self) -> None:
        self.logs.close()
        for end in self.ends.values():
            os.close(end)


async def _only(lines: AsyncIterator[LogLine], text: str) -> AsyncIterator[LogLine]:
    async for line in lines:
        if line.text == text:
            yield line


def on_desk(tmp_path: Path, story: Callable[[Desk], Awaitable[None]], **options: object) -> None:
    failed: list[dict[str, object]] = []  # a callback that failed, or hung, would else be a line on stderr

    async def told() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        desk = Desk(tmp_path, **options)
        try:
            await story(desk)
        finally:
            desk.close()

    asyncio.run(told())
    assert not failed


def test_lines_are_stamped_and_tagged_and_an_unfinished_one_waits(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        end = desk.open()
        async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(desk.logs.follow("shop", ["web"], 0)) as live:
            os.write(end, b"one\ntwo\x1b[31m\nthr")
            assert [(await anext(live)).text for _ in range(2)] == ["one", "two\\x1b[31m"]
            before = desk.file().read_bytes()
            os.write(end, b"ee\n")
            desk.now_s += 1.5
            assert (await anext(live)).text == "three"
        assert before == b"2001-09-09T01:46:40.000Z 42.0 one\n2001-09-09T01:46:40.000Z 42.0 two\x1b[31m\n"
        assert desk.file().read_bytes() == before + b"2001-09-09T01:46:41.500Z 42.0 three\n"

    on_desk(tmp_path, story)


def test_the_service_never_finds_its_output_non_blocking(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        end = desk.open()
        assert not fcntl.fcntl(end, fcntl.F_GETFL) & os.O_NONBLOCK

    on_desk(tmp_path, story)


@pytest.mark.parametrize("pipe_bytes", [4096, 65536, 1 << 20])
def test_a_line_longer_than_the_pipe_blocks_nobody(tmp_path: Path, pipe_bytes: int) -> None:
    """The writer writes 3 MB without a newline and gets through; what it wrote is all there, in marked pieces."""
    payload = bytes(97 + index % 23 for index in range(100_000)) * 3

    async def story(desk: Desk) -> None:
        end = desk.open()
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, pipe_bytes)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.to_thread(os.write, end, payload + b"\nnext\n")
        await desk.settled()
        parts = desk.file().read_bytes().splitlines()
        assert all(len(part) < 16 * 1024 + 40 for part in parts)
        texts = [(part.split(b" ", 2)[1], part.split(b" ", 2)[2]) for part in parts]
        whole = [tag for tag, _ in texts].index(b"42.0")
        assert {tag for tag, _ in texts[:whole]} == {b"42.0+"}
        assert b"".join(text for _, text in texts[: whole + 1]) == payload
        assert [text for _, text in texts[whole + 1 :]] == [b"next", b"marker"]

    on_desk(tmp_path, story)


def test_a_pipe_full_of_tiny_spliced_pages_blocks_nobody(tmp_path: Path) -> None:
    """A pipe is full by its pages: 16 bytes of output, each spliced in alone, fill it without a newline."""

    async def story(desk: Desk) -> None:
        end = desk.open()
        source = tmp_path / "source"
        source.write_bytes(b"x" * 40 + b"\n")

        def splice_all() -> None:
            with source.open("rb") as file:
                for at in range(41):
                    assert os.splice(file.fileno(), end, 1, offset_src=at) == 1

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.to_thread(splice_all)
        await desk.settled()
        assert b"".join(desk.stored()) == b"x" * 40 + b"marker"

    on_desk(tmp_path, story)


AGENT = """
import asyncio, os, signal, sys
from midstream.agent.logs import ChannelName, Logs, intake
fifo, folder, when = sys.argv[1:]
async def main():
    logs = Logs(folder)
    logs.start()
    if when == "before_consume":
        intake._consume = lambda fd, size: os.kill(os.getpid(), signal.SIGKILL)
    elif when == "before_write":
        intake.LogSink.write = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    logs.attach(ChannelName("shop", "web", 42, 0), os.open(fifo, os.O_RDWR))
    print("attached", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before_write", "before_consume"])
def test_an_agent_killed_at_any_moment_loses_no_line(tmp_path: Path, when: str) -> None:
    """Killed before the write: written once. Killed between write and consume: written twice, never not at all."""
    fifo = tmp_path / "shop_web_42_0"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDWR)
    try:
        os.write(end, b"first\nsecond\nhalf")  # and no newline
        source = str(Path(midstream.__file__).parent.parent)
        agent = subprocess.run(
            [sys.executable, "-c", AGENT, str(fifo), str(tmp_path / "logs"), when],
            env=os.environ | {"PYTHONPATH": source},
            timeout=PATIENCE_S,
        )
        assert agent.returncode == -signal.SIGKILL

        async def story(desk: Desk) -> None:
            desk.open()
            os.write(end, b" a line\n")
            await desk.settled()
            once = [b"first", b"second"]
            left = [*once, b"half"] if when == "before_consume" else []
            assert desk.stored() == [*left, *once, b"half a line", b"marker"]

        on_desk(tmp_path, story)
    finally:
        os.close(end)


def test_the_end_of_a_process_ends_its_last_line(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        end = desk.open()
        os.write(end, b"Segmentation fault")
        desk.logs.flush(WEB)
        os.write(end, b"booting\n")
        await desk.settled()
        assert desk.stored() == [b"Segmentation fault", b"booting", b"marker"]
        os.write(end, b"last words")
        desk.logs.detach(WEB)
        assert desk.stored()[-1] == b"last words"
        assert desk.logs.attached() == frozenset()

    on_desk(tmp_path, story)


def test_what_the_keeper_spooled_comes_first_and_its_gap_is_named(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.logs.absorb(WEB, b"old\nhal", dropped_bytes=77)
        end = desk.open()
        os.write(end, b"f\n")
        await desk.settled()
        gap, *rest = desk.stored()
        assert b"77 bytes lost" in gap
        assert rest == [b"old", b"hal", b"f", b"marker"]
        assert [event.kind for event in desk.events] == ["log_losing", "log_resumed"]

    on_desk(tmp_path, story)


@contextlib.contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Writes beyond it fail, as on a full disk, without a disk to fill (Python ignores SIGXFSZ)."""
    with limited(resource.RLIMIT_FSIZE, size_bytes):
        yield


def test_a_full_disk_blocks_no_writer_and_what_was_lost_is_said(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        end = desk.open()
        os.write(end, b"before\n")
        await desk.settled()
        with file_size_limit(desk.file().stat().st_size + 100):
            flood = b"".join(b"line %07d\n" % index for index in range(50_000))
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.to_thread(os.write, end, flood)
            await desk.settled()
            losing = await desk.told("log_losing")
            assert "File too large" in losing.text and "web" in losing.text
            assert "log_resumed" not in [event.kind for event in desk.events]
        await desk.settled()
        form = re.compile(rb"2001-09-09T01:46:40\.000Z (42\.0 (before|marker|line \d{7})|- midstream: .*)")
        assert [line for line in desk.file().read_bytes().splitlines() if not form.fullmatch(line)] == []
        stored = desk.stored()
        note = next(index for index, line in enumerate(stored) if line.startswith(b"midstream: "))
        kept = [line for line in stored[2:note] if line.startswith(b"line ")]
        assert kept == [b"line %07d" % index for index in range(len(kept))], "only whole lines stay"
        lost_lines = 50_000 - len(kept) + 1  # and the marker
        lost_bytes = (50_000 - len(kept)) * 13 + 7
        assert f"{lost_lines} lines, {lost_bytes} bytes lost since 2001-09-09T".encode() in stored[note]
        assert stored[note + 1 :] == [b"marker"]
        assert [event.kind for event in desk.events] == ["log_losing", "log_resumed"]
        sink = desk.logs.sink("shop", "web")
        assert (sink.lost_lines, sink.lost_bytes) == (lost_lines, lost_bytes)

    on_desk(tmp_path, story)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_file_system(tmp_path: Path) -> None:
    small = tmp_path / "logs"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)], check=True)
    try:

        async def story(desk: Desk) -> None:
            end = desk.open()
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.to_thread(os.write, end, b"0123456789abcde\n" * 20_000)
            await desk.told("log_losing")
            await desk.settled()
            desk.file().unlink()  # somebody makes room
            await desk.settled()
            assert await desk.told("log_resumed")
            assert [line for line in desk.stored() if b"bytes lost since" in line]
            assert desk.stored()[-1] == b"marker"

        on_desk(tmp_path, story)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_files_are_rotated_by_size_and_only_so_many_kept(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.logs.configure("shop", "web", LogSpec(max_size_bytes=300, keep=2))
        end = desk.open()
        for index in range(40):
            os.write(end, b"line %02d\n" % index)
            await desk.settled()
        names = sorted(path.name for path in desk.file().parent.iterdir())
        assert names == ["web.log", "web.log.1", "web.log.2"]
        texts = [*desk.stored(suffix=".2"), *desk.stored(suffix=".1"), *desk.stored()]
        kept = [line for line in texts if line.startswith(b"line")]
        assert kept == [b"line %02d" % index for index in range(40 - len(kept), 40)]
        assert all(desk.file(suffix=suffix).stat().st_size <= 300 for suffix in ("", ".1", ".2"))

    on_desk(tmp_path, story)


def test_files_are_rotated_by_age_also_across_agents(tmp_path: Path) -> None:
    async def first(desk: Desk) -> None:
        desk.logs.configure("shop", "web", LogSpec(max_age_s=3600.0))
        desk.open()
        await desk.settled()
        desk.now_s += 3599
        await desk.settled()
        assert not desk.file(suffix=".1").exists()

    async def second(desk: Desk) -> None:
        desk.now_s += 3600
        desk.logs.configure("shop", "web", LogSpec(max_age_s=3600.0))
        desk.open()
        await desk.settled()
        assert len(desk.stored(suffix=".1")) == 2
        assert len(desk.stored()) == 1

    on_desk(tmp_path, first)
    on_desk(tmp_path, second)


def test_a_rotation_that_fails_loses_no_line(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.logs.configure("shop", "web", LogSpec(max_size_bytes=60, keep=1))
        desk.open()
        await desk.settled()
        desk.file(suffix=".1").mkdir()
        await desk.settled()
        await desk.settled()
        assert desk.stored() == [b"marker"] * 3
        assert [event.kind for event in desk.events] == ["log_rotation_failed"], "said once, not at each line"
        desk.file(suffix=".1").rmdir()
        desk.now_s += 61
        await desk.settled()
        assert len(desk.stored(suffix=".1")) == 3

    on_desk(tmp_path, story)


def test_a_file_moved_or_deleted_by_others_is_begun_anew(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.open()
        await desk.settled()
        desk.file().rename(desk.file(suffix=".moved"))
        await desk.settled()
        assert desk.stored() == desk.stored(suffix=".moved") == [b"marker"]
        desk.file().rename(desk.file(suffix=".moved"))
        desk.file().touch()  # as logrotate's `create` does
        await desk.settled()
        assert desk.stored() == desk.stored(suffix=".moved") == [b"marker"]
        for path in desk.file().parent.iterdir():
            path.unlink()
        desk.file().parent.rmdir()
        await desk.settled()
        assert desk.stored() == [b"marker"]
        desk.logs.reopen()
        await desk.settled()
        assert desk.stored() == [b"marker"] * 2

    on_desk(tmp_path, story)


def test_many_services_share_few_open_files(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        names = [ChannelName("shop", f"s{index}", 1, 0) for index in range(60)]
        before = len(os.listdir("/proc/self/fd"))
        for name in names:
            desk.open(name)
        for name in [*names, *names]:
            await desk.settled(name)
        opened = len(os.listdir("/proc/self/fd")) - before
        assert opened <= 2 * len(names) + 8, "a FIFO each for service and agent, and a few files"
        assert all(desk.stored(name.service) == [b"marker"] * 2 for name in names)

    on_desk(tmp_path, story, open_files=8)


def test_unfinished_lines_of_many_silent_services_wake_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that left them in the FIFO would be woken by them again and again."""
    woken: list[str] = []
    pump = intake.Logs._pump

    def counted(self: Logs, channel: intake._Channel) -> bool:
        woken.append(channel.name.service)
        return pump(self, channel)

    monkeypatch.setattr(intake.Logs, "_pump", counted)

    async def story(desk: Desk) -> None:
        names = [ChannelName("shop", f"s{index}", 1, 0) for index in range(50)]
        for name in names:
            os.write(desk.open(name), b"no newline yet")
        desk.open()
        for _ in range(3):
            await desk.settled()
        assert len(set(woken)) == 51
        woken.clear()
        for _ in range(5):
            await desk.settled()
        assert woken == ["web"] * 5
        for name in names:
            desk.logs.detach(name)
        assert desk.stored("s7") == [b"no newline yet"]

    on_desk(tmp_path, story)


def test_a_noisy_service_does_not_silence_another(tmp_path: Path) -> None:
    quiet = ChannelName("shop", "quiet", 1, 0)

    async def story(desk: Desk) -> None:
        noisy, stop = desk.open(), threading.Event()
        desk.open(quiet)

        def shout() -> None:
            while not stop.is_set():
                os.write(noisy, b"noise\n" * 500)

        shouting = asyncio.create_task(asyncio.to_thread(shout))
        try:
            for _ in range(3):
                await desk.settled(quiet)
        finally:
            stop.set()
            await shouting
        assert desk.stored("quiet") == [b"marker"] * 3

    on_desk(tmp_path, story)


def test_followers_get_each_line_once_whenever_they_come(tmp_path: Path) -> None:
    """Lines are written while followers begin; each sees an unbroken sequence over rotated files and live lines."""

    async def reader(desk: Desk, last: str) -> list[int]:
        seen = []
        async with contextlib.aclosing(desk.logs.follow("shop", ["web"], 10_000)) as lines:
            async for line in lines:
                seen.append(int(line.text))
                if line.text == last:
                    break
        return seen

    async def story(desk: Desk) -> None:
        desk.logs.configure("shop", "web", LogSpec(max_size_bytes=5000, keep=100))
        end = desk.open()
        readers = []
        for index in range(600):
            os.write(end, b"%d\n" % index)
            if index % 100 == 50:
                readers.append(asyncio.create_task(reader(desk, "599")))
            if index % 7 == 0:
                await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            for seen in await asyncio.gather(*readers):
                assert seen == list(range(600))
        assert desk.file(suffix=".3").exists()
        assert desk.logs.sink("shop", "web").followers == []

    on_desk(tmp_path, story)


def test_the_last_lines_of_several_services_by_time(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        web, jobs = desk.open(), desk.open(ChannelName("shop", "jobs", 7, 1))
        for index in range(6):
            os.write((web, jobs)[index % 2], b"%d\x07\n" % index)
            desk.logs.flush(WEB)
            desk.logs.flush(ChannelName("shop", "jobs", 7, 1))
            desk.now_s += 1
        lines = [line async for line in desk.logs.follow("shop", lines=4, follow=False)]
        assert [line.text for line in lines] == [f"{index}\\x07" for index in (2, 3, 4, 5)]
        assert [(line.service, line.generation, line.slot) for line in lines[:2]] == [("web", 42, 0), ("jobs", 7, 1)]
        raw = [line async for line in desk.logs.follow("shop", ["jobs"], 1, follow=False, raw=True)]
        assert [line.text for line in raw] == ["5\x07"]
        with pytest.raises(OperatorError, match="no service cron"):
            await anext(desk.logs.follow("shop", ["cron"]))

    on_desk(tmp_path, story)


def test_a_slow_follower_is_let_go_with_a_note_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "QUEUE_MAX_LINES", 500)

    async def story(desk: Desk) -> None:
        end = desk.open()
        slow = desk.logs.follow("shop", ["web"], 0)
        first = asyncio.ensure_future(anext(slow))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        os.write(end, b"0\n")
        assert (await first).text == "0"
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.to_thread(os.write, end, b"".join(b"%d\n" % index for index in range(1, 20_000)))
            await desk.settled()
            rest = [line async for line in slow]
        assert [line.text for line in rest[:-1]] == [str(index) for index in range(1, len(rest))]
        assert len(rest) <= 501
        assert "too slow" in rest[-1].text and rest[-1].generation is None
        assert await desk.told("log_follower_dropped")
        assert len(desk.stored()) == 20_001

    on_desk(tmp_path, story)


def test_without_time_stamps_the_file_is_what_the_service_wrote(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.logs.configure("shop", "web", LogSpec(timestamps=False, path=str(tmp_path / "own" / "web.json")))
        os.write(desk.open(), b'{"a": 1}\n')
        await desk.settled()
        assert (tmp_path / "own" / "web.json").read_bytes() == b'{"a": 1}\nmarker\n'
        lines = [line async for line in desk.logs.follow("shop", ["web"], 5, follow=False)]
        assert [line.text for line in lines] == ['{"a": 1}', "marker"]

    on_desk(tmp_path, story)


NOBODY = FileUser(65534, 65534)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acting with another user's rights needs root")


@needs_root
@pytest.mark.parametrize("trap", ["symlink", "fifo", "foreign"])
def test_a_path_of_the_apps_user_gives_no_rights_of_ours(tmp_path: Path, trap: str) -> None:
    """The user points the log path at what only root may write or read: nothing is written, nothing is shown, nothing
    hangs, and the service goes on."""
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        if parent != Path("/") and parent.stat().st_uid == os.geteuid():
            os.chmod(parent, parent.stat().st_mode | 0o111)
    secret = tmp_path / "secret"
    secret.write_text("root only\n")
    secret.chmod(0o640)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY.uid, NOBODY.gid)
    path = home / "web.log"
    held = contextlib.ExitStack()
    if trap == "symlink":
        path.symlink_to(secret)
    elif trap == "fifo":
        os.mkfifo(path)
        os.chown(path, NOBODY.uid, NOBODY.gid)
        held.callback(os.close, os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    else:
        path = tmp_path / "new.log"

    async def story(desk: Desk) -> None:
        desk.logs.configure("shop", "web", LogSpec(path=str(path)), owner=NOBODY)
        desk.open()
        await desk.settled()
        assert "web" in (await desk.told("log_losing")).text
        assert secret.read_text() == "root only\n"
        assert not (tmp_path / "new.log").exists()
        assert [line async for line in desk.logs.follow("shop", ["web"], 9, follow=False)] == []
        if trap != "foreign":
            path.unlink()
            await desk.settled()
            assert path.stat().st_uid == NOBODY.uid
            assert path.read_bytes().endswith(b"42.0 marker\n")
        assert os.geteuid() == 0 and Path("/proc/thread-self/status").read_text().count("\nUid:\t0\t0\t0\t0\n") == 1

    with held:
        on_desk(tmp_path, story)


# -- a path of the service's own, on a file system that hangs ----------------------------------------------------------


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Files below a folder called `dead` are not written before the gate is open: in the thread, as on a dead NFS server."""
    opened, append, keep = threading.Event(), log_file.LogFile.append, unfinished.Unfinished.keep

    def held(file: log_file.LogFile, block: bytes, now_s: float) -> None:
        if "/dead/" in file.place.path:
            opened.wait()
        append(file, block, now_s)

    def held_keep(file: unfinished.Unfinished, name: ChannelName, data: bytes) -> None:
        if "/dead/" in file._path:
            opened.wait()
        keep(file, name, data)

    monkeypatch.setattr(log_file.LogFile, "append", held)
    monkeypatch.setattr(unfinished.Unfinished, "keep", held_keep)
    yield opened
    opened.set()


def unread(fifo: int) -> int:
    return int.from_bytes(fcntl.ioctl(fifo, termios.FIONREAD, b"\0" * 4), sys.byteorder)


def test_a_hanging_file_of_one_service_stops_neither_the_agent_nor_the_service(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "HANG_S", 0.2)
    jobs = ChannelName("shop", "jobs", 42, 0)
    path = tmp_path / "dead" / "web.log"

    async def story(desk: Desk) -> None:
        desk.logs.configure("shop", "web", LogSpec(path=str(path)))
        end, other = desk.open(), desk.open(jobs)
        os.write(end, b"one\n")
        os.write(other, b"mine\n")
        await desk.settled(jobs)
        assert desk.stored("jobs") == [b"mine", b"marker"]
        assert str(path) in (await desk.told("log_losing")).text
        async with asyncio.timeout(PATIENCE_S):  # more than the FIFO holds
            await asyncio.to_thread(os.write, end, b"0123456789abcde\n" * 20_000)
        await desk.settled()
        recent = [line.text for line in desk.logs.sink("shop", "web").recent]
        assert recent[-2:] == ["0123456789abcde", "marker"], "what is said of a release that fails is still known"
        gate.set()
        await desk.answers(path)
        await desk.settled()
        resumed = await desk.told("log_resumed")
        assert "lines" in resumed.text
        text = path.read_text()
        assert "bytes lost since" in text and text.endswith("42.0 marker\n")
        assert [event.kind for event in desk.events] == ["log_losing", "log_resumed"]

    on_desk(tmp_path, story)


@pytest.mark.parametrize("whose", ["the service", "the agent"])
def test_what_is_not_written_yet_is_not_taken_out_of_the_fifo(
    tmp_path: Path, gate: threading.Event, whose: str
) -> None:
    """An agent that is killed now loses nothing: the next one finds it there."""
    (tmp_path / "dead").mkdir()

    async def story(desk: Desk) -> None:
        path = desk.file()
        if whose == "the service":
            path = tmp_path / "dead" / "web.log"
            desk.logs.configure("shop", "web", LogSpec(path=str(path)))
        end = desk.open()
        os.write(end, b"one\ntw")
        async with asyncio.timeout(PATIENCE_S):
            while desk.logs._channels[WEB].storing is None:
                await asyncio.sleep(0.01)
        os.write(end, b"o\nthree")
        assert unread(end) == len(b"one\ntwo\nthree")
        desk.logs.flush(WEB)  # its process has ended
        assert unread(end) > 0
        gate.set()
        await desk.logs.idle()
        async with asyncio.timeout(PATIENCE_S):
            while unread(end) or not path.exists() or path.read_text().count("\n") < 3:
                await asyncio.sleep(0.01)
        assert [line.split(" ", 2)[2] for line in path.read_text().splitlines()] == ["one", "two", "three"]
        assert desk.events == []

    on_desk(tmp_path if whose == "the service" else tmp_path / "dead", story)


def test_the_agents_own_folder_that_hangs_stops_neither_the_agent_nor_a_service(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink, "HANG_S", 0.2)
    monkeypatch.setattr(writer, "LATE_S", 0.01)
    jobs, mail = ChannelName("shop", "jobs", 42, 0), ChannelName("shop", "mail", 42, 0)
    (tmp_path / "dead").mkdir()
    elsewhere = tmp_path / "own" / "mail.log"

    async def story(desk: Desk) -> None:
        desk.logs.configure("shop", "mail", LogSpec(path=str(elsewhere)))
        end, other, third = desk.open(), desk.open(jobs), desk.open(mail)
        os.write(end, b"one\nunfinished")
        os.write(other, b"mine\n")
        os.write(third, b"sent\n")
        await desk.settled(mail)
        assert [line.split(" ", 2)[2] for line in elsewhere.read_text().splitlines()] == ["sent", "marker"]
        await desk.told("log_losing")
        for writing in (end, other):
            async with asyncio.timeout(PATIENCE_S):  # more than the FIFO holds
                await asyncio.to_thread(os.write, writing, b"0123456789abcde\n" * 20_000)
        await desk.settled(jobs)
        assert [line.text async for line in desk.logs.follow("shop", ["web"], 9, follow=False)] == []
        assert desk.logs.sink("shop", "web").last(9) == []
        desk.logs.reopen()
        gate.set()
        await desk.answers(desk.file())
        await desk.settled()
        await desk.settled(jobs)
        assert desk.stored()[0] == b"one"
        for service in ("web", "jobs"):
            assert "bytes lost since" in desk.file(service).read_text()
            assert desk.stored(service)[-1] == b"marker"
        assert {event.kind for event in desk.events} == {"log_losing", "log_resumed"}
        assert {event.service for event in desk.events} == {"web", "jobs"}

    on_desk(tmp_path / "dead", story)


def test_a_line_that_grows_while_the_folder_hangs_is_kept_once(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its lengths would wait in memory, for as long as it hangs."""
    monkeypatch.setattr(writer, "LATE_S", 0.01)
    (tmp_path / "dead").mkdir()
    dots = 200

    async def story(desk: Desk) -> None:
        end = desk.open()
        for _ in range(dots):
            os.write(end, b".")
            async with asyncio.timeout(PATIENCE_S):
                while unread(end):
                    await asyncio.sleep(0)
        assert desk.logs._writer._asked.qsize() <= 1
        gate.set()
        async with asyncio.timeout(PATIENCE_S):
            while desk.logs._writer.is_late:
                await asyncio.sleep(0.01)
        left = unfinished.Unfinished(desk.logs._unfinished._path)
        left.read_back()
        assert left.take_over(WEB) == b"." * dots, "what a killed agent leaves to the next one"
        left.close()
        os.write(end, b"\n")
        await desk.settled()
        assert desk.stored() == [b"." * dots, b"marker"]

    on_desk(tmp_path / "dead", story)


def test_the_agents_own_folder_is_written_before_the_loop_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the disk answers, nothing is on its way when an agent is killed."""
    monkeypatch.setattr(writer, "LATE_S", PATIENCE_S)

    async def story(desk: Desk) -> None:
        web = desk.logs.sink("shop", "web")
        for number in range(200):
            assert web.write([logline.Piece(b"%d" % number)], 42, 0) is None
            assert desk.stored()[-1] == b"%d" % number

    on_desk(tmp_path, story)


def test_who_follows_a_path_of_its_own_is_given_each_line_once(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.logs.configure("shop", "web", LogSpec(path=str(tmp_path / "own" / "web.log")))
        end = desk.open()
        os.write(end, b"".join(b"line %d\n" % number for number in range(100)))
        await desk.settled()
        got: list[str] = []
        async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(desk.logs.follow("shop", ["web"], 50)) as live:
            writer = asyncio.create_task(asyncio.to_thread(os.write, end, b"a\nb\nc\n"))
            async for line in live:
                got.append(line.text)
                if line.text == "c":
                    break
            await writer
        assert got == [*(f"line {number}" for number in range(51, 100)), "marker", "a", "b", "c"][-len(got) :]
        assert got[-3:] == ["a", "b", "c"] and got.count("marker") == 1

    on_desk(tmp_path, story)
