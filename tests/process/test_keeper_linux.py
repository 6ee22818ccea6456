"""The system calls below the keeper: naming processes, how they ended, trees, descriptors, cgroups, addresses."""

from __future__ import annotations

import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.linux import cgroup, clock, fds, listen, prctl, process, tree
from midstream.testing.keeper_host import PATIENCE_S

KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "1000"])
    yield child
    child.kill()
    child.wait(PATIENCE_S)


# Processes


@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name), st.integers(1, 2**40))
def test_a_stat_line_is_read_whatever_the_command_is_called(name, ticks):
    line = b"42 (" + name + b") S 7 42 41 0 -1 4194560" + b" 0" * 12 + b" %d" % ticks + b" 0" * 29 + b" 256"
    stat = process.parse_stat(line)
    assert (stat.pid, stat.state, stat.ppid, stat.sid, stat.start_ticks, stat.exit_code) == (42, "S", 7, 41, ticks, 256)


@pytest.mark.parametrize("text", [b"", b"42", b"42 (a", b"42 (a) S 1", b"x (a) S" + b" 1" * 30])
def test_what_is_no_stat_line(text):
    with pytest.raises(ValueError):
        process.parse_stat(text)


def test_a_real_process_with_an_evil_name(tmp_path):
    program = shutil.copy(shutil.which("sleep"), tmp_path / "a) Z 1 (b")
    child = subprocess.Popen([program, "1000"])
    try:
        stat = process.read_stat(child.pid)
        assert stat.ppid == os.getpid() and stat.is_live
        assert process.is_alive(child.pid, stat.start_ticks)
        wait_for(lambda: process.read_argv(child.pid) == (str(program), "1000"))  # empty within the exec
    finally:
        child.kill()
        child.wait(PATIENCE_S)
    assert process.read_stat(child.pid) is None


def test_a_signal_never_reaches_a_later_process_with_the_number(sleeper):
    stat = process.read_stat(sleeper.pid)
    assert not process.send_signal(sleeper.pid, stat.start_ticks - 1, signal.SIGKILL)
    assert process.open_pidfd(sleeper.pid, stat.start_ticks - 1) is None
    assert sleeper.poll() is None
    assert process.send_signal(sleeper.pid, stat.start_ticks, signal.SIGKILL)
    assert sleeper.wait(PATIENCE_S) == -signal.SIGKILL
    assert not process.send_signal(sleeper.pid, stat.start_ticks, signal.SIGKILL)


@pytest.mark.skipif(KERNEL < (6, 15), reason="PIDFD_GET_INFO tells exit statuses since Linux 6.15")
@pytest.mark.parametrize(("script", "status"), [("exit 3", 3 << 8), ("kill -9 $$", 9), ("exit 0", 0)])
def test_how_a_reaped_process_ended(script, status):
    child = subprocess.Popen(["sh", "-c", f"read x; {script}"], stdin=subprocess.PIPE)
    stat = process.read_stat(child.pid)
    pidfd = process.open_pidfd(child.pid)
    try:
        assert not process.has_ended(pidfd)
        assert process.exit_status(pidfd) is None and process.exit_status_follows(pidfd)
        child.stdin.close()
        assert select.select([pidfd], [], [], PATIENCE_S)[0] and process.has_ended(pidfd)
        assert process.exit_status(pidfd) is None, "a zombie: not reaped yet"
        if os.geteuid() == 0:
            assert process.zombie_status(child.pid, stat.start_ticks) == status
        child.wait(PATIENCE_S)
        assert process.exit_status(pidfd) == status
        assert not process.exit_status_follows(pidfd)
        assert not process.send_by_pidfd(pidfd, signal.SIGTERM)
    finally:
        os.close(pidfd)


def test_a_socket_is_found_in_another_process_and_brought_over():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, inode = server.getsockname()[1], fds.socket_inode(server.fileno())
        child = subprocess.Popen(["sleep", "1000"], pass_fds=[server.fileno()])
    pidfd = process.open_pidfd(child.pid)
    try:
        assert inode in process.socket_inodes(child.pid)
        found = process.fd_of_socket(child.pid, pidfd, inode)
        assert found is not None and not os.get_inheritable(found)
        with socket.socket(fileno=found) as ours, socket.create_connection(("127.0.0.1", port), PATIENCE_S):
            ours.accept()[0].close()
        assert process.fd_of_socket(child.pid, pidfd, inode + 10_000_000) is None
    finally:
        os.close(pidfd)
        child.kill()
        child.wait(PATIENCE_S)


