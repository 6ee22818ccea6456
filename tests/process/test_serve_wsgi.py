"""WSGI: PEP 3333, app threads and inline, bodies in memory and files, slow readers, time-outs, sendfile, TLS."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_wsgi_process import Client, Served, serve

pytest.importorskip("httptools")
pytest.importorskip("uvloop")

Start = Callable[..., Served]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers that are stopped at the end."""
    running: list[Served] = []

    def begin(app: str = "serve_wsgi_app:app", **options: Any) -> Served:
        folder = tmp_path / str(len(running))
        folder.mkdir()
        running.append(serve(folder, app, **options))
        return running[-1]

    yield begin
    for served in running:
        served.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "large"
    path.write_bytes(os.urandom(3_000_000))
    return path


@pytest.fixture(scope="module", params=[4, 1], ids=["threads", "inline"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, file: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("wsgi")
    served = serve(
        folder, env={"TEST_FILE": str(file), "LOG_LEVEL": "DEBUG"}, threads=request.param, body_memory_bytes=100_000
    )
    yield served
    served.close()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    client = served.client()
    yield client
    client.close()


# ---- PEP 3333


@pytest.mark.parametrize("threads", [4, 1])
def test_validator_is_content(start: Start, threads: int) -> None:
    """wsgiref.validate looks at the environ, start_response and close()."""
    served = start("serve_wsgi_app:validated", threads=threads)
    client = served.client()
    assert client.get("/?a=b").body == b"valid"
    assert client.post("/x", b"body").body == b"valid"
    assert client.get("/", method="HEAD").status == 200
    assert "Error" not in served.log()


def test_write_and_iterable_follow_each_other(client: Client) -> None:
    assert client.get("/write").body == b"one two three"


def test_exc_info_replaces_what_is_not_sent(client: Client) -> None:
    answer = client.get("/recover")
    assert (answer.status, answer.body) == (418, b"recovered")


def test_exc_info_is_raised_when_the_head_is_out(served: Served, client: Client) -> None:
    client.send(b"GET /recover_too_late HTTP/1.1\r\nHost: t\r\n\r\n")
    with pytest.raises((EOFError, ConnectionResetError)):
        client.answer()
    assert "found out too late" in served.log()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/boom", "boom in the app"),
        ("/exit", "SystemExit"),
        ("/twice", "start_response() is called twice"),
        ("/silent", "has not called start_response"),
        ("/text", "bytes, not str"),
        ("/status/OK", "is no status"),
        ("/status/99_Low", "is no status"),
        ("/status/101_Switching_Protocols", "is no status"),
        ("/header?X=a%0d%0aSet-Cookie:%20evil", "line break"),
        ("/header?X=a%0aSet-Cookie:%20evil", "line break"),
        ("/header?X=a%00b", "line break or NUL"),
        ("/header?X%0d%0aY=a", "is no name"),
        ("/header?X%20Y=a", "is no name"),
        ("/header?Content-Length=five", "is no number"),
    ],
)
def test_mistake_of_the_app_is_a_500_with_a_traceback(served: Served, client: Client, path: str, said: str) -> None:
    """And the connection, whose framing is whole, goes on."""
    answer = client.get(path)
    assert answer.status == 500
    assert b"boom" not in answer.body
    assert said in served.log()
    assert client.get("/").body == b"hello"


def test_mistake_after_the_head_cuts_the_answer(served: Served, client: Client) -> None:
    """A client must not take half an answer for a whole one."""
    with pytest.raises((EOFError, ConnectionResetError)):
        client.get("/boom_late")
    assert "boom after the head" in served.log()


def test_mistake_in_close_harms_no_answer(served: Served, client: Client) -> None:
    assert client.get("/close_fails").body == b"all of it"
    assert client.get("/").body == b"hello"
    assert "boom in close" in served.log()


def test_content_length_of_the_app_binds_it(served: Served, client: Client) -> None:
    assert client.get("/long").body == b"too"
    assert client.get("/").body == b"hello"
    with pytest.raises((EOFError, ConnectionResetError)):
        client.get("/short")
    assert "more bytes than its Content-Length" in served.log()
    assert "announced 91 bytes more" in served.log()


