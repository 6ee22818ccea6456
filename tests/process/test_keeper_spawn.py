"""The keeper starts processes as they were asked for, and knows how each of them ended."""

from __future__ import annotations

import errno
import json
import os
import pwd
import resource
import select
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest

from midstream.agent.keeper_link import KeeperRefused
from midstream.core.messages import (
    ChannelRequest,
    FdPlacement,
    InventoryRequest,
    ListenerSpec,
    ListenRequest,
    NotifyRequest,
    ProcessState,
    Refusal,
    SlotOpening,
    SlotsRequest,
)
from midstream.linux import cgroup, process, spawn, tree
from midstream.testing.keeper_host import PATIENCE_S, KeeperClient, KeeperHost, running_keeper, spec

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it drops privileges")
NOBODY = pwd.getpwnam("nobody")
PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable  # one that any user may run

# Tells about itself as JSON on descriptor 1, then waits on standard input or ends.
TELL = """
import json, os, resource, signal, sys
fds = {}
for name in os.listdir("/proc/self/fd"):
    try:
        fds[name] = os.readlink("/proc/self/fd/" + name)
    except OSError:
        pass
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({
    "pid": os.getpid(), "sid": os.getsid(0), "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(),
    "cwd": os.getcwd(), "env": dict(os.environ), "umask": os.umask(0), "nice": os.nice(0), "fds": fds,
    "nofile": resource.getrlimit(resource.RLIMIT_NOFILE), "core": resource.getrlimit(resource.RLIMIT_CORE),
    "no_new_privs": status["NoNewPrivs"].strip(), "blocked": status["SigBlk"].strip(),
    "ignored": status["SigIgn"].strip(), "cgroup": open("/proc/self/cgroup").read(),
}), flush=True)
"""


@pytest.fixture
def host() -> Iterator[KeeperHost]:
    with running_keeper() as running:
        yield running


@pytest.fixture
def client(host: KeeperHost) -> KeeperClient:
    return host.client()


def read_until_closed(fd: int) -> bytes:
    """All of a pipe whose writers are children that end."""
    parts = []
    while select.select([fd], [], [], PATIENCE_S)[0]:
        part = os.read(fd, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)
    raise TimeoutError("the child did not end")


def told(client: KeeperClient, **wanted: object) -> dict[str, object]:
    """What a child says about itself that was started like that. Its descriptor 1 is a pipe to us."""
    read_fd, write_fd = os.pipe()
    extra = wanted.pop("fds", ())
    passed = [write_fd, *wanted.pop("passed", ())]
    wanted.setdefault("key", "app/web/1/0/1")
    key = wanted.pop("key")
    child = spec(key, PYTHON, "-I", "-c", TELL, fds=[FdPlacement(1, "passed:0"), *extra], **wanted)
    try:
        (result,) = client.spawn(child, passed=passed)
        os.close(write_fd)
        assert result.ok, result.error
        text = read_until_closed(read_fd)
    finally:
        os.close(read_fd)
    entry = client.until_ended(key)
    assert entry.state is ProcessState.EXITED, f"{entry.error_stage}: {entry.error}"
    found: dict[str, object] = json.loads(text)
    assert found["pid"] == entry.pid == result.pid
    return found


def test_a_child_gets_the_environment_folder_and_stamp_that_were_asked_for(host, client, tmp_path):
    found = told(client, env={"COLOUR": "blue"}, cwd=str(tmp_path))
    env = found["env"]
    assert env["COLOUR"] == "blue"
    assert env["MIDSTREAM_KEY"] == "app/web/1/0/1"
    assert env["MIDSTREAM_KEEPER"] == host.keeper_id
    assert set(env) <= {"COLOUR", "PATH", "MIDSTREAM_KEY", "MIDSTREAM_KEEPER", "LC_CTYPE"}, (
        "nothing of the keeper's own"
    )
    assert found["cwd"] == str(tmp_path)
    assert found["sid"] == found["pid"], "a session of its own"


