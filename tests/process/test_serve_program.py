"""The program around the server: --check, --ask, --reload, TLS, metrics, logs of another user, life without click."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from tests.process.serving import LIMIT_S, Server, free_port, make_release, point, running

import midstream
from midstream.errors import MidstreamError
from midstream.serve import metrics, program
from midstream.serve.board import LATENCY_BUCKETS_S, Board
from midstream.serve.loop import Loop
from midstream.serve.metrics import View
from midstream.serve.settings import Settings

SOURCE = str(Path(midstream.__file__).parents[1])


@pytest.fixture
def app(tmp_path: Path) -> Path:
    point(tmp_path, make_release(tmp_path, "one"))
    make_release(tmp_path, "two")
    return tmp_path


def serve(*argv: str, cwd: Path | str = "/", **environment: str) -> subprocess.CompletedProcess[str]:
    """A `midstream serve` that ends by itself."""
    command = [sys.executable, "-m", "midstream", "serve", *argv]
    env = {**os.environ, "PYTHONPATH": SOURCE, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=60, check=False)


# ---- without click


def test_it_starts_where_there_is_no_click_and_other_commands_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('No module named click', name='click')\n")
    path = f"{tmp_path}:{SOURCE}"
    script = [sys.executable, "-c", "import sys; from midstream.__main__ import main; sys.exit(main())"]
    for command in (script, [sys.executable, "-m", "midstream"]):
        env = {**os.environ, "PYTHONPATH": path}
        helped = subprocess.run([*command, "serve", "--help"], env=env, capture_output=True, text=True, check=False)
        assert helped.returncode == 0 and helped.stdout.startswith("Usage: midstream serve"), helped.stderr
        other = subprocess.run([*command, "status"], env=env, capture_output=True, text=True, check=False)
        assert other.returncode == 2 and "pip install 'midstream[cli]'" in other.stderr


def test_no_module_of_the_app_reaches_into_the_master(app: Path) -> None:
    """PYTHONPATH is the app's: a module there that is named like one of Python's is for the zygote, not for the master."""
    (app / "more").mkdir()
    (app / "more" / "bisect.py").write_text(
        "import os\nfrom _bisect import *\nbisect, insort = bisect_right, insort_right\n"
        f"open({str(app / 'imported')!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
    )
    with running(app, environment={"PYTHONPATH": f"{SOURCE}:{app / 'more'}"}) as server:
        assert server.get().release == "one"
        imported = (app / "imported").read_text().split()
        assert str(server.zygote()) in imported and str(server.pid) not in imported


# ---- --check


def test_check_says_what_it_found_and_changes_nothing(app: Path) -> None:
    port = free_port()
    done = serve("app:app", "--check", "--chdir", str(app / "current"), "--bind", f"127.0.0.1:{port}")
    assert done.returncode == 0, done
    for part in ("release one in ", "app:app is WSGI", f"--bind tcp://127.0.0.1:{port} is free", "Python 3."):
        assert f"ok    {part}" in done.stdout or part in done.stdout
    assert "bad" not in done.stdout


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("app = 3", "no app"),
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True, name='poller').start()"
         "\ndef app(e, s): ...", "the import leaves thread 'poller'"),
        ("import os\nos._exit(7)", "ended with status 7"),
    ],
)  # fmt: skip
def test_check_of_an_app_that_would_not_start(tmp_path: Path, code: str, part: str) -> None:
    point(tmp_path, make_release(tmp_path, "one", app=code))
    done = serve("app:app", "--check", "--json", "--chdir", str(tmp_path / "current"), "-b", f":{free_port()}")
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert [one for one in answer["findings"] if one["kind"] == "bad" and part in one["what"]], answer


def test_check_of_addresses_and_files_that_cannot_be_had(app: Path) -> None:
    (app / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = serve(
            "app:app", "--check", "--chdir", str(app / "current"), "--bind", f"127.0.0.1:{taken.getsockname()[1]}",
            "--bind", f"unix:{app}/file", "--bind", f"unix:{app}/no/folder", "--access-log", f"{app}/no/log",
        )  # fmt: skip
    assert done.returncode == 2
    bad = [line for line in done.stdout.splitlines() if line.startswith("bad")]
    assert len(bad) == 4
    assert f"by pid {os.getpid()}" in bad[0] and "something else has that name" in bad[1]
    assert "no folder that may be written to" in bad[2] and "cannot be written" in bad[3]
    assert (app / "file").exists() and not (app / "no").exists()


def test_check_of_what_runs_already_names_the_upgrade(app: Path) -> None:
    with running(app) as server:
        done = serve("app:app", "--check", "--chdir", str(app / "current"), "--bind", server.bind)
    assert done.returncode == 0 and "is served by a running midstream serve" in done.stdout


# ---- --ask


def test_ask_for_an_upgrade_ends_with_1_when_it_is_refused_and_3_where_nothing_runs(app: Path) -> None:
    with running(app) as server:
        point(app, app / "releases/two")
        done = serve("--ask", "reload", "--bind", server.bind)
        assert (done.returncode, server.get().release) == (0, "two"), done
        assert "generation 2 (two) serves" in done.stdout

        point(app, make_release(app, "three", app="import nothing_like_it"))
        pid_file = app / "pid"
        pid_file.write_text(f"{server.pid}\n")
        for target in (("--bind", server.bind), ("--pid", str(pid_file)), ("--pid", str(server.pid))):
            done = serve("--ask", "reload", *target)
            assert done.returncode == 1 and "nothing_like_it" in done.stderr, done
        assert server.get().release == "two"

        status = json.loads(serve("--ask", "status", "--json", "--bind", server.bind).stdout)
        assert status["ok"] and [one["release"] for one in status["generations"] if one["state"] == "serving"] == [
            "two"
        ]
    done = serve("--ask", "status", "--bind", server.bind)
    assert done.returncode == 3 and "start it" in done.stderr


# ---- metrics


def _scrape(address: tuple[str, int], path: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(*address, timeout=LIMIT_S)
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def _samples(text: str) -> dict[str, float]:
    """name{labels} -> value; every line is what the text format allows."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) [a-z_]+ .+", line), line
            continue
        match = re.fullmatch(r'([a-z_]+\{(?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)+\}) ([0-9.e+-]+)', line)
        assert match, line
        assert match[1] not in found
        found[match[1]] = float(match[2])
    return found