@pytest.mark.parametrize("name", ["Transfer-Encoding=chunked", "Keep-Alive=max=5", "Upgrade=h2c"])
def test_headers_of_one_connection_are_not_the_apps(client: Client, name: str) -> None:
    answer = client.get(f"/header?{name}")
    assert answer[name.partition("=")[0]] == ""
    assert answer.body == b"hello"


def test_connection_close_of_the_app_is_obeyed(client: Client) -> None:
    assert client.get("/header?Connection=close")["Connection"] == "close"
    assert client.ends()


def test_date_of_the_app_replaces_ours(client: Client) -> None:
    assert client.get("/header?Date=today")["Date"] == "today"
    assert client.get("/")["Date"].endswith("GMT")


def test_environ_that_the_app_has_emptied(client: Client) -> None:
    assert client.get("/tamper").body == b"cleared"
    assert client.get("/").body == b"hello"


def test_release_is_said_unless_switched_off(start: Start, client: Client) -> None:
    assert client.get("/")["X-Release"] == "r1"
    served = start(release_header="", server_header="midstream")
    answer = served.client().get("/")
    assert (answer["X-Release"], answer["Server"]) == ("", "midstream")


def test_request_owns_its_thread_until_close_returns(start: Start) -> None:
    served = start(threads=2)
    first, second = served.client(), served.client()
    assert first.get("/closing").body == b"answered"
    first.send(b"GET /hello HTTP/1.1\r\nHost: t\r\n\r\n")  # waits for the close() of the request before it
    assert served.until_traffic(in_flight=1)
    assert second.get("/release").json() is True
    assert first.answer().body == b"hello"


def test_inline_runs_in_the_one_thread(start: Start) -> None:
    assert start(threads=1).client().get("/thread").json() == "MainThread"
    assert start(threads=3).client().get("/thread").json().startswith("app-")


def test_inline_gives_a_connection_up_when_another_waits(start: Start, tmp_path: Path) -> None:
    """Else one client with a kept connection could have the worker to itself."""
    served = start(threads=1)
    first = served.client()
    assert first.get("/sleep/0.02")["Connection"] == ""  # nobody waits
    started, go = fifos(tmp_path)
    first.send(busy(started, go))
    with open(started) as fifo:
        fifo.read(1)
    second = served.client()
    second.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
    time.sleep(0.05)  # quick answers keep their connection; this one is to be slow
    go.write_text("x")
    assert first.answer()["Connection"] == "close"
    assert second.answer().body == b"hello"


# ---- bodies


