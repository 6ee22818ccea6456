"""What the keeper holds by name: listeners, channels, notify sockets; and what it refuses."""

from __future__ import annotations

import json
import os
import pwd
import resource
import select
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest

from midstream.agent.keeper_link import KeeperLost, KeeperRefused
from midstream.core.messages import (
    FDS_MAX,
    MESSAGE_MAX_BYTES,
    ChannelRequest,
    FdPlacement,
    GiveRequest,
    Held,
    HelloRequest,
    InventoryRequest,
    ListenerSpec,
    ListenRequest,
    NameRequest,
    NoticesRequest,
    NotifyRequest,
    OrdersRequest,
    PingRequest,
    Refusal,
    ShutdownRequest,
    SpoolRequest,
    StandingOrder,
    TakeRequest,
)
from midstream.linux import fds as fd_calls
from midstream.testing.keeper_host import PATIENCE_S, KeeperClient, KeeperHost, running_keeper, spec

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it changes users")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def host() -> Iterator[KeeperHost]:
    with running_keeper() as running:
        yield running


@pytest.fixture
def client(host: KeeperHost) -> KeeperClient:
    return host.client()


def open_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def as_nobody(*argv: str) -> int:
    """The exit code of a command run by another user."""
    return subprocess.run(
        argv, user="nobody", group="nogroup", extra_groups=[], check=False, timeout=PATIENCE_S
    ).returncode


# Listeners


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://[::1]:0", "unix://{tmp}/web.sock", "private"])
def test_a_listener_accepts_though_no_service_runs(client, tmp_path, address):
    spec_ = ListenerSpec("web", address.format(tmp=tmp_path))
    reply, (fd,) = client.ask("listen", ListenRequest(spec_))
    with socket.socket(fileno=fd) as listener, connected(reply.address) as peer:
        peer.sendall(b"x")
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(1) == b"x"
    assert reply.inode


def connected(address: str) -> socket.socket:
    if address.startswith("unix://"):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(address.removeprefix("unix://"))
        return sock
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S)


def test_listening_again_is_answered_with_the_same_socket(client):
    first = client.do("listen", ListenRequest(ListenerSpec("web", "tcp://127.0.0.1:0")))
    assert client.do("listen", ListenRequest(ListenerSpec("web", "tcp://127.0.0.1:0"))) == first
    with pytest.raises(KeeperRefused) as refused:
        client.do("listen", ListenRequest(ListenerSpec("web", "tcp://127.0.0.1:1")))
    assert refused.value.refusal is Refusal.TAKEN


def test_an_address_in_use_names_who_has_it(client, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(KeeperRefused) as refused:
            client.do("listen", ListenRequest(ListenerSpec("web", f"tcp://127.0.0.1:{port}")))
    assert refused.value.errno == "EADDRINUSE"
    assert f"pid {os.getpid()} (" in refused.value.holder
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(KeeperRefused) as refused:
            client.do("listen", ListenRequest(ListenerSpec("web", f"unix://{path}")))
    assert refused.value.errno == "EADDRINUSE" and f"pid {os.getpid()} (" in refused.value.holder


def test_a_dead_unix_socket_is_replaced_and_a_file_is_not(client, tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    client.do("listen", ListenRequest(ListenerSpec("web", f"unix://{path}")))
    connected(f"unix://{path}").close()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(KeeperRefused):
        client.do("listen", ListenRequest(ListenerSpec("file", f"unix://{tmp_path}/file")))
    assert (tmp_path / "file").read_text() == "precious"


@as_root
def test_a_unix_listener_has_its_mode_and_owner(client, tmp_path):
    path = tmp_path / "s"
    wanted = ListenerSpec("web", f"unix://{path}", mode=0o640, uid=NOBODY.pw_uid, gid=NOBODY.pw_gid)
    client.do("listen", ListenRequest(wanted))
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, NOBODY.pw_uid, NOBODY.pw_gid)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "http://127.0.0.1:80",
        "tcp://127.0.0.1",
        "tcp://example.com:80",
        "tcp://127.0.0.1:99999",
        "unix://relative",
        "tcp://::1:80",
        "tcp://[127.0.0.1]:80",
        "unix:///" + "x" * 120,
    ],
)
def test_an_address_that_makes_no_sense_is_refused(client, address):
    with pytest.raises(KeeperRefused) as refused:
        client.do("listen", ListenRequest(ListenerSpec("web", address)))
    assert refused.value.refusal is Refusal.BAD_REQUEST