def test_what_is_gone_is_none():
    child = subprocess.Popen(["true"])
    child.wait(PATIENCE_S)
    assert process.read_stat(child.pid) is None
    assert process.open_pidfd(child.pid) is None
    assert not process.read_environ(child.pid)
    assert process.read_command(child.pid) == "" and process.read_argv(child.pid) == ()
    assert process.socket_inodes(child.pid) == set() and process.fds_of_socket(child.pid, 1) == []
    assert not process.is_alive(child.pid, 1)


def test_the_clock_and_the_boot():
    before = clock.boottime_us()
    assert clock.boottime_s() * 1e6 >= before
    assert len(clock.boot_id()) == 36 and clock.boot_id() == clock.boot_id()


def test_own_children_are_listed(sleeper):
    found = process.own_children()
    if found is None:
        pytest.skip("this kernel does not list children")
    assert sleeper.pid in found


# Trees


def stamped(key: str, *argv: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, tree.KEEPER_VARIABLE: "test-keeper", tree.KEY_VARIABLE: key}
    return subprocess.Popen(argv, env=env, start_new_session=True, stdout=subprocess.PIPE)


def mark_of(child: subprocess.Popen[bytes], key: str) -> tree.TreeMark:
    return tree.TreeMark(key, "test-keeper", child.pid, process.read_stat(child.pid).start_ticks)


def test_members_by_ancestry_session_and_stamp_and_nobody_else():
    children = "sleep 1000 & env -i sleep 1000 & setsid sleep 1000 & setsid env -i sleep 1000 & echo up; wait"
    one = stamped("a/b/1/0/1", "sh", "-c", children)
    two = stamped("a/b/1/0/2", "sleep", "1000")
    try:
        assert one.stdout.readline() == b"up\n"
        mark = mark_of(one, "a/b/1/0/1")
        wait_for(lambda: len(sessions(tree.members(mark))) == 3)
        (washed,) = [pid for pid in tree.members(mark) if os.getsid(pid) == pid and tree.stamp_of(pid) is None]
        assert len(tree.members(mark)) == 5
        assert one.pid in tree.members(mark) and two.pid not in tree.members(mark)
        both = tree.members_of_keeper("test-keeper", [mark, mark_of(two, "a/b/1/0/2")])
        assert {*tree.members(mark), two.pid} == set(both)
        one.kill()
        one.wait(PATIENCE_S)
        left = tree.members(mark)
        assert len(left) == 3, "one washed is known by its session, one with a session of its own by its stamp"
        assert washed not in left, "with neither, it was known by its parent alone"
        os.kill(washed, signal.SIGKILL)
        assert tree.kill(mark).killed == 3
        wait_for(lambda: not tree.members(mark))
        assert two.poll() is None
    finally:
        for child in (one, two):
            tree.kill(tree.TreeMark("a/b/1/0/1", "test-keeper", child.pid, 0))
            child.kill()
            child.wait(PATIENCE_S)
            child.stdout.close()


def sessions(stats: dict[int, process.ProcStat]) -> set[int]:
    return {stat.sid for stat in stats.values()}


def wait_for(claim: object) -> None:
    pause = select.poll()
    for _ in range(int(PATIENCE_S * 100)):
        if claim():
            return
        pause.poll(10)
    raise AssertionError("it did not come about")


def test_a_tree_that_forks_all_the_time_is_frozen_and_killed():
    """Each pass finds what was forked since the last; what is frozen forks no more."""
    child = stamped("a/b/1/0/1", "sh", "-c", "echo up; while :; do sleep 0.01 & wait; done")
    try:
        assert child.stdout.readline() == b"up\n"
        mark = mark_of(child, "a/b/1/0/1")
        assert tree.kill(mark).left == ()
        assert child.wait(PATIENCE_S) == -signal.SIGKILL
        wait_for(lambda: not tree.members(mark))
    finally:
        child.kill()
        child.wait(PATIENCE_S)
        child.stdout.close()


def test_the_tree_of_a_number_that_is_somebody_elses_by_now_is_empty(sleeper):
    stat = process.read_stat(sleeper.pid)
    mark = tree.TreeMark("a/b/1/0/1", "test-keeper", sleeper.pid, stat.start_ticks - 100)
    assert tree.members(mark) == {} and tree.send(mark, signal.SIGKILL) == 0
    assert sleeper.poll() is None


# Descriptors


