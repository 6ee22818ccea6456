"""A keeper is killed, or replaced in place: the services do not notice, and nothing that was known is forgotten."""

from __future__ import annotations

import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import midstream
from midstream.agent.keeper_link import KeeperLost, KeeperRefused
from midstream.core.messages import (
    ChannelRequest,
    FdPlacement,
    GiveRequest,
    Held,
    InventoryRequest,
    ListenerSpec,
    ListenRequest,
    NoticesRequest,
    NotifyRequest,
    OrdersRequest,
    ProcessState,
    Refusal,
    SpawnSpec,
    SpoolRequest,
    StandingOrder,
    UpgradeRequest,
)
from midstream.core.names import parse_key
from midstream.linux import process, tree
from midstream.linux.listen import unix_inode
from midstream.testing.keeper_host import PATIENCE_S, KeeperClient, KeeperHost, running_keeper, spec

KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
ANSWER = """
import socket, sys
listener = socket.socket(fileno=3)
while True:
    peer, _ = listener.accept()
    with peer:
        peer.sendall(b"answer " + sys.argv[1].encode())
"""


@pytest.fixture
def host() -> Iterator[KeeperHost]:
    with running_keeper() as running:
        yield running


def answer_of(address: str) -> bytes:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as sock, sock.makefile("rb") as stream:
        return stream.read()


def listening(client: KeeperClient, name: str = "web") -> str:
    address: str = client.do("listen", ListenRequest(ListenerSpec(name, "tcp://127.0.0.1:0"))).address
    return address


def server(key: str, name: str = "web") -> SpawnSpec:
    return spec(key, sys.executable, "-I", "-S", "-c", ANSWER, key, fds=[FdPlacement(3, f"listener:{name}")])


def on_command(key: str, client: KeeperClient, script: str = "read x; exit 5") -> int:
    """Start a service that acts when its standard input is closed; returns the descriptor to close."""
    read_fd, write_fd = os.pipe()
    client.spawn(spec(key, "sh", "-c", script, fds=[FdPlacement(0, "passed:0")]), passed=[read_fd])
    os.close(read_fd)
    return write_fd


def client_once_open(host: KeeperHost) -> KeeperClient:
    """For a keeper that opens its socket anew and cannot say when."""
    pause = select.poll()
    for _ in range(1000):
        try:
            return host.client()
        except OSError:
            pause.poll(10)
    raise AssertionError("the keeper does not come back")


def live_pids(client: KeeperClient) -> dict[str, int]:
    return {key: entry.pid for key, entry in client.entries().items() if entry.state is ProcessState.RUNNING}


# kill -9


def test_the_next_keeper_adopts_what_runs_and_learns_how_it_ends(host):
    client = host.client()
    address = listening(client)
    client.spawn(server("app/web/1/0/1"))
    ends = on_command("app/jobs/1/0/1", client)
    client.spawn(spec("app/jobs/1/1/1", "sleep", "1000"))
    client.until_running("app/web/1/0/1", "app/jobs/1/0/1", "app/jobs/1/1/1")
    before = live_pids(client)
    host.kill()
    assert answer_of(address) == b"answer app/web/1/0/1", "nothing of the service's is the keeper's alone"
    host.start()
    again = host.client()
    assert live_pids(again) == before
    assert answer_of(address) == b"answer app/web/1/0/1"
    (item,) = again.do("inventory", InventoryRequest()).items
    assert (item.name, item.held) == ("web", True), "the listener came back from the process that holds it"
    os.close(ends)
    ended = again.until_ended("app/jobs/1/0/1")
    if KERNEL >= (6, 15):
        assert (ended.state, ended.code) == (ProcessState.EXITED, 5), "though it is not our child"
    assert again.signal("app/jobs/1/1/1", signal.SIGTERM) == 1
    killed = again.until_ended("app/jobs/1/1/1")
    if KERNEL >= (6, 15):
        assert killed.signum == signal.SIGTERM
    (known,) = again.spawn(spec("app/web/1/0/1", "sleep", "1000"))
    assert known.known and known.pid == before["app/web/1/0/1"], "never a second copy"