def test_a_child_begins_with_default_signals_and_no_other_descriptors(client):
    found = told(client)
    assert int(found["blocked"], 16) == 0
    python_ignores = (1 << (signal.SIGPIPE - 1)) | (1 << (signal.SIGXFSZ - 1))
    of_libc = (1 << 31) | (1 << 32)  # 32 and 33 are glibc's own (signal(7)): nobody can set them, they are inherited
    assert int(found["ignored"], 16) & ~python_ignores & ~of_libc == 0
    fds = {name: target for name, target in found["fds"].items() if not target.startswith("/proc/")}
    assert set(fds) == {"0", "1", "2"}
    assert fds["0"] == fds["2"] == "/dev/null", "what is not placed is /dev/null, never the keeper's own"


def test_sigpipe_and_sigint_kill_a_child_as_they_do_anywhere(client):
    for number, name in enumerate(("PIPE", "INT", "TERM", "HUP"), 1):
        client.spawn(spec(f"app/web/1/{number}/1", "sh", "-c", f"kill -{name} $$; sleep 100"))
        entry = client.until_ended(f"app/web/1/{number}/1")
        assert entry.signum == getattr(signal, f"SIG{name}")


@as_root
def test_a_child_drops_to_its_user_with_exactly_its_groups(client):
    found = told(client, uid=NOBODY.pw_uid, gid=NOBODY.pw_gid, groups=(1234, 2345))
    assert found["uid"] == [NOBODY.pw_uid] * 3
    assert found["gid"] == [NOBODY.pw_gid] * 3
    assert sorted(set(found["groups"]) - {NOBODY.pw_gid}) == [1234, 2345]


@as_root
def test_a_user_without_a_group_is_refused_because_it_would_keep_roots(client):
    (result,) = client.spawn(spec("app/web/1/0/1", "true", uid=NOBODY.pw_uid))
    assert not result.ok and "gid" in result.error
    assert client.entries() == {}, "nothing was started"


def may_raise_limits() -> bool:
    with open("/proc/self/status", encoding="ascii") as file:
        caps = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    return bool(caps >> 24 & 1)  # CAP_SYS_RESOURCE


@pytest.mark.skipif(not may_raise_limits(), reason="needs CAP_SYS_RESOURCE")
def test_hard_limits_are_raised_before_privileges_are_dropped(client):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] + 1000
    found = told(client, uid=NOBODY.pw_uid, gid=NOBODY.pw_gid, rlimits={"nofile": (500, hard), "core": (0, 0)})
    assert found["nofile"] == [500, hard]
    assert found["core"] == [0, 0]


@pytest.mark.skipif(may_raise_limits(), reason="needs to lack CAP_SYS_RESOURCE")
def test_a_limit_that_we_may_not_raise_is_told(client):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1] + 1000
    client.spawn(spec("app/web/1/0/1", "true", rlimits={"nofile": (500, hard)}))
    entry = client.until_ended("app/web/1/0/1")
    assert (entry.error_stage, entry.error[:5]) == ("limits", "EPERM")


@as_root
def test_lowered_limits_hold_for_the_user(client):
    found = told(client, uid=NOBODY.pw_uid, gid=NOBODY.pw_gid, rlimits={"nofile": (500, 600), "core": (0, 0)})
    assert (found["nofile"], found["core"]) == ([500, 600], [0, 0])


def test_the_keepers_own_raised_descriptor_limit_is_not_inherited(client):
    assert told(client)["nofile"] == list(resource.getrlimit(resource.RLIMIT_NOFILE))


def test_umask_nice_and_no_new_privileges(client):
    found = told(client, umask=0o027, nice=5, no_new_privileges=True)
    assert (found["umask"], found["nice"], found["no_new_privs"]) == (0o027, 5, "1")
    plain = told(client, key="app/web/1/1/1")
    assert plain["no_new_privs"] == "0"
    assert plain["umask"] != 0o077, "the keeper's own umask is for its own files"


