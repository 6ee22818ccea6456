"""The agent comes and goes; the services do not notice, and a crashed one comes back meanwhile."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import midstream
from midstream.agent.keeper_link import KeeperLost, KeeperRefused
from midstream.core.messages import (
    AgentCommandRequest,
    ChannelRequest,
    FdPlacement,
    ListenerSpec,
    ListenRequest,
    NotifyRequest,
    OrdersRequest,
    ProcessState,
    Refusal,
    ShutdownRequest,
    SpawnSpec,
    StandingOrder,
)
from midstream.core.names import parse_key
from midstream.linux import process, tree
from midstream.testing.keeper_host import PATIENCE_S, KeeperClient, KeeperHost, running_keeper, spec

# An agent that attaches, says so on a FIFO (`NAME PID EPOCH`), and then does nothing.
AGENT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from midstream.testing.keeper_host import KeeperClient
client = KeeperClient(os.environ["MIDSTREAM_KEEPER_SOCKET"])
hello = client.hello()
with open(sys.argv[2], "w") as fifo:
    fifo.write(f"{sys.argv[3]} {os.getpid()} {hello.epoch}\\n")
import signal
signal.pause()
"""
SOURCE = str(Path(midstream.__file__).parent.parent)


class Words:
    """What agents say on a FIFO."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "words")
        os.mkfifo(self.path)
        self.fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self._rest = b""

    def next(self) -> list[str]:
        while b"\n" not in self._rest:
            assert select.select([self.fd], [], [], PATIENCE_S)[0], "no agent came"
            self._rest += os.read(self.fd, 4096)
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode().split()


@pytest.fixture
def words(tmp_path: Path) -> Words:
    return Words(tmp_path)


def agent_argv(words: Words, name: str = "hello") -> list[str]:
    return [sys.executable, "-c", AGENT, SOURCE, words.path, name]


@pytest.fixture
def host() -> Iterator[KeeperHost]:
    with running_keeper() as running:
        yield running


def order(key: str, *argv: str, **more: object) -> StandingOrder:
    child: SpawnSpec = spec(key, *argv, **more)
    return StandingOrder(str(parse_key(key).slot_name), child)


def end(pid: int, signum: int = signal.SIGKILL) -> None:
    """Kill it and wait until it is gone."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signum)
        assert select.select([pidfd], [], [], PATIENCE_S)[0]
    finally:
        os.close(pidfd)


def test_an_agent_that_dies_is_started_again(words):
    with running_keeper(agent_argv(words)):
        _, first, epoch = words.next()
        end(int(first))
        _, second, later = words.next()
        assert second != first and int(later) > int(epoch)
        end(int(second), signal.SIGTERM)
        assert words.next()[1] not in (first, second)


def test_an_agent_that_cannot_start_is_reported_and_tried_again(words, tmp_path):
    program = tmp_path / "agent"
    with running_keeper([str(program)]) as host:
        client = host.client()
        pause = select.poll()
        for _ in range(1000):  # until the first attempt has been reaped
            if any("agent" in note and "exec" in note for note in client.hello().notes):
                break
            pause.poll(10)
        else:
            raise AssertionError("nobody is told")
        client.close()
        program.write_text(f"#!/bin/sh\necho came $$ 0 > {words.path}\nexec sleep 1000\n")
        program.chmod(0o755)
        assert words.next()[0] == "came"


def test_the_next_agent_is_what_agent_command_said(words):
    with running_keeper(agent_argv(words, "old")) as host:
        assert words.next()[0] == "old"
        client = host.client()
        client.do("agent_command", AgentCommandRequest(tuple(agent_argv(words, "new"))))
        old = tree.snapshot()
        (pid,) = [stat.pid for stat in old.values() if stat.ppid == host.process.pid]
        client.close()
        end(pid)
        assert words.next()[0] == "new"


def test_a_silent_agent_is_killed_only_when_it_is_attached_and_overdue(host):
    """The limit is a minute: here the clock of the watch is moved instead."""
    from midstream.keeper.agent_watch import AgentWatch
    from midstream.keeper.children import Inherited
    from midstream.keeper.layout import Layout
    from midstream.keeper.loop import Loop

    class JumpingLoop(Loop):
        offset_s = 0.0

        @property
        def now_s(self) -> float:
            return super().now_s + self.offset_s

    loop = JumpingLoop()
    watch = AgentWatch(Layout(host.state, host.runtime), loop, Inherited((1024, 4096), 0o022), lambda attached: None)
    sleeper = subprocess.Popen(["sleep", "1000"])
    ours, _theirs = socket.socketpair()
    try:
        watch.expect(sleeper.pid, process.read_stat(sleeper.pid).start_ticks)
        watch.attach(sleeper.pid, ours)
        loop.offset_s = 59.0
        watch._check_silence()
        assert sleeper.poll() is None
        watch.heard()
        loop.offset_s = 61.0
        watch._check_silence()
        assert sleeper.poll() is None, "it was heard two seconds ago"
        loop.offset_s = 120.0
        watch._check_silence()
        assert sleeper.wait(PATIENCE_S) == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait(PATIENCE_S)