def test_an_end_that_was_not_acknowledged_outlives_the_keeper(host):
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "sh", "-c", "exit 9"), spec("app/web/1/1/1", "no-such-program"))
    client.spawn(spec("app/web/1/2/1", "true"))
    for slot in range(3):
        client.until_ended(f"app/web/1/{slot}/1")
    client.ack("app/web/1/2/1")
    host.kill()
    host.start()
    found = host.client().entries()
    assert set(found) == {"app/web/1/0/1", "app/web/1/1/1"}
    assert found["app/web/1/0/1"].code == 9
    assert (found["app/web/1/1/1"].state, found["app/web/1/1/1"].error_stage) == (ProcessState.FAILED, "exec")


def test_what_ended_while_there_was_no_keeper_is_lost_and_says_so(host):
    client = host.client()
    ends = on_command("app/+build/1/0/1", client)
    pid = client.until_running("app/+build/1/0/1")["app/+build/1/0/1"].pid
    pidfd = os.pidfd_open(pid)
    host.kill()
    os.close(ends)
    assert select.select([pidfd], [], [], PATIENCE_S)[0]
    wait_reaped(pid)
    os.close(pidfd)
    host.start()
    entry = host.client().entries()["app/+build/1/0/1"]
    assert (entry.state, entry.code, entry.signum) == (ProcessState.LOST, None, None)


def wait_reaped(pid: int) -> None:
    pause = select.poll()
    for _ in range(1000):
        if process.read_stat(pid) is None:
            return
        pause.poll(10)
    pytest.skip("this host's init does not reap orphans")


def test_a_number_that_is_somebody_elses_by_now_is_never_adopted_nor_signalled(host):
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "sleep", "1000"))
    entry = client.until_running("app/web/1/0/1")["app/web/1/0/1"]
    host.kill()
    os.kill(entry.pid, signal.SIGKILL)
    wait_reaped(entry.pid)
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        path = Path(host.runtime, "pids", "app:web:1:0:1")
        path.write_text(path.read_text().replace(f" {entry.pid} ", f" {stranger.pid} "))
        host.start()
        again = host.client()
        assert again.entries()["app/web/1/0/1"].state is ProcessState.LOST
        assert again.signal("app/web/1/0/1", signal.SIGKILL, whole=True) == 0
        assert again.kill_tree("app/web/1/0/1").killed == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(PATIENCE_S)


def test_records_of_another_boot_name_nothing(host):
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "true"))
    client.until_ended("app/web/1/0/1")
    client.do("orders", OrdersRequest(set=(StandingOrder("app/web/0", spec("app/web/1/0/1", "sleep", "1000")),)))
    host.kill()
    Path(host.runtime, "boot").write_text("another boot")
    host.start()
    again = host.client()
    assert again.entries() == {} and again.do("inventory", InventoryRequest()).items == ()


def test_a_record_that_was_cut_short_is_skipped_with_a_note(host):
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "sleep", "1000"))
    before = client.until_running("app/web/1/0/1")["app/web/1/0/1"].pid
    host.kill()
    Path(host.runtime, "pids", "app:web:1:0:1").write_bytes(b'{"key": "app/we')
    Path(host.runtime, "orders", "app:web:9").write_bytes(b"{")
    Path(host.runtime, "held", "listener.x").write_bytes(b"[]")
    host.start()
    client = host.client()
    assert len([note for note in client.hello().notes if "unreadable" in note]) == 3
    assert live_pids(client) == {"app/web/1/0/1": before}, "the stamp in its environment names it as well"


def test_a_listener_that_only_the_agent_holds_is_given_back(host):
    client = host.client()
    reply, (fd,) = client.ask("listen", ListenRequest(ListenerSpec("web", "tcp://127.0.0.1:0")))
    waiting = socket.create_connection(("127.0.0.1", int(reply.address.rpartition(":")[2])), PATIENCE_S)
    host.kill()
    host.start()
    again = host.client()
    (item,) = again.do("inventory", InventoryRequest()).items
    assert (item.name, item.held) == ("web", False), "known, and not there"
    given = again.do("give", GiveRequest(Held.LISTENER, "web", ListenerSpec("web", "tcp://127.0.0.1:0")), [fd])
    assert not given.known
    os.close(fd)
    again.spawn(server("app/web/1/0/1"))
    with waiting, waiting.makefile("rb") as stream:
        assert stream.read() == b"answer app/web/1/0/1", "the connection that waited in its queue is served"