@pytest.mark.parametrize(("size", "kind"), [(0, "memory"), (100_000, "memory"), (100_001, "file"), (5_000_000, "file")])
def test_body_is_whole_in_memory_or_in_a_file(client: Client, size: int, kind: str) -> None:
    body = os.urandom(size)
    expected = {"sha256": hashlib.sha256(body).hexdigest(), "size": size, "kind": kind}
    assert client.post("/digest", body).json() == expected
    client.send(b"POST /digest HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
    for at in range(0, size, 70_000):
        piece = body[at : at + 70_000]
        client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    client.send(b"0\r\n\r\n")
    assert client.answer().json() == expected


def test_body_can_be_read_by_lines(client: Client) -> None:
    assert client.post("/lines", b"a\nb\nc").json() == ["a\n", "b\n", "c"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which needs root")
def test_full_disk_refuses_a_body_and_nothing_else(start: Start, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode()}")
    try:
        served = start(env={"TMPDIR": str(small)}, body_memory_bytes=1000)
        client = served.client()
        client.send(b"POST /digest HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000\r\n\r\n")
        try:
            client.send(b"x" * 1_000_000)
        except ConnectionError:
            pass
        assert client.answer().status == 507
        assert served.client().post("/digest", b"x" * 100_000).json()["kind"] == "file"  # the room is free again
        served.close()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_missing_folder_for_bodies_is_a_503(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    served = start(env={"TMPDIR": str(folder)}, body_memory_bytes=10)
    assert served.client().post("/digest", b"x" * 100).status == 200
    folder.rmdir()
    assert served.client().post("/digest", b"x" * 100).status == 503
    assert served.client().post("/digest", b"x").status == 200


# ---- answers that the client reads slowly, and files


@pytest.mark.parametrize("path", ["/large/8000000", "/large_pieces/120", "/file"])
def test_slow_reader_gets_everything(served: Served, file: Path, path: str) -> None:
    """And others are answered meanwhile: a reader that stands still holds at most its own app thread."""
    slow = served.client(receive_bytes=4096)
    slow.send(f"GET {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
    others = [served.client() for _ in range(5)]
    assert [each.get("/").body for each in others] == [b"hello"] * 5
    expected = {
        "/large/8000000": b"x" * 8_000_000,
        "/large_pieces/120": b"".join(bytes([n % 251]) * 65536 for n in range(120)),
        "/file": file.read_bytes(),
    }[path]
    slow.hurry()
    answer = slow.answer()
    assert answer.body == expected
    if not answer["Connection"]:  # inline it may be close, because the others waited
        assert slow.get("/").body == b"hello"


def test_slow_readers_hold_no_thread_once_the_app_is_done(start: Start, file: Path) -> None:
    """More of them than there are threads."""
    served = start(threads=2, env={"TEST_FILE": str(file)})
    readers = [served.client(receive_bytes=4096) for _ in range(8)]
    for number, reader in enumerate(readers):
        reader.send(b"GET /%b HTTP/1.1\r\nHost: t\r\n\r\n" % (b"file", b"large/8000000")[number % 2])
    served.until_traffic(in_flight=8)
    assert served.client().get("/").body == b"hello"
    for reader, size in zip(readers[:2], (3_000_000, 8_000_000), strict=True):
        reader.hurry()
        assert len(reader.answer().body) == size
    for reader in readers:
        reader.close()


def test_file_is_sent_by_sendfile(start: Start, file: Path) -> None:
    if not Path("/usr/bin/strace").exists():
        pytest.skip("strace is not installed")
    served = start(env={"TEST_FILE": str(file)})
    trace = served.errors.with_name("trace")
    pid = str(served.process.pid)
    strace = subprocess.Popen(
        ["strace", "-f", "-e", "trace=sendfile", "-o", str(trace), "-p", pid], stderr=subprocess.PIPE
    )
    assert strace.stderr and b"attached" in strace.stderr.readline()
    assert served.client().get("/file").body == file.read_bytes()
    served.close()
    strace.wait(10)
    strace.stderr.close()
    assert "sendfile(" in trace.read_text()


def test_file_wrapper_begins_where_the_file_stands(client: Client, file: Path) -> None:
    data = file.read_bytes()
    assert client.get("/file_part/500").body == data[100:600]
    assert client.get("/file_part/200000").body == data[100:200100]
    assert client.get("/memory_file").body == b"from memory"
    assert client.get("/gzip_file").body == b"unpacked"
    assert client.get("/file", method="HEAD")["Content-Length"] == str(len(data))


def test_client_that_leaves_in_the_middle_harms_nobody(served: Served, client: Client) -> None:
    for path in ("/large/8000000", "/large_pieces/120", "/file", "/sleep/0.01"):
        gone = served.client(receive_bytes=4096)
        gone.send(f"GET {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.close()
    served.until_traffic(in_flight=0)
    assert client.get("/").body == b"hello"


# ---- time-outs


def test_time_outs_of_head_body_idle_and_reader(start: Start, file: Path) -> None:
    """All in one server and at the same time: each is a second or two."""
    served = start(
        threads=2,
        header_timeout_s=0.5,
        body_timeout_s=0.5,
        keep_alive_s=0.5,
        write_timeout_s=0.5,
        env={"TEST_FILE": str(file)},
    )
    head, body, idle, fresh = (served.client() for _ in range(4))
    head.send(b"GET / HTTP/1.1\r\nHo")
    body.send(b"POST /digest HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nhalf")
    assert idle.get("/").body == b"hello"
    readers = [served.client(receive_bytes=4096) for _ in range(3)]
    for reader, path in zip(readers, (b"large/8000000", b"large_pieces/120", b"file"), strict=True):
        reader.send(b"GET /%b HTTP/1.1\r\nHost: t\r\n\r\n" % path)
    for client, why in ((head, b"headers"), (body, b"body")):
        answer = client.answer()
        assert (answer.status, why in answer.body) == (408, True)
        assert client.ends()
    assert idle.ends()
    assert fresh.ends()
    served.until_traffic(in_flight=0)
    for reader in readers:
        reader.hurry()
        with pytest.raises((EOFError, ConnectionResetError)):
            reader.answer()
    assert served.client().get("/").body == b"hello"


def test_dripping_head_does_not_extend_its_time(start: Start) -> None:
    """Slowloris: a byte now and then."""
    served = start(header_timeout_s=0.5)
    client = served.client()
    client.send(b"GET / HTTP/1.1\r\nHost: t\r\n")
    stop = threading.Event()

    def drip() -> None:
        try:
            while not stop.wait(0.1):
                client.send(b"X: y\r\n")
        except OSError:
            pass

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert client.answer().status == 408
    finally:
        stop.set()
        dripping.join()


def test_stalled_clients_do_not_disturb_others(start: Start) -> None:
    served = start(threads=2)
    stalled = [served.client() for _ in range(200)]
    for number, each in enumerate(stalled):
        each.send((b"GET / HT", b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nx")[number % 2])
    served.until_traffic(in_flight=200)
    client = served.client()
    assert [client.get("/").body for _ in range(20)] == [b"hello"] * 20
    for each in stalled:
        each.close()


def test_slow_app_does_not_make_clients_late(start: Start) -> None:
    """Inline: what came while the app held the loop up is read before anybody is called late."""
    served = start(threads=1, header_timeout_s=0.4, keep_alive_s=0.4)
    idle, busy_one = served.client(), served.client()
    assert idle.get("/").body == b"hello"
    busy_one.send(b"GET /sleep/1.6 HTTP/1.1\r\nHost: t\r\n\r\n")
    idle.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
    assert idle.answer().body == b"hello"
    assert busy_one.answer().body == b"slept"


# ---- bodies in memory


def test_slow_uploads_take_a_bounded_part_of_the_memory(start: Start) -> None:
    """16 bodies of the largest size that is kept in memory; others go to files, until these are done with."""
    served = start(body_memory_bytes=100_000)
    body = os.urandom(100_000)
    head = f"POST /digest HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    uploads = [served.client() for _ in range(20)]
    for upload in uploads:
        upload.send(head + body[:-1])
        assert upload.sock.fileno() >= 0
    assert served.until_traffic(in_flight=20)
    for upload in uploads:
        upload.send(body[-1:])
    told = [upload.answer().json() for upload in uploads]
    assert {each["sha256"] for each in told} == {hashlib.sha256(body).hexdigest()}
    assert sorted(each["kind"] for each in told) == ["file"] * 4 + ["memory"] * 16
    again = [upload.post("/digest", body).json()["kind"] for upload in uploads]
    assert again == ["memory"] * 20


@pytest.mark.parametrize("ending", ["cut", "refused", "answered"])
def test_memory_of_a_body_is_given_back(start: Start, ending: str) -> None:
    """However a request with a body ends, and more often than there is room for at a time."""
    served = start(body_memory_bytes=100_000, limit_body_bytes=150_000)
    for _ in range(20):
        client = served.client()
        if ending == "cut":
            client.send(b"POST /digest HTTP/1.1\r\nHost: t\r\nContent-Length: 99999\r\n\r\n" + b"x" * 50_000)
        elif ending == "refused":
            client.send(
                b"POST /digest HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n15f90\r\n"
                + b"x" * 90_000
                + b"!!\r\n"
            )
            assert client.answer().status == 400
        else:
            assert client.post("/hello", b"x" * 100_000).status == 200
        client.close()
    assert served.until_traffic(in_flight=0)
    assert served.client().post("/digest", b"x" * 100_000).json()["kind"] == "memory"


def test_what_comes_behind_a_body_is_the_next_request(client: Client) -> None:
    body = os.urandom(60_000)
    head = f"POST /digest HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    client.send((head + body) * 3 + b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
    assert [client.answer().json()["sha256"] for _ in range(3)] == [hashlib.sha256(body).hexdigest()] * 3
    assert client.answer().body == b"hello"


# ---- who the client is


@pytest.mark.parametrize(
    ("allowed", "fields", "address", "scheme"),
    [
        ([], ["X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https"], "127.0.0.1", "http"),
        (["127.0.0.1"], ["X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https"], "1.2.3.4", "https"),
        (["127.0.0.0/8"], ["X-Forwarded-For: 6.6.6.6, 1.2.3.4, 127.0.0.9"], "1.2.3.4", "http"),
        (["127.0.0.1"], ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 1.2.3.4"], "1.2.3.4", "http"),
        (["127.0.0.1"], ["X-Forwarded-For: [2001:db8::1]:4711"], "2001:db8::1", "http"),
        (["127.0.0.1"], ["X-Forwarded-For: nonsense"], "127.0.0.1", "http"),
        (["*"], ["X-Forwarded-For: 1.1.1.1, 2.2.2.2"], "1.1.1.1", "http"),
        (["127.0.0.1"], ["X-Forwarded-Proto: gopher"], "127.0.0.1", "http"),
    ],
)
def test_proxy_headers_count_from_named_peers(
    start: Start, allowed: list[str], fields: list[str], address: str, scheme: str
) -> None:
    environ = start(forwarded_allow_ips=allowed).client().get("/environ", *fields).json()
    assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == (address, scheme)


def test_unix_socket(start: Start) -> None:
    served = start(unix=True)
    environ = served.client().get("/environ", "X-Forwarded-For: 1.2.3.4").json()
    assert (environ["REMOTE_ADDR"], environ["SERVER_NAME"]) == ("1.2.3.4", "localhost")
    assert Path(served.address).exists()
    served.close()
    assert Path(served.address).exists()  # it is the keeper's or the master's, not the worker's


@pytest.mark.parametrize(
    ("host", "status"),
    [("shop.example.com", 200), ("SHOP.example.com:8000", 200), ("a.b.test", 200), ("b.test", 200), ("xb.test", 400)],
)
def test_only_allowed_hosts(start: Start, host: str, status: int) -> None:
    client = start(hosts=["shop.example.com", ".b.test"]).client()
    client.send(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert client.answer().status == status


def test_script_name_is_taken_off_the_path(start: Start) -> None:
    client = start(script_name="/shop").client()
    for target, path in (("/shop/environ", "/environ"), ("/environ", "/environ")):
        environ = client.get(target).json()
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/shop", path)


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=t",
            "-addext",
            "subjectAltName=DNS:t",
            "-keyout",
            str(path),
            "-out",
            str(path) + ".crt",
        ],
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("openssl is not installed")
    path.write_bytes(path.read_bytes() + Path(str(path) + ".crt").read_bytes())
    return path


@pytest.mark.parametrize("threads", [4, 1])
def test_tls(start: Start, certificate: Path, file: Path, threads: int) -> None:
    served = start(tls=True, threads=threads, certfile=str(certificate), env={"TEST_FILE": str(file)})
    context = ssl.create_default_context(cafile=str(certificate))

    def connect(receive_bytes: int = 0) -> Client:
        client = served.client(receive_bytes=receive_bytes)
        client.sock = context.wrap_socket(client.sock, server_hostname="t")
        return client

    client, slow = connect(), connect(4096)
    slow.send(b"GET /large_pieces/60 HTTP/1.1\r\nHost: t\r\n\r\n")
    assert client.get("/environ").json()["wsgi.url_scheme"] == "https"
    assert client.get("/stream/3").body == b"piece 0\npiece 1\npiece 2\n"
    assert client.get("/file").body == file.read_bytes()
    body = os.urandom(3_000_000)
    assert client.post("/echo", body).body == body
    slow.hurry()
    assert len(slow.answer().body) == 60 * 65536
    assert client.get("/", "Connection: close").body == b"hello"
    assert client.ends()
    gone = connect(4096)
    gone.send(b"GET /large_pieces/120 HTTP/1.1\r\nHost: t\r\n\r\n")
    gone.close()
    plain = served.client()
    plain.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n" * 20)
    plain.close()
    assert connect().get("/").body == b"hello"


# ---- drain and linger


def fifos(folder: Path) -> tuple[Path, Path]:
    started, go = folder / "started", folder / "go"
    os.mkfifo(started)
    os.mkfifo(go)
    return started, go


def busy(started: Path, go: Path) -> bytes:
    """A request that writes to `started` and answers when `go` is written to."""
    words = (str(path).lstrip("/").replace("/", ":") for path in (started, go))
    return f"GET /busy/{'+'.join(words)} HTTP/1.1\r\nHost: t\r\n\r\n".encode()


def test_drain_answers_what_is_in_hand_and_late_requests(start: Start, tmp_path: Path) -> None:
    served = start()
    idle, late, uploading, working = (served.client() for _ in range(4))
    assert idle.get("/").body == late.get("/").body == b"hello"
    uploading.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nfirst")
    started, go = fifos(tmp_path)
    working.send(busy(started, go))
    with open(started) as fifo:
        fifo.read(1)
    served.until_traffic(in_flight=2, idle=2)
    served.drain(20, 3)
    answer = late.get("/")
    assert (answer.body, answer["Connection"]) == (b"hello", "close")
    assert late.ends()
    uploading.send(b"after")
    answer = uploading.answer()
    assert (answer.body, answer["Connection"]) == (b"firstafter", "close")
    go.write_text("x")
    answer = working.answer()
    assert (answer.body, answer["Connection"]) == (b"done", "close")
    assert served.until_traffic(in_flight=0)["idle"] >= 1  # the idle one lingers
    assert idle.ends()
    idle.close()
    late.close()
    uploading.close()
    working.close()
    assert served.cuts() == {"requests": 0, "websockets": 0, "idle_closed": 1}


def test_drain_cuts_what_takes_too_long_and_counts_it(start: Start, tmp_path: Path) -> None:
    served = start()
    started, go = fifos(tmp_path)
    working, half = served.client(), served.client()
    working.send(busy(started, go))
    half.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nfirst")
    with open(started) as fifo:
        fifo.read(1)
    served.until_traffic(in_flight=2)
    served.drain(0.2, 0)
    assert served.cuts()["requests"] == 2
    assert working.ends() and half.ends()
    go.write_text("x")


def test_late_request_has_a_graceful_time_of_its_own(start: Start, tmp_path: Path) -> None:
    """One that comes when the time of those in hand is over already."""
    served = start()
    client, other = served.client(), served.client()
    assert client.get("/").status == other.get("/").status == 200
    served.drain(2.0, 30)
    assert client.get("/sleep/1.2")["Connection"] == "close"
    assert other.get("/sleep/1.2").body == b"slept"
    client.close()
    other.close()
    assert served.cuts()["requests"] == 0


def test_drain_waits_for_the_app_though_its_client_left(start: Start, tmp_path: Path) -> None:
    """What the app has begun, say an order, it may finish."""
    served = start()
    started, go = fifos(tmp_path)
    client = served.client()
    client.send(busy(started, go))
    with open(started) as fifo:
        fifo.read(1)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    served.drain(20, 0)
    served.until_traffic(idle=0)
    go.write_text("x")
    assert served.cuts()["requests"] == 0
    assert [line["status"] for line in served.ask("log")["lines"]] == [200]


def test_drain_accepts_nothing_more(start: Start) -> None:
    """New connections are left to whoever else holds the listener; where nobody does, they are refused."""
    served = start()
    kept = served.client()
    assert kept.get("/").status == 200
    served.drain(5, 5)
    served.ask("traffic")
    with pytest.raises(ConnectionRefusedError):
        served.client()
    assert kept.get("/").body == b"hello"
    kept.close()
    assert served.cuts()["requests"] == 0


def test_pause_leaves_public_listeners_and_goes_on_with_the_rest(start: Start) -> None:
    served = start()
    kept = served.client()
    assert kept.get("/").status == 200
    served.ask("pause")
    new = served.client()
    new.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
    answer = kept.get("/")
    assert (answer.body, answer["Connection"]) == (b"hello", "")
    assert served.client(served.private).get("/").body == b"hello"
    served.until_traffic(in_flight=0)
    assert served.ask("traffic")["idle"] == 1  # neither the new one nor the private one
    served.ask("resume")
    assert new.answer().body == b"hello"


def test_full_worker_accepts_again_when_a_connection_leaves(start: Start) -> None:
    served = start(worker_connections=2)
    first, second = served.client(), served.client()
    assert first.get("/").status == second.get("/").status == 200
    third = served.client()
    third.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
    assert first.get("/").status == 200
    second.close()
    assert third.answer().body == b"hello"


def test_all_threads_busy_is_shown(start: Start, tmp_path: Path) -> None:
    """What the zygote kills a hung worker by."""
    served = start(threads=2)
    going = []
    for number in range(2):
        folder = tmp_path / str(number + 10)
        folder.mkdir()
        started, go = fifos(folder)
        client = served.client()
        client.send(busy(started, go))
        with open(started) as fifo:
            fifo.read(1)
        going.append((client, go))
    while not served.ask("seat")["stuck_since_s"]:
        pass
    assert served.ask("traffic")["oldest_s"] > 0
    for client, go in going:
        go.write_text("x")
        assert client.answer().body == b"done"
    while served.ask("seat")["stuck_since_s"]:
        pass