def test_unlisten_closes_the_socket_for_good(client, tmp_path):
    path = str(tmp_path / "s")
    client.do("listen", ListenRequest(ListenerSpec("web", f"unix://{path}")))
    client.do("unlisten", NameRequest("web"))
    assert not os.path.exists(path)
    assert client.do("inventory", InventoryRequest()).items == ()


def test_pages_of_descriptors_have_at_most_250(client):
    names = tuple(f"web{number}" for number in range(FDS_MAX + 20))
    for name in names:
        client.do("listen", ListenRequest(ListenerSpec(name, "private")))
    with pytest.raises(KeeperRefused):
        client.do("take", TakeRequest(Held.LISTENER, names))
    reply, received = client.ask("take", TakeRequest(Held.LISTENER, names[:FDS_MAX]))
    fd_calls.close_all(received)
    assert reply.names == names[:FDS_MAX] and len(received) == FDS_MAX
    reply, received = client.ask("take", TakeRequest(Held.LISTENER, (*names[FDS_MAX:], "nobody")))
    fd_calls.close_all(received)
    assert reply.names == names[FDS_MAX:] and reply.missing == ("nobody",)


def test_what_is_given_is_held_and_what_is_held_is_kept(client):
    with socket.create_server(("127.0.0.1", 0)) as mine:
        address = f"tcp://127.0.0.1:{mine.getsockname()[1]}"
        request = GiveRequest(Held.LISTENER, "web", ListenerSpec("web", address))
        assert not client.do("give", request, [mine.fileno()]).known
        assert client.do("give", request, [mine.fileno()]).known
    connected(address).close()
    read_fd, write_fd = os.pipe()
    with pytest.raises(KeeperRefused):
        client.do("give", GiveRequest(Held.LISTENER, "pipe", ListenerSpec("pipe", "private")), [read_fd])
    os.close(read_fd), os.close(write_fd)


# Channels


def test_a_writer_gets_no_sigpipe_and_no_end_when_all_readers_have_gone(host, client):
    """The FIFO is open for reading in the writer itself; and what it holds stays while an agent holds it."""
    agents = client.fd("channel", ChannelRequest("log"))
    script = "while read line; do echo got $line; done"
    read_fd, write_fd = os.pipe()
    client.spawn(
        spec("app/web/1/0/1", "sh", "-c", script, fds=[FdPlacement(1, "channel:log"), FdPlacement(0, "passed:0")]),
        passed=[read_fd],
    )
    os.close(read_fd)
    client.until_running("app/web/1/0/1")
    host.kill()
    os.write(write_fd, b"one\ntwo\n")
    os.close(write_fd)  # the script ends by itself
    host.start()
    again = host.client()
    assert again.until_ended("app/web/1/0/1").signum is None
    os.close(agents)
    assert spooled(again, "log")[0] == b"got one\ngot two\n"


def spooled(client: KeeperClient, name: str) -> tuple[bytes, int]:
    """What a channel said: the keeper's spool, then what is in the FIFO."""
    reply, received = client.ask("spool", SpoolRequest(name))
    data = fd_calls.read_file(received[0]) if received else b""
    fd_calls.close_all(received)
    fd = client.fd("channel", ChannelRequest(name))
    try:
        data += os.read(fd, 1 << 16) if select.select([fd], [], [], 0)[0] else b""
    finally:
        os.close(fd)
    return data, reply.dropped_bytes


def test_what_is_written_while_no_agent_reads_is_spooled_and_nobody_waits(host, client):
    client.do("channel", ChannelRequest("log"))
    client.close()
    spooling = host.client(hello=False)
    writer = os.open(f"{host.runtime}/out/log", os.O_WRONLY)
    block = bytes(range(256)) * 256
    for _ in range(10):  # ten times what the FIFO holds: only a reader lets this go on
        view = memoryview(block)
        while view:
            view = view[os.write(writer, view) :]
    os.close(writer)
    last = b"the end\n"
    writer = os.open(f"{host.runtime}/out/log", os.O_WRONLY)
    os.write(writer, last)
    os.close(writer)
    spooling.hello()
    data, dropped = spooled(spooling, "log")
    assert data.endswith(block + last), "the newest is kept"
    assert len(data) + dropped == 10 * len(block) + len(last), "and the rest is counted"
    assert dropped > 0
    assert spooled(spooling, "log")[0], "it stays until it is cleared"
    spooling.do("spool", SpoolRequest("log", clear=True))
    assert spooled(spooling, "log") == (b"", 0)