def test_when_both_are_gone_listeners_come_back_from_a_live_process(host):
    client = host.client()
    address = listening(client)
    client.spawn(server("app/web/1/0/1"))
    client.until_running("app/web/1/0/1")
    inode = client.do("inventory", InventoryRequest()).items[0].inode
    host.kill()
    client.close()
    host.start()
    again = host.client()
    (item,) = again.do("inventory", InventoryRequest()).items
    assert (item.inode, item.held) == (inode, True)
    pid = live_pids(again)["app/web/1/0/1"]
    os.kill(pid, signal.SIGKILL)
    again.until_ended("app/web/1/0/1")
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), PATIENCE_S) as queued:
        again.spawn(server("app/web/1/0/2"))
        assert queued.makefile("rb").read() == b"answer app/web/1/0/2"


def test_a_notify_path_stays_good(host):
    """A service holds its NOTIFY_SOCKET for life: after both have gone a new socket takes the same path."""
    client = host.client()
    path, (fd,) = (lambda found: (found[0].path, found[1]))(client.ask("notify", NotifyRequest("app/web/0")))
    host.kill()
    host.start()
    (item,) = host.client().do("inventory", InventoryRequest()).items
    assert (item.kind, item.held) == (Held.NOTIFY, False), "the agent's duplicate is what the path leads to"
    os.close(fd)
    host.kill()
    assert unix_inode(path) is None
    host.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"READY=1", path)
    again = host.client()
    (item,) = again.do("notices", NoticesRequest()).items
    assert item.notices[0].variable == "READY"


def test_a_keeper_alone_carries_on_with_the_standing_orders(host):
    client = host.client()
    address = listening(client)
    client.do("notify", NotifyRequest("app/web/0"))
    wanted = server("app/web/1/0/1")
    client.do("orders", OrdersRequest(set=(StandingOrder(str(parse_key(wanted.key).slot_name), wanted),)))
    client.spawn(wanted)
    pid = client.until_running("app/web/1/0/1")["app/web/1/0/1"].pid
    client.close()
    host.kill()
    os.kill(pid, signal.SIGKILL)
    wait_reaped(pid)
    host.start()  # nobody held the listener: it is bound anew for the order
    assert_port_is_the_same = address.rpartition(":")[2]
    found = host.client(hello=False)
    pause = select.poll()
    while not any(entry.by == "order" for entry in found.entries().values()):
        pause.poll(10)
    started = next(entry for entry in found.entries().values() if entry.by == "order")
    assert started.key == "app/web/1/0/2"
    held = [item for item in found.do("inventory", InventoryRequest()).items if item.kind is Held.LISTENER]
    assert held[0].held and assert_port_is_the_same


AGENT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from midstream.agent.keeper_link import KeeperLost
from midstream.testing.keeper_host import KeeperClient
path = os.environ["MIDSTREAM_KEEPER_SOCKET"]
while True:
    try:
        client = KeeperClient(path)
        client.hello()
    except (OSError, KeeperLost):
        signal.sigtimedwait([], 0.02)
        continue
    with open(sys.argv[2], "w") as fifo:
        fifo.write(f"{os.getpid()}\\n")
    try:
        while True:
            client.receive(1000)
    except KeeperLost:
        continue