@pytest.mark.parametrize("target", [3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
def test_a_listener_arrives_open_at_its_number_whatever_number_the_keeper_has_it_at(client, target):
    """dup2(n, n) would leave close-on-exec set; and a target may be the number of another source, or of the report."""
    client.do("listen", ListenRequest(ListenerSpec("web", "tcp://127.0.0.1:0")))
    client.do("channel", ChannelRequest("log"))
    fds = [FdPlacement(target, "listener:web"), FdPlacement(2, "channel:log"), FdPlacement(target + 1, "passed:1")]
    read_fd, write_fd = os.pipe()
    try:
        found = told(client, fds=fds, passed=[write_fd])
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert found["fds"][str(target)].startswith("socket:")
    assert found["fds"][str(target + 1)].startswith("pipe:")
    assert found["fds"]["2"].endswith("/out/log")


def test_sources_and_targets_may_cross_over(client):
    """3 <- what the keeper has at 4 and 4 <- what it has at 3 would overwrite each other, placed one after another."""
    pipes = [os.pipe() for _ in range(6)]
    try:
        inodes = [os.fstat(write_fd).st_ino for _, write_fd in pipes]
        order = [5, 4, 3, 2, 1, 0]
        fds = [FdPlacement(3 + place, f"passed:{source + 1}") for place, source in enumerate(order)]
        found = told(client, fds=fds, passed=[write_fd for _, write_fd in pipes])
    finally:
        for pair in pipes:
            os.close(pair[0]), os.close(pair[1])
    assert [found["fds"][str(3 + place)] for place in range(6)] == [f"pipe:[{inodes[source]}]" for source in order]


def test_listen_pid_is_the_childs_own(client):
    found = told(client, listen_pid=True, env={"LISTEN_FDS": "1"})
    assert found["env"]["LISTEN_PID"] == str(found["pid"])
    assert "LISTEN_PID" not in told(client, key="app/web/1/1/1")["env"]


def test_notify_names_the_path_of_a_socket_that_is_held(client):
    path = client.do("notify", NotifyRequest("app/web/0")).path
    assert told(client, notify="app/web/0")["env"]["NOTIFY_SOCKET"] == path
    (result,) = client.spawn(spec("app/web/1/9/1", "true", notify="nobody"))
    assert not result.ok and "nobody" in result.error


def test_a_channel_is_a_description_of_its_own_so_that_writers_block(client):
    """The keeper's end of the FIFO does not block; a child that shared its flags would lose output to EAGAIN."""
    client.do("channel", ChannelRequest("log"))
    flags = "import fcntl, os, sys; sys.exit(bool(fcntl.fcntl(1, fcntl.F_GETFL) & os.O_NONBLOCK))"
    client.spawn(spec("app/web/1/0/1", sys.executable, "-c", flags, fds=[FdPlacement(1, "channel:log")]))
    assert client.until_ended("app/web/1/0/1").code == 0


def test_one_key_is_one_process_for_ever(client):
    (first,) = client.spawn(spec("app/web/1/0/1", "sleep", "1000"))
    (again,) = client.spawn(spec("app/web/1/0/1", "sleep", "2000"))
    assert again.known and again.pid == first.pid
    os.kill(first.pid, signal.SIGKILL)
    client.until_ended("app/web/1/0/1")
    (later,) = client.spawn(spec("app/web/1/0/1", "sleep", "1000"))
    assert later.known and later.pid == first.pid, "answered with what became of the first"
    assert len(client.entries()) == 1


def test_an_exit_status_is_kept_until_it_is_acknowledged(client):
    client.spawn(spec("app/web/1/0/1", "sh", "-c", "exit 7"), spec("app/web/1/1/1", "sh", "-c", "kill -USR1 $$"))
    assert client.until_ended("app/web/1/0/1").code == 7
    assert client.until_ended("app/web/1/1/1").signum == signal.SIGUSR1
    client.spawn(spec("app/web/1/2/1", "sleep", "1000"))
    assert set(client.entries()) == {"app/web/1/0/1", "app/web/1/1/1", "app/web/1/2/1"}
    assert client.ack("app/web/1/0/1", "app/web/1/2/1", "app/never/1/1/1") == ("app/web/1/2/1",), "what runs is kept"
    assert set(client.entries()) == {"app/web/1/1/1", "app/web/1/2/1"}


@pytest.mark.parametrize(
    ("stage", "name", "wrong"),
    [
        ("exec", "ENOENT", {"argv": ["no-such-program"]}),
        ("exec", "ENOENT", {"argv": ["/no/such/program"]}),
        ("exec", "EACCES", {"argv": ["/etc/passwd"]}),
        ("exec", "ENOEXEC", {"argv": ["./garbage"], "cwd": "TMP"}),
        ("cwd", "ENOENT", {"argv": ["true"], "cwd": "/no/such/folder"}),
        ("cwd", "ENOTDIR", {"argv": ["true"], "cwd": "/etc/passwd"}),
        ("limits", "EINVAL", {"argv": ["true"], "rlimits": {"nofile": (100, 50)}}),
    ],
)
def test_what_fails_before_the_exec_is_told_with_its_stage(client, tmp_path, stage, name, wrong):
    (tmp_path / "garbage").write_bytes(b"\x00\x01\x02")
    (tmp_path / "garbage").chmod(0o755)
    argv = wrong.pop("argv")
    more = {key: str(tmp_path) if value == "TMP" else value for key, value in wrong.items()}
    client.spawn(spec("app/web/1/0/1", *argv, **more))
    entry = client.until_ended("app/web/1/0/1")
    assert entry.state is ProcessState.FAILED
    assert entry.error_stage == stage
    assert entry.error.startswith(name)


@as_root
def test_the_folder_is_entered_with_the_rights_of_the_user(client, tmp_path):
    tmp_path.chmod(0o700)
    client.spawn(spec("app/web/1/0/1", "true", uid=NOBODY.pw_uid, gid=NOBODY.pw_gid, cwd=str(tmp_path)))
    entry = client.until_ended("app/web/1/0/1")
    assert (entry.state, entry.error_stage) == (ProcessState.FAILED, "cwd")


def test_a_program_is_looked_up_in_its_own_path_from_its_own_folder(client, tmp_path):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "only-here"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    client.spawn(spec("app/web/1/0/1", "only-here", env={"PATH": "/no/such:bin"}, cwd=str(tmp_path)))
    assert client.until_ended("app/web/1/0/1").code == 9


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "nonsense"},
        {"argv": []},
        {"cwd": "relative"},
        {"env": {"A=B": "c"}},
        {"env": {"A": "nul\0byte"}},
        {"rlimits": {"frobs": (1, 1)}},
        {"fds": [FdPlacement(1, "listener:none")]},
        {"fds": [FdPlacement(1, "passed:0")]},
        {"fds": [FdPlacement(1, "teapot")]},
        {"fds": [FdPlacement(1, "null"), FdPlacement(1, "null")]},
        {"fds": [FdPlacement(-1, "null")]},
        {"cgroup": "../escape"},
    ],
)
def test_a_spec_that_makes_no_sense_starts_nothing_and_its_key_stays_free(client, wrong):
    key = wrong.pop("key", "app/web/1/0/1")
    argv = wrong.pop("argv", ["true"])
    (result,) = client.spawn(spec(key, *argv, **wrong))
    assert not result.ok and result.error
    assert client.entries() == {}
    (good,) = client.spawn(spec("app/web/1/0/1", "true"))
    assert good.ok and not good.known