@as_root
def test_a_channel_is_for_its_user_alone(host, client):
    client.do("channel", ChannelRequest("mine", NOBODY.pw_uid, NOBODY.pw_gid))
    client.do("channel", ChannelRequest("roots"))
    out = f"{host.runtime}/out"
    assert as_nobody("sh", "-c", f"echo hello > {out}/mine") == 0
    assert as_nobody("sh", "-c", f"echo hello > {out}/roots 2>/dev/null") != 0
    for folder in (out, host.runtime, f"{host.runtime}/n", f"{host.runtime}/l"):
        assert as_nobody("sh", "-c", f"ls {folder} 2>/dev/null") != 0
    for path in ("pids", "held", "orders", "keeper.sock"):
        assert as_nobody("sh", "-c", f"cat {host.runtime}/{path} {host.runtime}/{path}/* 2>/dev/null") != 0


# Notify sockets


def send_to(path: str, text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.sendto(text.encode(), path)


def test_a_flood_of_notifications_without_an_agent_blocks_nobody(host, client):
    """A socket that nobody reads takes 11 datagrams; the sender of the twelfth would wait for ever."""
    path = client.do("notify", NotifyRequest("app/web/0")).path
    client.close()
    reader = host.client(hello=False)
    for number in range(100):
        send_to(path, f"STATUS=step {number}\nWATCHDOG=1")
    send_to(path, "READY=1\nMAINPID=4711")
    reader.do("ping", PingRequest())
    # The keeper reads datagrams one a turn: the last is in when nothing is left to be read.
    while select_pending(path):
        reader.do("ping", PingRequest())
    reader.hello()
    (item,) = reader.do("notices", NoticesRequest()).items
    found = {notice.variable: notice for notice in item.notices}
    assert item.name == "app/web/0"
    assert {name: notice.value for name, notice in found.items()} == {
        "STATUS": "step 99",
        "WATCHDOG": "1",
        "READY": "1",
        "MAINPID": "4711",
    }
    assert found["READY"].pid == os.getpid() and found["READY"].uid == os.geteuid()
    assert reader.do("notices", NoticesRequest()).items, "they stay until they are cleared"
    assert reader.do("notices", NoticesRequest(("app/web/0",))).items == ()


def select_pending(path: str) -> bool:
    """Whether datagrams wait in the socket bound to `path` (ss shows it as Recv-Q)."""
    out = subprocess.run(["ss", "-xaH", "src", path], capture_output=True, text=True, check=False).stdout
    return any(int(line.split()[2]) for line in out.splitlines() if path in line)


def test_an_attached_agent_reads_notifications_itself(client):
    reply, (fd,) = client.ask("notify", NotifyRequest("app/web/0"))
    send_to(reply.path, "READY=1")
    with socket.socket(fileno=fd) as mine:
        data, control, _, _ = mine.recvmsg(4096, socket.CMSG_SPACE(12))
    assert data == b"READY=1"
    assert [kind for _, kind, _ in control] == [socket.SCM_CREDENTIALS]
    assert client.do("notices", NoticesRequest()).items == ()


def test_a_barrier_is_answered_by_closing_it(host, client):
    """sd_notify_barrier(3) sends a pipe and waits until the receiver has closed it."""
    path = client.do("notify", NotifyRequest("app/web/0")).path
    client.close()
    read_fd, write_fd = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(path)
        socket.send_fds(sock, [b"BARRIER=1"], [write_fd])
    os.close(write_fd)
    assert select.select([read_fd], [], [], PATIENCE_S)[0] and os.read(read_fd, 1) == b""
    os.close(read_fd)


@as_root
def test_a_notify_socket_is_for_its_user_alone(client):
    send = "import socket,sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', sys.argv[1])"
    mine = client.do("notify", NotifyRequest("mine", NOBODY.pw_uid, NOBODY.pw_gid)).path
    roots = client.do("notify", NotifyRequest("roots")).path
    python = "/usr/bin/python3"
    if not os.path.exists(python):
        pytest.skip("no Python that another user may run")
    assert as_nobody(python, "-c", send, mine) == 0
    assert as_nobody(python, "-c", f"import sys; sys.stderr = open('/dev/null', 'w')\n{send}", roots) != 0


# The door


def test_an_older_epoch_is_refused_everywhere_and_changes_nothing(host, client):
    newer = host.client()
    assert newer.epoch > client.epoch
    for op, request in (
        ("listen", ListenRequest(ListenerSpec("web", "private"))),
        ("channel", ChannelRequest("log")),
        ("take", TakeRequest(Held.LISTENER, ("web",))),
    ):
        with pytest.raises(KeeperRefused) as refused:
            client.do(op, request)
        assert refused.value.refusal is Refusal.STALE_EPOCH
    with pytest.raises(KeeperRefused) as refused:
        client.spawn(spec("app/web/1/0/1", "true"))
    assert refused.value.refusal is Refusal.STALE_EPOCH
    with pytest.raises(KeeperRefused) as refused:  # the number alone is not enough: it belongs to a connection
        client.ask("channel", ChannelRequest("log"), epoch=newer.epoch)
    assert refused.value.refusal is Refusal.STALE_EPOCH
    assert client.entries() == {} and newer.do("inventory", InventoryRequest()).items == ()


def test_another_protocol_is_refused(host):
    client = host.client(hello=False)
    with pytest.raises(KeeperRefused) as refused:
        client.do("hello", HelloRequest(99))
    assert refused.value.refusal is Refusal.PROTOCOL


@as_root
def test_another_user_does_not_get_in(host):
    knock = (
        "import socket,sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "try:\n s.connect(sys.argv[1])\nexcept PermissionError:\n sys.exit(7)\n"
        'try:\n s.send(b\'{"id": 1, "op": "ping"}\'); sys.exit(8 if s.recv(100) == b\'\' else 0)\n'
        "except OSError:\n sys.exit(8)"
    )
    if not os.path.exists("/usr/bin/python3"):
        pytest.skip("no Python that another user may run")
    assert as_nobody("/usr/bin/python3", "-c", knock, host.socket_path) == 7
    os.chmod(host.socket_path, 0o666)  # even when the mode were wrong, the peer's uid is looked at
    assert as_nobody("/usr/bin/python3", "-c", knock, host.socket_path) == 8


def garbage() -> list[bytes]:
    return [
        b"\xff\xfe",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'"hello"',
        b"{}",
        b'{"id": 1}',
        b'{"id": "x", "op": "ping"}',
        b'{"id": true, "op": 7}',
        b'{"id": 1, "op": "nonsense"}',
        b'{"id": 1, "op": ["ping"]}',
        b'{"id": 1, "op": "pull", "after": "x"}',
        b'{"id": 1, "op": "pull", "extra": 1}',
        b'{"id": 1, "op": "hello", "protocol": 1.5}',
        b'{"id": 1, "op": "spawn"}',
        b"[" * 100_000,
        b'{"id": 1, "op": "spawn", "epoch": EPOCH, "specs": [{"key": 1}]}',
        b'{"id": 1, "op": "spawn", "epoch": EPOCH, "specs": {}}',
        b'{"id": 1, "op": "signal", "epoch": EPOCH, "key": "app/web/1/0/1", "signum": 9.5}',
        b'{"id": 1, "op": "channel", "epoch": EPOCH, "name": "../../etc/passwd"}',
        b'{"id": 1, "op": "notify", "epoch": EPOCH, "name": "x", "uid": "root"}',
        b'{"id": 1, "op": "shutdown", "epoch": EPOCH, "timeout_s": "now"}',
        b'{"id": 1, "op": "orders", "epoch": EPOCH, "set": [{"slot": "app/web/0"}]}',
    ]


def test_bad_input_is_answered_changes_nothing_and_leaks_nothing(host, client):
    before = open_count(host.process.pid)
    read_fd, write_fd = os.pipe()
    for data in garbage():
        client.send_raw(data.replace(b"EPOCH", str(client.epoch).encode()), [read_fd, write_fd, read_fd])
        answer, received = client.reply()
        assert "error" in answer and received == [], data
    os.close(read_fd), os.close(write_fd)
    client.do("ping", PingRequest())
    assert open_count(host.process.pid) == before
    assert client.entries() == {} and client.do("inventory", InventoryRequest()).items == ()


def test_descriptors_that_an_operation_does_not_take_are_closed(host, client):
    before = open_count(host.process.pid)
    read_fd, write_fd = os.pipe()
    for _ in range(5):
        client.ask("ping", PingRequest(), [read_fd, write_fd])
    many = [read_fd] * 253
    client.send_raw(json.dumps({"id": 1, "op": "ping"}).encode(), many)
    answer, _ = client.reply()
    assert answer["error"]["code"] == "bad_request"
    os.close(read_fd), os.close(write_fd)
    client.do("ping", PingRequest())
    assert open_count(host.process.pid) == before


def test_a_message_that_is_too_long_is_refused(host, client):
    client.send_raw(b'{"id": 1, "op": "ping", "x": "' + b"x" * MESSAGE_MAX_BYTES + b'"}')
    assert client.reply()[0]["error"]["code"] == "bad_request"
    client.do("ping", PingRequest())


def test_a_peer_that_asks_and_never_reads_is_dropped_and_the_keeper_goes_on(host, client):
    client.spawn(*(spec(f"app/web/1/{slot}/1", "true") for slot in range(100)))
    client.until(lambda found: all(entry.ended_s for entry in found.values()) and len(found) == 100)
    other = host.client(hello=False)
    with pytest.raises((OSError, KeeperLost)):
        for number in range(100_000):
            while not fd_calls.send(other.sock, json.dumps({"id": number, "op": "pull"}).encode()):
                select.select([], [other.sock], [], PATIENCE_S)
    client.do("ping", PingRequest())


def test_a_second_keeper_is_refused_and_names_the_first(host, client):
    second = subprocess.run(host.argv(), capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert second.returncode == 4
    assert f"pid {host.process.pid}" in second.stderr
    client.do("ping", PingRequest())


def test_a_runtime_path_too_long_for_sockets_is_refused_loudly(tmp_path):
    runtime = str(tmp_path / ("x" * 100))
    with KeeperHost() as host:
        argv = [runtime if word == host.runtime else word for word in host.argv()]
        refused = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert refused.returncode == 2
    assert "too long" in refused.stderr and "107" in refused.stderr


@pytest.mark.parametrize("words", [["--nonsense", "x"], ["--state"], ["--state", "/tmp/x"], ["--agent-argv", "7"]])
def test_wrong_options_say_so(words):
    with KeeperHost() as host:
        argv = [sys.executable, "-I", "-S", host.image, *words]
        refused = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert refused.returncode == 2 and "keeper" in refused.stderr


@pytest.mark.parametrize(
    ("op", "request_"),
    [
        ("unlisten", NameRequest("\ud800")),
        ("unnotify", NameRequest("../x")),
        ("channel", ChannelRequest("..")),
        ("channel", ChannelRequest("log", 2**40, 0)),
        ("notify", NotifyRequest("x", -2, 0)),
        ("listen", ListenRequest(ListenerSpec("web", "unix:///tmp/\ud800"))),
        ("listen", ListenRequest(ListenerSpec("web", "private", mode=2**20))),
        ("listen", ListenRequest(ListenerSpec("web", "private", backlog=2**40))),
        ("listen", ListenRequest(ListenerSpec("web", "tcp://127.0.0.1:0", backlog=-1))),
        ("shutdown", ShutdownRequest(float("nan"))),
        ("shutdown", ShutdownRequest(-1.0)),
        ("orders", OrdersRequest(revoke=("\0",), set=(StandingOrder("x", spec("x", "true")),))),
    ],
)
def test_values_that_no_system_call_takes_are_refused(client, op, request_):
    with pytest.raises(KeeperRefused) as refused:
        client.do(op, request_)
    assert refused.value.refusal is Refusal.BAD_REQUEST
    assert client.do("inventory", InventoryRequest()).items == ()


def test_without_a_descriptor_left_peers_are_turned_away_and_the_agent_is_served(host, client):
    pid = host.process.pid
    former = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    count = open_count(pid)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, former[1]))
    try:
        late = host.client(hello=False)
        with pytest.raises((KeeperLost, OSError)):
            late.do("ping", PingRequest())
        with pytest.raises(KeeperRefused) as refused:
            client.do("channel", ChannelRequest("log"))
        assert refused.value.errno == "EMFILE"
        (result,) = client.spawn(spec("app/web/1/0/1", "true"))
        assert not result.ok and "Too many open files" in result.error
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, former)
    client.do("channel", ChannelRequest("log"))
    assert open_count(pid) == count + 1


def test_a_bug_in_one_callback_does_not_end_the_loop(capsys):
    """The keeper is the parent of everything: what fails is logged, and what keeps failing is dropped."""
    from midstream.keeper.loop import Loop

    loop = Loop()
    pipes = [os.pipe() for _ in range(2)]
    seen: list[str] = []

    def broken(_events: int) -> None:
        seen.append("broken")
        raise RuntimeError("a bug")

    loop.add(pipes[0][0], broken)
    loop.add(pipes[1][0], lambda _events: seen.append("good"))
    loop.after(0, lambda: seen.append("timer"))
    for _, write_fd in pipes:
        os.write(write_fd, b"x")
    for _ in range(15):
        loop.turn()
    for pair in pipes:
        os.close(pair[0]), os.close(pair[1])
    assert seen.count("good") == 15 and seen.count("timer") == 1
    assert seen.count("broken") == 10
    assert "a bug" in capsys.readouterr().err