# Standing orders


def test_a_crashed_service_comes_back_while_there_is_no_agent(host):
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "sleep", "1000"))
    client.do("orders", OrdersRequest(set=(order("app/web/1/0/1", "sleep", "1000"),)))
    pid = client.until_running("app/web/1/0/1")["app/web/1/0/1"].pid
    client.close()
    end(pid)
    reader = host.client(hello=False)
    wait_for(reader, "app/web/1/0/2", ProcessState.RUNNING)
    reader.hello()
    found = reader.entries()
    assert set(found) == {"app/web/1/0/1", "app/web/1/0/2"}
    assert found["app/web/1/0/1"].signum == signal.SIGKILL
    assert found["app/web/1/0/2"].by == "order"
    (again,) = reader.spawn(spec("app/web/1/0/2", "sleep", "1000"))
    assert again.known, "the returning agent's own next attempt is the one that runs"
    assert sum(entry.state is ProcessState.RUNNING for entry in reader.entries().values()) == 1


def wait_for(client: KeeperClient, key: str, state: ProcessState) -> None:
    """For a client that is not attached: nothing tells it of changes, so it asks."""
    pause = select.poll()
    for _ in range(int(PATIENCE_S * 100)):
        entry = client.entries().get(key)
        if entry is not None and entry.state is state:
            return
        pause.poll(10)
    raise AssertionError(f"{key} did not become {state}")


def test_what_died_before_the_agent_did_is_started_too(host):
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "true"))
    client.do("orders", OrdersRequest(set=(order("app/web/1/0/1", "sleep", "1000"),)))
    client.until_ended("app/web/1/0/1")
    assert set(client.entries()) == {"app/web/1/0/1"}, "while an agent is attached, restarting is its business"
    client.close()
    wait_for(host.client(hello=False), "app/web/1/0/2", ProcessState.RUNNING)


def test_an_order_that_was_revoked_starts_nothing(host):
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "sleep", "1000"), spec("app/web/1/1/1", "sleep", "1000"))
    orders = tuple(order(f"app/web/1/{slot}/1", "sleep", "1000") for slot in (0, 1))
    client.do("orders", OrdersRequest(set=orders))
    client.do("orders", OrdersRequest(revoke=("app/web/0",)))
    pids = {key: entry.pid for key, entry in client.until_running("app/web/1/0/1", "app/web/1/1/1").items()}
    client.close()
    end(pids["app/web/1/0/1"])
    end(pids["app/web/1/1/1"])
    reader = host.client(hello=False)
    wait_for(reader, "app/web/1/1/2", ProcessState.RUNNING)
    assert "app/web/1/0/2" not in reader.entries()


def test_a_crash_loop_is_slowed_and_its_attempts_are_numbered(host, tmp_path):
    starts = tmp_path / "starts"
    os.mkfifo(starts)
    fd = os.open(starts, os.O_RDWR | os.O_NONBLOCK)
    client = host.client()
    client.do("orders", OrdersRequest(set=(order("app/web/1/0/5", "sh", "-c", f"date +%s.%N > {starts}"),)))
    client.close()
    times: list[float] = []
    text = b""
    while len(times) < 4:
        assert select.select([fd], [], [], PATIENCE_S)[0]
        text += os.read(fd, 4096)
        times = [float(line) for line in text.split()]
    os.close(fd)
    assert times[3] - times[0] >= 2.5, "four starts take at least three seconds, less one start's own time"
    found = host.client().entries()
    assert {"app/web/1/0/6", "app/web/1/0/7", "app/web/1/0/8"} <= set(found)


def test_an_order_with_descriptors_that_do_not_last_is_refused_whole(host):
    client = host.client()
    bad = order("app/web/1/0/1", "true", fds=[FdPlacement(3, "passed:0")])
    with pytest.raises(KeeperRefused):
        client.do("orders", OrdersRequest(set=(order("app/web/1/1/1", "true"), bad)))
    with pytest.raises(KeeperRefused):
        client.do("orders", OrdersRequest(set=(StandingOrder("app/web/7", spec("app/web/1/0/1", "true")),)))
    client.close()
    reader = host.client()
    assert reader.entries() == {}, "a refused request has changed nothing"


def test_an_order_uses_what_is_held(host):
    client = host.client()
    client.do("listen", ListenRequest(ListenerSpec("web", "tcp://127.0.0.1:0")))
    client.do("channel", ChannelRequest("log"))
    client.do("notify", NotifyRequest("app/web/0"))
    fds = [FdPlacement(3, "listener:web"), FdPlacement(1, "channel:log")]
    script = 'test -n "$NOTIFY_SOCKET" -a "$LISTEN_PID" = $$ -a -S /proc/self/fd/3 && exec sleep 1000'
    wanted = order("app/web/1/0/1", "sh", "-c", script, fds=fds, notify="app/web/0", listen_pid=True)
    client.do("orders", OrdersRequest(set=(wanted,)))
    client.close()
    reader = host.client(hello=False)
    wait_for(reader, "app/web/1/0/2", ProcessState.RUNNING)
    reader.hello()
    (line,) = [e for e in reader.entries().values() if e.state is ProcessState.RUNNING]
    with open(f"/proc/{line.pid}/comm", encoding="ascii") as file:
        assert file.read().strip() in ("sleep", "sh")