def test_a_thousand_processes_start_and_end(client):
    keys = [f"app/web/1/{slot}/1" for slot in range(1000)]
    read_fd, write_fd = os.pipe()
    fds = [FdPlacement(0, "passed:0")]
    for start in range(0, 1000, 100):
        batch = [spec(key, "sh", "-c", "read x; exit 3", fds=fds) for key in keys[start : start + 100]]
        assert all(result.ok for result in client.spawn(*batch, passed=[read_fd]))
    client.until_running(*keys)
    os.close(read_fd)
    os.close(write_fd)
    found = client.until(lambda all_: all(entry.state is ProcessState.EXITED for entry in all_.values()))
    assert len(found) == 1000 and {entry.code for entry in found.values()} == {3}


def test_every_entry_is_pulled_once_in_pages(client):
    keys = [f"app/web/1/{slot}/1" for slot in range(30)]
    client.spawn(*(spec(key, "true") for key in keys))
    client.until(lambda all_: sum(entry.state is ProcessState.EXITED for entry in all_.values()) == 30)
    from midstream.core.messages import PullRequest

    seen, after, pages = [], 0, 0
    while True:
        page = client.do("pull", PullRequest(after, 7))
        seen += [entry.key for entry in page.entries]
        pages += 1
        after = page.entries[-1].seq
        assert [e.seq for e in page.entries] == sorted(e.seq for e in page.entries)
        if not page.more:
            break
    assert sorted(seen) == sorted(keys) and pages == 5
    assert client.do("pull", PullRequest(after)).entries == ()