def test_packets_carry_descriptors_that_do_not_survive_an_exec():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read_fd, write_fd = os.pipe()
    with ours, theirs:
        assert fds.receive(theirs, bytearray(100)) is None
        assert fds.send(ours, b"hello", [read_fd, write_fd])
        packet = fds.receive(theirs, bytearray(100))
        assert packet.data == b"hello" and not packet.truncated and len(packet.fds) == 2
        assert not any(os.get_inheritable(fd) for fd in packet.fds)
        fds.close_all(packet.fds)
        fds.close_all(packet.fds)  # a second time is no error
        assert fds.send(ours, b"x" * 200)
        assert fds.receive(theirs, bytearray(100)).truncated
        while fds.send(ours, b"x" * 1000):
            continue
        theirs.close()
        with pytest.raises(OSError):
            fds.send(ours, b"x")
    os.close(read_fd), os.close(write_fd)


def test_a_sealed_memory_file_cannot_be_changed():
    fd = fds.sealed_memfd("test", b"content")
    try:
        assert fds.is_sealed(fd) and fds.read_file(fd) == b"content"
        for change in (lambda: os.write(fd, b"x"), lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 100)):
            with pytest.raises(PermissionError):
                change()
        assert fds.read_file(fd) == b"content"
        with open(os.devnull, "rb") as file:
            assert not fds.is_sealed(file.fileno())
    finally:
        os.close(fd)


def test_the_peer_of_a_connection_as_a_pidfd(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
        accepted, _ = server.accept()
        with accepted:
            pidfd = fds.peer_pidfd(accepted)
    if pidfd is None:
        assert KERNEL < (6, 5)
        return
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        assert f"Pid:\t{os.getpid()}\n" in file.read()
    assert not os.get_inheritable(pidfd)
    os.close(pidfd)


def test_no_new_privileges_and_subreaper():
    script = (
        "from midstream.linux import prctl\n"
        "assert not prctl.is_subreaper(); prctl.become_subreaper(); assert prctl.is_subreaper()\n"
        "prctl.set_no_new_privileges(); print([line for line in open('/proc/self/status') if 'NoNewPrivs' in line])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(prctl.__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert "NoNewPrivs:\\t1" in out.stdout


# cgroups and addresses

V1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (V1, None),
        (
            V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
            ("/sys/fs/cgroup/unified", "/"),
        ),
        ("30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", ("/sys/fs/cgroup", "/")),
        ("30 23 0:26 /docker/ab /my\\040cgroup rw - cgroup2 cgroup rw\n", ("/my cgroup", "/docker/ab")),
        ("", None),
        ("garbage\n - cgroup2\n", None),
    ],
)
def test_where_cgroup2_is_mounted(text, found):
    assert cgroup.find_mount(text) == found


def test_our_own_cgroup_folder():
    assert cgroup.own_path("9:cpu:/x\n0::/user.slice/a b\n") == "/user.slice/a b"
    assert cgroup.own_path("9:cpu:/x\n") is None


def test_a_cgroup_holds_a_tree_kills_it_and_is_removed(sleeper):
    root, reason = cgroup.make_root(f"midstream-test-{os.getpid()}")
    if root is None:
        pytest.skip(reason)
    path = cgroup.make(root, "one")
    assert cgroup.make(root, "one") == path and cgroup.children(root) == [path]
    events = cgroup.open_events(path)
    try:
        Path(path, "cgroup.procs").write_text(str(sleeper.pid))
        assert cgroup.members(path) == [sleeper.pid] == cgroup.members(root)
        assert cgroup.is_populated(events) and not cgroup.remove(path)
        assert cgroup.kill(path)
        assert sleeper.wait(PATIENCE_S) == -signal.SIGKILL
        assert not cgroup.is_populated(events)
        assert cgroup.remove(root)
        assert cgroup.members(path) == [] and not cgroup.kill(path)
    finally:
        os.close(events)
        cgroup.remove(root)


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:80", "tcp://[::1]:8080", "unix:///run/x y.sock", "tcp://0.0.0.0:0"])
def test_addresses_that_are_understood(text):
    parsed = listen.parse(text)
    assert parsed.path or parsed.host


def test_localhost_is_the_loopback_and_no_host_is_every_address():
    assert listen.parse("tcp://localhost:80").host == "127.0.0.1"
    assert listen.parse("tcp://:80").host == "0.0.0.0"


def test_who_has_an_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        holder = listen.holder_of(listen.parse(f"tcp://127.0.0.1:{port}"))
        assert holder.pid == os.getpid() and "python" in holder.command
        assert str(os.getpid()) in str(holder)
    assert listen.holder_of(listen.parse(f"tcp://127.0.0.1:{port}")) is None