# The ordered stop


def test_shutdown_ends_trees_and_agent_and_leaves_nothing_in_the_folder(words):
    with running_keeper(agent_argv(words)) as host:
        agent = int(words.next()[1])
        client = host.client()
        client.do("channel", ChannelRequest("log"))
        client.spawn(spec("app/web/1/0/1", "sh", "-c", "sleep 1000 & sleep 1000; wait"))
        client.spawn(spec("app/web/1/1/1", "sh", "-c", "trap '' TERM; sleep 1000; sleep 1000"))
        client.until_running("app/web/1/0/1", "app/web/1/1/1")
        client.do("shutdown", ShutdownRequest(0.5))
        with pytest.raises(KeeperRefused) as refused:
            client.spawn(spec("app/web/1/2/1", "true"))
        assert refused.value.refusal is Refusal.STOPPING
        client.until(lambda found: all(entry.ended_s for entry in found.values()))
        client.close()
        assert host.wait() == 0
        assert host.stamped() == []
        assert process.read_stat(agent) is None
        assert [name for _, _, names in os.walk(host.runtime) for name in names] == ["boot"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_term_and_int_stop_in_order(host, signum):
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait"))
    client.until_running("app/web/1/0/1")
    client.close()
    os.kill(host.process.pid, signum)
    assert host.wait() == 0
    assert host.stamped() == []


def test_a_second_term_does_not_wait_for_those_who_ignore_the_first(host):
    client = host.client()
    read_fd, write_fd = os.pipe()
    script = "trap '' TERM; echo deaf; while :; do sleep 1000; done"
    client.spawn(spec("app/web/1/0/1", "sh", "-c", script, fds=[FdPlacement(1, "passed:0")]), passed=[write_fd])
    assert select.select([read_fd], [], [], PATIENCE_S)[0]
    os.kill(host.process.pid, signal.SIGTERM)
    while "stopping" not in client.receive()[0]:
        continue
    os.kill(host.process.pid, signal.SIGTERM)
    assert client.until_ended("app/web/1/0/1").signum == signal.SIGKILL
    client.close()
    assert host.wait() == 0
    assert host.stamped() == []
    os.close(read_fd), os.close(write_fd)


def test_hup_changes_nothing(host):
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "sleep", "1000"))
    os.kill(host.process.pid, signal.SIGHUP)
    client.until_running("app/web/1/0/1")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes a pid namespace")
@pytest.mark.parametrize(("service", "status"), [("app/web", 7), ("web", 7), ("app/other", 0)])
def test_as_pid_1_it_reaps_strangers_stops_in_order_and_exits_with_the_main_status(service, status):
    options = ("--main", service, "--stop-timeout", "20")
    with KeeperHost((), None, *options) as host:
        read_fd, write_fd = os.pipe()
        argv = [*host.argv(), "--ready-fd", str(write_fd)]
        unshare = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *argv], pass_fds=[write_fd]
        )
        try:
            os.close(write_fd)
            assert select.select([read_fd], [], [], PATIENCE_S)[0] and os.read(read_fd, 1)
            client = host.client()
            assert client.hello().pid == 1
            orphaner = "(sh -c 'kill -9 $$' &) ; (true &) ; exit 0"
            client.spawn(spec("app/job/1/0/1", "sh", "-c", orphaner))
            main = spec(
                *("app/web/1/0/1", "sh", "-c", "trap 'exit 7' TERM; echo up; sleep 1000 & wait"),
                fds=[FdPlacement(1, "passed:0")],
            )
            up_fd, said_fd = os.pipe()
            client.spawn(main, passed=[said_fd])
            client.until_ended("app/job/1/0/1")
            assert select.select([up_fd], [], [], PATIENCE_S)[0]
            os.close(up_fd), os.close(said_fd)
            (inner,) = [stat.pid for stat in tree.snapshot().values() if stat.ppid == unshare.pid]
            client.close()
            assert zombies_below(inner, client_path=host.socket_path, host=host) == []
            os.kill(inner, signal.SIGTERM)
            assert unshare.wait(PATIENCE_S) == status
        finally:
            os.close(read_fd)
            unshare.kill()
            unshare.wait(PATIENCE_S)


def zombies_below(pid: int, client_path: str, host: KeeperHost) -> list[int]:
    """Zombies whose parent is `pid`, after the keeper has had turns to reap them."""
    for _ in range(50):
        host.client(hello=False).entries()
        stats = (process.read_stat(number) for number in process.all_pids())
        found = [stat.pid for stat in stats if stat is not None and stat.ppid == pid and stat.state == "Z"]
        if not found:
            break
        select.select([], [], [], 0.02)
    return found


def test_a_lost_connection_is_told_at_once(host):
    client = host.client()
    host.kill()
    with pytest.raises(KeeperLost):
        client.receive()
    with pytest.raises(OSError):
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(host.socket_path)