# Signals and trees

DAEMON = """
import os, sys, time
if os.fork():
    os._exit(0) if sys.argv[1] == "gone" else time.sleep(1000)
os.setsid()
if os.fork():
    os._exit(0)
os.write(1, b"%d\\n" % os.getpid())
time.sleep(1000)
"""


def started_daemon(client: KeeperClient, parent: str, **more: object) -> int:
    """A grandchild that called setsid and was re-parented; `parent`: whether the first process is `gone` or stays."""
    read_fd, write_fd = os.pipe()
    command = (sys.executable, "-I", "-S", "-c", DAEMON, parent)
    client.spawn(spec("app/web/1/0/1", *command, fds=[FdPlacement(1, "passed:0")], **more), passed=[write_fd])
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        assert select.select([pipe], [], [], PATIENCE_S)[0]
        return int(pipe.readline())


def wait_gone(pid: int) -> None:
    pidfd = process.open_pidfd(pid)
    if pidfd is not None:
        try:
            assert select.select([pidfd], [], [], PATIENCE_S)[0], f"{pid} lives"
        finally:
            os.close(pidfd)


def test_of_a_tree_whose_cgroup_is_gone_nothing_is_looked_for(client, host):
    """The folder went with the last process of it. To look for more in all of /proc, whenever something has ended, would
    keep everybody waiting; a process with a copy of the stamp, in nobody's folder, shows whether that is done."""
    client.spawn(spec("app/web/1/0/1", "true", cgroup="tree"))
    client.until_ended("app/web/1/0/1")
    if client.hello().cgroup is None:
        pytest.skip("no writable cgroup2 on this host")
    stamp = {tree.KEEPER_VARIABLE: host.keeper_id, tree.KEY_VARIABLE: "app/web/1/0/1"}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, env=stamp | {"PATH": os.environ["PATH"]}) as copy:
        assert client.signal("app/web/1/0/1", signal.SIGTERM, whole=True) == 0
        report = client.kill_tree("app/web/1/0/1")
        assert (report.killed, report.unattributed) == (0, ())
        copy.communicate()
    assert copy.returncode == 0


@pytest.mark.parametrize("folder", [None, "tree"])
@pytest.mark.parametrize("parent", ["gone", "stays"])
def test_kill_tree_finds_a_grandchild_that_called_setsid(client, parent, folder):
    pid = started_daemon(client, parent, cgroup=folder)
    if parent == "gone":
        client.until_ended("app/web/1/0/1")
    assert process.is_alive(pid, process.read_stat(pid).start_ticks)
    report = client.kill_tree("app/web/1/0/1")
    assert report.killed >= (1 if parent == "gone" else 2)
    wait_gone(pid)
    client.until_ended("app/web/1/0/1")


def test_kill_tree_leaves_others_alone(client):
    pid = started_daemon(client, "stays")
    client.spawn(spec("app/web/1/1/1", "sleep", "1000"), spec("app/web/1/0/2", "sleep", "1000"))
    client.until_running("app/web/1/1/1", "app/web/1/0/2")
    client.kill_tree("app/web/1/0/1")
    wait_gone(pid)
    found = client.entries()
    assert found["app/web/1/1/1"].state is ProcessState.RUNNING
    assert found["app/web/1/0/2"].state is ProcessState.RUNNING
    assert client.signal("app/web/1/1/1", 0) == 1