def test_the_metrics_of_all_workers_add_up_to_the_requests_made(app: Path) -> None:
    """Over two workers and an upgrade; a reader that stands still holds up nobody."""
    port = free_port()
    with running(app, "--metrics", f"127.0.0.1:{port}", "--linger", "30") as server:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
        for _ in range(30):
            server.get()
        server.get("/up")
        refused = socket.create_connection(("127.0.0.1", server.port))
        refused.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b" 400 " in refused.recv(1000)
        refused.close()
        one = 'release="one",generation="1"'
        total = f'midstream_serve_requests_total{{{one},code="2xx"}}'

        def counted() -> bool:
            return _samples(_scrape(("127.0.0.1", port))[1])[total] == 31

        server.until("31 requests are counted", counted)
        samples = _samples(_scrape(("127.0.0.1", port))[1])
        assert samples[f'midstream_serve_refused_total{{{one},code="400"}}'] == 1
        assert samples[f"midstream_serve_request_duration_seconds_count{{{one}}}"] == 31
        assert samples[f'midstream_serve_request_duration_seconds_bucket{{{one},le="+Inf"}}'] == 31
        assert samples[f'midstream_serve_workers{{{one},state="serving"}}'] == 2

        kept = socket.create_connection(
            ("127.0.0.1", server.port)
        )  # lingers, so that the old generation is still there
        kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept.recv(1000)
        point(app, app / "releases/two")
        assert server.reload().ok
        server.get()
        both = _samples(_scrape(("127.0.0.1", port))[1])
        assert f'midstream_serve_workers{{{one},state="draining"}}' in both
        assert both['midstream_serve_workers{release="two",generation="2",state="serving"}'] == 2
        for sock in (kept, *idle):
            sock.close()
        assert _scrape(("127.0.0.1", port), "/")[0] == 404
        assert _scrape(("127.0.0.1", port), method="POST")[0] == 405
        assert _scrape(("127.0.0.1", port), method="HEAD") == (200, "")