"""


def test_the_agent_that_is_there_is_used_and_no_second_one_started(tmp_path):
    fifo = tmp_path / "words"
    os.mkfifo(fifo)
    words = os.fdopen(os.open(fifo, os.O_RDWR), "rb", buffering=0)
    source = str(Path(midstream.__file__).parent.parent)
    with KeeperHost([sys.executable, "-c", AGENT, source, str(fifo)]) as host, words:
        host.start()
        first = int(line(words))
        try:
            host.kill()
            host.start()
            assert int(line(words)) == first, "it attached to the next keeper"
            agents = [stat.pid for stat in tree.snapshot().values() if stat.ppid == host.process.pid]
            assert agents == []
        finally:
            os.kill(first, signal.SIGKILL)
        second = int(line(words))
        assert second != first and process.read_stat(second).ppid == host.process.pid
        os.kill(host.process.pid, signal.SIGTERM)
        assert host.wait() == 0
        assert process.read_stat(second) is None


def line(stream: object) -> bytes:
    text = b""
    while not text.endswith(b"\n"):
        assert select.select([stream], [], [], PATIENCE_S)[0], "the agent said nothing"
        text += stream.read(1)
    return text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts a file system")
def test_a_full_runtime_folder_stops_nothing(tmp_path):
    """The runtime folder takes no byte more: services start, come back by order, and are adopted by their stamp."""
    with KeeperHost() as host:
        os.mkdir(host.runtime, 0o711)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=711", "tmpfs", host.runtime], check=True)
        try:
            host.start()
            client = host.client()
            client.do("channel", ChannelRequest("log"))
            fill(Path(host.runtime, "filler"))
            wanted = spec("app/web/1/0/1", "sleep", "1000", fds=[FdPlacement(1, "channel:log")])
            client.do("orders", OrdersRequest(set=(StandingOrder("app/web/0", wanted),)))
            client.spawn(wanted)
            pid = client.until_running("app/web/1/0/1")["app/web/1/0/1"].pid
            assert any("No space left" in note for note in client.hello().notes), "and it is told"
            client.close()
            os.kill(pid, signal.SIGKILL)
            waiting = host.client(hello=False)
            pause = select.poll()
            while "app/web/1/0/2" not in live_pids(waiting):
                pause.poll(10)
            second = live_pids(waiting)["app/web/1/0/2"]
            host.kill()
            host.start()
            assert live_pids(host.client()) == {"app/web/1/0/2": second}
        finally:
            host.kill()
            subprocess.run(["umount", "-l", host.runtime], check=True)


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 1024)
        except OSError:
            pass


# Upgrade in place


def altered(host: KeeperHost, module: str, old: str, new: str) -> str:
    """A keeper image with one change, as a newer or broken version would be."""
    path = f"{host.folder}/altered.pyz"
    with zipfile.ZipFile(host.image) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == f"midstream/{module}.py":
                assert old.encode() in data
                data = data.replace(old.encode(), new.encode())
            if name != f"midstream/{module}.pyc":
                target.writestr(name, data)
    os.chmod(path, 0o600)
    return path


def test_an_upgrade_keeps_pid_children_descriptors_and_the_connection(host):
    client = host.client()
    address = listening(client)
    client.do("channel", ChannelRequest("log"))
    client.do("notify", NotifyRequest("app/web/0"))
    client.spawn(server("app/web/1/0/1"))
    ends = on_command("app/jobs/1/0/1", client)
    client.spawn(spec("app/jobs/1/1/1", "sh", "-c", "exit 4"))
    client.until_running("app/web/1/0/1", "app/jobs/1/0/1")
    client.until_ended("app/jobs/1/1/1")
    wanted = spec("app/web/1/0/1", "sleep", "1000")
    client.do("orders", OrdersRequest(set=(StandingOrder("app/web/0", wanted),)))
    before, pid, instance = client.entries(), host.process.pid, client.hello().instance
    newer = altered(host, "__init__", '__version__ = "', '__version__ = "9.')
    assert client.do("upgrade", UpgradeRequest(newer)).version.startswith("9.")
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        assert newer.encode() in file.read(), "it is the new program, in the same process"
    assert client.entries() == before
    kinds = [(item.kind, item.held) for item in client.do("inventory", InventoryRequest()).items]
    assert kinds == [(Held.CHANNEL, True), (Held.LISTENER, True), (Held.NOTIFY, True), (Held.ORDER, True)]
    assert answer_of(address) == b"answer app/web/1/0/1"
    os.close(ends)
    assert client.until_ended("app/jobs/1/0/1").code == 5, "they are still its children"
    found = client.hello()
    assert (found.pid, found.instance) == (pid, instance)
    assert found.version.startswith("9.")
    os.kill(pid, signal.SIGTERM)
    client.until(lambda entries: all(entry.ended_s for entry in entries.values()))
    client.close()
    assert host.wait() == 0


def test_what_was_spooled_and_noted_is_carried_over(host):
    client = host.client()
    client.do("channel", ChannelRequest("log"))
    path = client.do("notify", NotifyRequest("app/web/0")).path
    client.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"READY=1", path)
    Path(host.runtime, "out", "log").write_bytes(b"said\n")
    again = host.client(hello=False)
    pause = select.poll()
    while sum(item.spooled for item in again.do("inventory", InventoryRequest()).items) < 6:
        pause.poll(10)
    again.hello()
    again.do("upgrade", UpgradeRequest(host.image))
    assert again.do("spool", SpoolRequest("log")).size_bytes == 5
    assert again.do("notices", NoticesRequest()).items[0].notices[0].variable == "READY"


def test_children_that_end_and_signals_that_come_during_an_upgrade_are_not_lost(host):
    client = host.client()
    ends = [on_command(f"app/jobs/1/{slot}/1", client, "read x; exit 6") for slot in range(20)]
    client.until_running(*(f"app/jobs/1/{slot}/1" for slot in range(20)))
    for fd in ends[:10]:
        os.close(fd)
    client.do("upgrade", UpgradeRequest(host.image))
    for fd in ends[10:]:
        os.close(fd)
    client.do("upgrade", UpgradeRequest(host.image))
    found = client.until(lambda entries: all(entry.state is ProcessState.EXITED for entry in entries.values()))
    assert {entry.code for entry in found.values()} == {6} and len(found) == 20


def test_a_term_that_comes_while_the_new_image_starts_is_an_ordered_stop(host):
    """Between the exec and the new handlers a TERM would kill: it stays pending until they are in place."""
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "sleep", "1000"))
    client.until_running("app/web/1/0/1")
    newer = altered(host, "keeper/snapshot", "FORMAT = 1", "FORMAT = 1\nimport time; time.sleep(0.3)")
    message = {"id": 1, "op": "upgrade", "path": newer, "epoch": client.epoch}
    client.send_raw(json.dumps(message).encode())
    pause = select.poll()
    while newer not in process.read_argv(host.process.pid):
        pause.poll(1)
    os.kill(host.process.pid, signal.SIGTERM)
    assert "ok" in client.reply()[0]
    assert client.until_ended("app/web/1/0/1").signum == signal.SIGTERM
    client.close()
    assert host.wait() == 0


@pytest.mark.parametrize(
    ("module", "old", "new", "reason"),
    [
        ("keeper/snapshot", "FORMAT = 1", "FORMAT = 2", "format 1"),
        ("keeper/snapshot", "    lock_fd: int\n", "    padlock_fd: int\n", "lock_fd"),
        ("keeper/table", "class Row:", "class Row(:", "SyntaxError"),
    ],
)
def test_an_image_that_cannot_take_over_is_refused_and_all_is_as_it_was(host, module, old, new, reason):
    client = host.client()
    client.spawn(spec("app/web/1/0/1", "sleep", "1000"))
    before = client.until_running("app/web/1/0/1")
    with open(f"/proc/{host.process.pid}/cmdline", "rb") as file:
        command = file.read()
    with pytest.raises(KeeperRefused) as refused:
        client.do("upgrade", UpgradeRequest(altered(host, module, old, new)))
    assert refused.value.refusal is Refusal.IMAGE and reason in refused.value.what
    with open(f"/proc/{host.process.pid}/cmdline", "rb") as file:
        assert file.read() == command
    assert client.entries() == before
    assert client.do("upgrade", UpgradeRequest(host.image)).version, "and a good one is still taken"


def test_only_a_file_that_nobody_else_could_have_put_there_is_tried(host, tmp_path):
    client = host.client()
    loose = shutil.copy(host.image, tmp_path / "loose.pyz")
    os.chmod(loose, 0o666)
    for path in (str(loose), "relative.pyz", str(tmp_path), "/no/such/file"):
        with pytest.raises(KeeperRefused):
            client.do("upgrade", UpgradeRequest(path))


def test_an_image_that_fails_only_after_the_exec_adopts_everything_instead(host):
    """Validation cannot see every bug. The process is still the parent: nothing is lost but the connection."""
    client = host.client()
    address = listening(client)
    only_ours = listening(client, "spare")
    path = client.do("notify", NotifyRequest("app/web/0")).path
    client.spawn(server("app/web/1/0/1"))
    ends = on_command("app/jobs/1/0/1", client)
    client.until_running("app/web/1/0/1", "app/jobs/1/0/1")
    before, pid = live_pids(client), host.process.pid
    broken = altered(host, "keeper/upgrade", "    _resume_rows(keeper, state)\n", "    raise RuntimeError('a bug')\n")
    with pytest.raises(KeeperLost):
        client.do("upgrade", UpgradeRequest(broken))
    again = client_once_open(host)
    assert again.hello().pid == pid
    assert live_pids(again) == before
    assert answer_of(address) == b"answer app/web/1/0/1"
    os.close(ends)
    assert again.until_ended("app/jobs/1/0/1").code == 5
    again.spawn(server("app/web/1/1/1", "spare"))
    assert answer_of(only_ours) == b"answer app/web/1/1/1"
    assert unix_inode(path) is not None