def test_an_orphan_that_washed_off_its_stamp_is_reported(client):
    """Nothing says whose it is: it is named, not killed."""
    wash = DAEMON.replace("os.setsid()\nif", "os.setsid()\nif 1:\n  pass\nif").replace(
        "os.write(1", "os.environ.get('WASHED') or os.execve(sys.executable, ['x', '-c', sys.argv[2]], {})\nos.write(1"
    )
    read_fd, write_fd = os.pipe()
    inner = "import os, time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(1000)"
    client.spawn(
        spec("app/web/1/0/1", sys.executable, "-c", wash, "gone", inner, fds=[FdPlacement(1, "passed:0")]),
        passed=[write_fd],
    )
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        assert select.select([pipe], [], [], PATIENCE_S)[0]
        pid = int(pipe.readline())
    try:
        client.until_ended("app/web/1/0/1")
        report = client.kill_tree("app/web/1/0/1")
        assert pid in report.unattributed
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_signal_reaches_the_process_or_its_tree(client):
    """With tree the sleeping child gets it too, so the shell, which ignores it, sees its child end."""
    read_fd, write_fd = os.pipe()
    is_there = (
        "until grep -q sleep /proc/$!/comm; do :; done"  # before its exec it would take the signal as the shell does
    )
    script = f"trap : USR1; sleep 1000 & {is_there}; echo up; wait; wait; exit 5"
    client.spawn(spec("app/web/1/0/1", "sh", "-c", script, fds=[FdPlacement(1, "passed:0")]), passed=[write_fd])
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        assert select.select([pipe], [], [], PATIENCE_S)[0] and pipe.readline() == b"up\n"
    assert client.signal("app/web/1/0/1", signal.SIGUSR1, whole=True) == 2
    assert client.until_ended("app/web/1/0/1").code == 5


def test_a_signal_to_what_has_ended_or_never_was(client):
    client.spawn(spec("app/web/1/0/1", "true"))
    client.until_ended("app/web/1/0/1")
    assert client.signal("app/web/1/0/1", signal.SIGKILL) == 0
    with pytest.raises(KeeperRefused) as refused:
        client.signal("app/web/9/9/9", signal.SIGTERM)
    assert refused.value.refusal is Refusal.UNKNOWN
    with pytest.raises(KeeperRefused):
        client.signal("app/web/1/0/1", 12345)


def test_a_process_joins_its_cgroup_and_the_folder_goes_with_the_last_of_it(client, host):
    found = told(client, cgroup="app.web.1.0")
    root = client.hello().cgroup
    if root is None:
        pytest.skip("no writable cgroup2 on this host")
    assert f"midstream-{host.keeper_id}/app.web.1.0" in found["cgroup"]
    assert not os.path.exists(f"{root}/app.web.1.0")


def test_slots_are_opened_all_or_none(client):
    wanted = (SlotOpening("app/web/1"), SlotOpening("app/web/2", ready=True), SlotOpening("../etc"))
    with pytest.raises(KeeperRefused) as refused:
        client.do("slots", SlotsRequest(wanted))
    assert refused.value.refusal is Refusal.BAD_REQUEST
    assert client.do("inventory", InventoryRequest()).items == ()


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.EPERM])
def test_without_clone3_a_child_joins_its_cgroup_by_itself(monkeypatch, tmp_path, refusal):
    """Older kernels, and seccomp filters that do not know the call."""
    root, reason = cgroup.make_root(f"midstream-test-{os.getpid()}")
    if root is None:
        pytest.skip(reason)
    asked = []

    def refused(folder_fd: int) -> int:
        asked.append(folder_fd)
        raise OSError(refusal, "")

    monkeypatch.setattr(spawn.prctl, "fork_into_cgroup", refused)
    monkeypatch.setattr(spawn.sys, "_current_frames", lambda: {0: None})
    out = tmp_path / "out"
    fd = os.open(out, os.O_WRONLY | os.O_CREAT)
    try:
        placed = (spawn.Placement(1, fd),)
        launch = spawn.Launch(("/bin/cat", "/proc/self/cgroup"), {}, cgroup=cgroup.make(root, "one"), placements=placed)
        child = spawn.launch(launch)
        assert os.waitpid(child.pid, 0)[1] == 0
        os.close(child.report_fd)
        assert asked and "/one" in out.read_text()
    finally:
        os.close(fd)
        cgroup.remove(root)


def test_the_record_names_the_process_and_is_closed_to_others(client, host):
    client.spawn(spec("app/web/1/0/1", "sleep", "1000"))
    entry = client.until_running("app/web/1/0/1")["app/web/1/0/1"]
    path = f"{host.runtime}/pids/app:web:1:0:1"
    with open(path, encoding="utf-8") as file:
        assert file.read().rstrip().endswith(f" {entry.pid} {entry.start_ticks}")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    os.kill(entry.pid, signal.SIGKILL)
    client.until_ended("app/web/1/0/1")
    client.ack("app/web/1/0/1")
    assert not os.path.exists(path)