def test_an_address_that_somebody_has_is_taken_as_soon_as_he_leaves_it(app: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running(app, "--metrics", f"127.0.0.1:{port}") as server:
            server.line(r"warning --metrics tcp://127.0.0.1:\d+: .*is in use")
            taken.close()

            def there() -> bool:
                try:
                    return _scrape(("127.0.0.1", port))[0] == 200
                except OSError:
                    return False

            server.until("the metrics are there", there)


def test_a_page_is_what_the_boards_say_and_no_release_name_breaks_it() -> None:
    board = Board.make(4)
    for slot, status in enumerate((200, 503, 302)):
        seat = board.seat(slot)
        seat.count(status, 0.02, 100)
        seat.count(status, 99.0, 100)
    samples = _samples(
        metrics.text([View('a"\\\n', 7, "serving", 3, board.rows(), 1, 2), View("b", 8, "booting", 3, [])])
    )
    name = r'release="a\"\\\n",generation="7"'
    assert samples[f"midstream_serve_sent_bytes_total{{{name}}}"] == 600
    for code in ("2xx", "3xx", "5xx"):
        assert samples[f'midstream_serve_requests_total{{{name},code="{code}"}}'] == 2
    buckets = [
        samples[f'midstream_serve_request_duration_seconds_bucket{{{name},le="{bound:g}"}}']
        for bound in LATENCY_BUCKETS_S
    ]
    assert buckets == sorted(buckets) and buckets[-1] == 3
    assert samples[f'midstream_serve_request_duration_seconds_bucket{{{name},le="+Inf"}}'] == 6
    assert samples[f'midstream_serve_cut_total{{{name},kind="websockets"}}'] == 2
    board.close()


def test_a_page_that_fails_is_a_500_and_no_end(tmp_path: Path) -> None:
    def broken() -> str:
        raise RuntimeError("a bug")

    loop = Loop()
    door = metrics.Door(loop, broken, lambda _: None)
    door.open(f"unix://{tmp_path}/metrics")
    client = socket.socket(socket.AF_UNIX)
    client.connect(f"{tmp_path}/metrics")
    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    loop.turn()
    loop.turn()
    assert client.recv(1000).startswith(b"HTTP/1.1 500 ")
    client.close()
    door.close()
    assert not (tmp_path / "metrics").exists()


# ---- TLS


def _certificate(folder: Path, name: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem", "-subj", f"/CN={name}",
         "-addext", f"subjectAltName=DNS:{name}"],
        check=True, capture_output=True,
    )  # fmt: skip


def _name_shown(port: int) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as raw, context.wrap_socket(raw) as tls:
        der = tls.getpeercert(binary_form=True)
        tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert tls.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert der is not None
    return next(name for name in ("first", "second") if name.encode() in der)


@pytest.mark.server("openssl")
def test_an_upgrade_takes_the_certificate_that_is_there_then_and_refuses_one_that_is_none(app: Path) -> None:
    _certificate(app, "first")
    with running(app, "--certfile", f"{app}/cert.pem", "--keyfile", f"{app}/key.pem") as server:
        assert _name_shown(server.port) == "first"
        _certificate(app, "second")
        assert _name_shown(server.port) == "first"
        assert server.reload().ok
        assert _name_shown(server.port) == "second"
        (app / "cert.pem").write_text("nonsense")
        refused = server.reload()
        assert not refused.ok and "no PEM files that OpenSSL reads" in refused.text
        assert _name_shown(server.port) == "second"


ASGI = """
async def app(scope, receive, send):
    if scope["type"] != "http": raise RuntimeError("no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"asgi"})
"""


class Handshake:
    """A TLS client that has sent its first words and has the server's answer, no more."""

    def __init__(self, port: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes)
        self._sock = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self._sock.sendall(self._goes.read())
        self._came.write(self._sock.recv(65536))

    def answer(self) -> bytes:
        """Ends the handshake, asks, and reads until the server says that it closes."""
        self._tls.do_handshake()
        self._tls.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self._sock.sendall(self._goes.read())
        came = b""
        while data := self._sock.recv(65536):
            self._came.write(data)
            try:
                while part := self._tls.read(65536):
                    came += part
                break
            except ssl.SSLWantReadError:
                continue
        self._sock.close()
        return came


@pytest.mark.server("openssl")
@pytest.mark.parametrize("code", [None, ASGI], ids=["wsgi", "asgi"])
def test_a_drain_waits_for_a_handshake_under_way(app: Path, code: str | None) -> None:
    _certificate(app, "first")
    point(app, make_release(app, "served", app=code))
    with running(app, "--certfile", f"{app}/cert.pem", "--keyfile", f"{app}/key.pem") as server:
        client = Handshake(server.port)
        point(app, app / "releases/two")
        assert server.reload().ok
        generations = server.status()["generations"]
        assert isinstance(generations, list)
        [old] = [one for one in generations if one["state"] == "draining"]
        server.until("the worker without it has ended", lambda: len(set(old["workers"]) & set(server.left())) == 1)
        answer = client.answer()
        assert answer.startswith(b"HTTP/1.1 200 ") and b"\r\nconnection: close\r\n" in answer.lower()
        assert b"x-release: served" in answer.lower()
        server.line(r"generation 1 \(served\): has drained")


@pytest.mark.server("openssl")
@pytest.mark.parametrize(
    ("break_it", "part"),
    [
        ("rm key.pem", "key.pem cannot be read: No such file"),
        ("echo x > cert.pem", "are no PEM files that OpenSSL reads"),
        ("openssl genrsa -out key.pem 2048", "does not belong to the certificate"),
        (
            "openssl ec -aes128 -passout pass:x -in key.pem -out k && mv k key.pem",
            "openssl rsa takes the password away",
        ),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named(app: Path, break_it: str, part: str) -> None:
    _certificate(app, "first")
    subprocess.run(break_it, shell=True, cwd=app, check=True, capture_output=True)
    files = ("--certfile", f"{app}/cert.pem", "--keyfile", f"{app}/key.pem")
    done = serve("app:app", "--check", "--chdir", f"{app}/current", "-b", f":{free_port()}", *files)
    assert done.returncode == 2 and part in done.stdout, done


# ---- other users, other programs


def test_as_root_the_log_of_another_user_is_made_for_him(app: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root serves as another user")
    (app / "log").mkdir()
    settings = Settings(app="app:app", user="nobody", access_log=f"{app}/log/access", error_log="-")
    program.make_logs(settings)
    assert (app / "log/access").stat().st_uid == 65534
    (app / "log/access").write_text("kept")
    program.make_logs(settings)
    assert (app / "log/access").read_text() == "kept"
    with pytest.raises(MidstreamError, match="make its folder"):
        program.make_logs(Settings(app="app:app", user="nobody", error_log=f"{app}/no/log"))


def test_usr1_opens_the_rotated_log_anew_in_every_worker(app: Path) -> None:
    log = app / "access"
    with running(app, "--access-log", str(log), "--access-log-format", "%(U)s") as server:
        server.get("/before")
        server.until("the line is there", lambda: "/before" in log.read_text())
        log.rename(app / "access.1")
        server.signal(signal.SIGUSR1)
        server.until("both workers have opened it", lambda: _holders(log, server) == server.workers())
        for _ in range(10):
            server.get("/after")
        server.until("the lines are there", lambda: log.read_text().count("/after\n") == 10)
    assert (app / "access.1").read_text() == "/before\n"


def _holders(path: Path, server: Server) -> list[int]:
    found = []
    for pid in server.workers():
        with contextlib.suppress(OSError):
            links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
            found += [pid] if str(path) in links else []
    return sorted(found)


@pytest.mark.parametrize("option", [("--reload",), ("--user", "nobody")])
def test_under_the_agent_what_is_the_agents_is_refused(app: Path, option: tuple[str, ...]) -> None:
    agent = {"MIDSTREAM_GENERATION": "3", "MIDSTREAM_RELEASE": "one"}
    done = serve("app:app", "--chdir", f"{app}/current", "-b", f":{free_port()}", *option, **agent)
    assert done.returncode == 2 and "agent's" in done.stderr


def test_a_mistake_ends_with_2_and_in_json_for_programs() -> None:
    done = serve("app:app", "--wokers", "3", "--json")
    assert done.returncode == 2 and "did you mean --workers?" in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 2


def test_reload_for_development_serves_a_changed_file_and_keeps_serving_while_it_is_broken(app: Path) -> None:
    pytest.importorskip("watchfiles")
    source = app / "releases/one/app.py"
    code = source.read_text()
    with running(app, "--reload") as server:
        watchers = _watchers(server)
        assert len(watchers) == 1
        server.until("the watcher watches", lambda: _has_inotify(watchers[0]))
        source.write_text(code.replace("RELEASE = 'one'", "RELEASE = 'changed'"))
        server.until("the new code serves", lambda: server.get().release == "changed")
        source.write_text("def broken(:")
        server.line("app.py.* SyntaxError|SyntaxError")
        assert server.get().release == "changed"
        (source.parent / "notes.txt").write_text("no source")
        source.write_text(code)
        server.until("the old code serves again", lambda: server.get().release == "one")
        server.signal(signal.SIGKILL)
        server.process.wait(LIMIT_S)
        server.until("the watcher has gone with the master", lambda: not _watchers(server))


def _watchers(server: Server) -> list[int]:
    found = []
    for pid in server.left():
        with contextlib.suppress(OSError):
            if b"midstream.serve.watching" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def _has_inotify(pid: int) -> bool:
    return any("inotify" in os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd"))


def test_what_is_watched_are_sources_and_what_was_named() -> None:
    from midstream.serve.watching import is_source

    watched = ["/app/shop/views.py", "/app/conf.py", "/etc/shop.toml", "/templates/a/b.html"]
    passed = ["/app/a.txt", "/app/.venv/lib/x.py", "/app/__pycache__/x.py", "/templates/.git/index", "/app/.git/x.py"]
    named = ["/etc/shop.toml", "/templates"]
    assert [path for path in (*watched, *passed) if is_source(path, "/app", named)] == watched


def test_the_isolated_start_is_this_very_copy() -> None:
    first, folder = program.isolated_start()
    assert first == "-I" and Path(folder, "__main__.py").exists()
    done = subprocess.run(
        [sys.executable, first, folder, "serve", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"midstream {midstream.__version__}\n"
    assert program.is_under_agent({"MIDSTREAM_GENERATION": "1", "MIDSTREAM_RELEASE": "r"})
    assert not program.is_under_agent({"MIDSTREAM_RELEASE": "r"})
