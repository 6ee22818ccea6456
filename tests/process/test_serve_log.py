"""Access logs of `midstream serve`: nothing a client sends breaks a line, nothing that befalls the file stops serving, and
the lines are those of gunicorn and Apache."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.serve import log_output
from midstream.serve.access_log import NoRequestLog, RequestLog, escaped, line_of, open_log
from midstream.serve.contract import AccessLog, Answered, Identity
from midstream.serve.log_output import PENDING_MAX_BYTES, LineOutput
from midstream.serve.settings import Settings

WHO = Identity(worker=1, pid=4711, release="20261121190501", generation=42)
ASKED = Answered("192.0.2.7", "GET", "/a?b=1", "1.1", 200, 12, 1700000000.25, 0.001234, "http://x/", "curl/8", "h")
GUNICORN_DEFAULT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
COMBINED = re.compile(
    r'(?P<client>\S+) - - \[[^\]]+\] "(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d+) (?P<bytes>\d+)'
    r' "(?P<referer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)" (?P<release>\S+) (?P<generation>\d+)\n'
)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC-5:30")  # east of Greenwich, as POSIX writes it
        time.tzset()
        yield
    time.tzset()


def test_the_formats_to_the_letter() -> None:
    apache = '192.0.2.7 - - [15/Nov/2023:03:43:20 +0530] "GET /a?b=1 HTTP/1.1" 200 12 "http://x/" "curl/8"'
    assert line_of("apache", WHO)(ASKED) == apache + "\n"
    assert line_of("combined", WHO)(ASKED) == apache + " 20261121190501 42\n"
    assert line_of(GUNICORN_DEFAULT, WHO)(ASKED) == apache + "\n"
    assert line_of("%(release)s/%(generation)s %(worker)d 100%% %({Host}i)s %({X-Y}i)s", WHO)(ASKED) == (
        "20261121190501/42 1 100% h -\n"
    )
    unknown = replace(WHO, release="", generation=0)
    assert line_of("combined", unknown)(replace(ASKED, client="", referer="", user_agent="")) == (
        '- - - [15/Nov/2023:03:43:20 +0530] "GET /a?b=1 HTTP/1.1" 200 12 "-" "-" - 0\n'
    )
    found = json.loads(line_of("json", WHO)(ASKED))
    assert found == {
        "time": "2023-11-14T22:13:20.250Z", "client": "192.0.2.7", "method": "GET", "target": "/a?b=1", "version": "1.1",
        "status": 200, "bytes": 12, "seconds": 0.001234, "host": "h", "referer": "http://x/", "user_agent": "curl/8",
        "request_id": "", "release": "20261121190501", "generation": 42, "worker": 1, "pid": 4711,
    }  # fmt: skip


hostile = st.text(st.characters(max_codepoint=255), max_size=40)


@given(hostile, hostile, hostile)
def test_whatever_a_client_sends_is_one_line_whose_fields_can_be_told_apart(
    target: str, referer: str, agent: str
) -> None:
    asked = replace(ASKED, target=target, referer=referer, user_agent=agent)
    match = COMBINED.fullmatch(line_of("combined", WHO)(asked))
    assert match and match["request"] == f"GET {escaped(target)} HTTP/1.1"
    assert _unescaped(match["referer"]) == (referer or "-") and _unescaped(match["agent"]) == (agent or "-")
    as_json = line_of("json", WHO)(asked)
    assert as_json.count("\n") == 1 and json.loads(as_json)["user_agent"] == agent
    atoms = line_of('"%(f)s" "%(a)s" "%(U)s"', WHO)(asked)
    assert atoms.count("\n") == 1 and atoms.isascii() and len(re.findall(r'"(?:[^"\\]|\\.)*"', atoms)) == 3


def _unescaped(text: str) -> str:
    return re.sub(r"\\(?:x(..)|(.))", lambda match: chr(int(match[1], 16)) if match[1] else match[2], text)


def test_the_clock_goes_on() -> None:
    line = line_of("apache", WHO)
    seconds = [line(replace(ASKED, began_unix_s=1700000000 + second))[26:38] for second in (0, 0.9, 1, 60)]
    assert seconds == [":03:43:20 +0", ":03:43:20 +0", ":03:43:21 +0", ":03:44:20 +0"]


# ---- the file


def a_log(target: Path | str) -> AccessLog:
    return open_log(Settings(app="a:b", access_log=str(target), access_log_format="%(U)s"), WHO)


def log(target: Path | str) -> RequestLog:
    found = a_log(target)
    assert isinstance(found, RequestLog)
    return found


def write(into: RequestLog, *targets: str) -> None:
    for target in targets:
        into.write(replace(ASKED, target=target))
    into.flush()


def test_without_a_file_there_is_no_log() -> None:
    none = a_log("")
    assert isinstance(none, NoRequestLog) and not none.enabled


def test_one_write_for_a_batch_and_none_before_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = os.write
    monkeypatch.setattr(log_output.os, "write", lambda fd, data: calls.append(data) or real(fd, data))
    into = log(tmp_path / "access")
    for number in range(100):
        into.write(replace(ASKED, target=f"/{number}"))
    assert calls == []
    into.flush()
    assert len(calls) == 1 and (tmp_path / "access").read_text().splitlines() == [f"/{number}" for number in range(100)]


def test_after_a_rotation_lines_go_to_the_new_file_and_those_before_it_to_the_old(tmp_path: Path) -> None:
    path = tmp_path / "access"
    into = log(path)
    write(into, "/1")
    path.rename(tmp_path / "access.1")
    write(into, "/2")
    into.write(replace(ASKED, target="/3"))
    into.reopen()
    write(into, "/4")
    assert (tmp_path / "access.1").read_text() == "/1\n/2\n/3\n" and path.read_text() == "/4\n"


def test_a_path_that_cannot_be_opened_anew_leaves_the_old_file(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    into = log(folder / "access")
    folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        into.reopen()
    write(into, "/1")
    assert (tmp_path / "moved" / "access").read_text() == "/1\n"


def test_a_full_disk_is_said_once_waited_for_and_what_is_lost_is_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real one: /dev/full answers ENOSPC to each write."""
    path = tmp_path / "access"
    path.symlink_to("/dev/full")
    into = log(path)
    for number in range(5):
        write(into, f"/{number}")
    assert capfd.readouterr().err.count("No space left on device; lines wait, serving goes on") == 1
    assert into.dropped == 0
    path.unlink()
    into.reopen()
    write(into, "/5")
    assert path.read_text() == "".join(f"/{number}\n" for number in range(6))

    path.unlink()
    path.symlink_to("/dev/full")
    into.reopen()
    lines = PENDING_MAX_BYTES // 1000 * 3
    write(into, *["/" + "x" * 998] * lines)
    path.unlink()
    into.reopen()
    write(into, "/end")
    kept = path.read_text().splitlines()
    assert kept[-1] == "/end" and len(kept) - 1 + into.dropped == lines and into.dropped > lines // 3
    assert f"{into.dropped} lines were lost" in capfd.readouterr().err


def test_a_disk_that_fills_within_a_line_leaves_whole_lines_behind(tmp_path: Path) -> None:
    """A limit on the size of files answers as a disk does: a short write, then an error."""
    code = f"""
import resource, sys
from midstream.serve.log_output import LineOutput
out = LineOutput({str(tmp_path / "access")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (25, resource.RLIM_INFINITY))
out.write(b"0123456789\\n" * 4)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
out.write(b"after\\n")
print(out.dropped)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = (tmp_path / "access").read_text().splitlines()
    assert lines == ["0123456789", "0123456789", "012", "0123456789", "after"]
    assert done.stdout == "1\n"


def test_a_reader_that_stands_still_holds_up_nobody_and_loses_only_lines() -> None:
    read_fd, write_fd = os.pipe()
    out = LineOutput("-", write_fd)
    batch = (b"x" * 99 + b"\n") * 40
    for _ in range(500):  # 2 MB into a pipe of 64 kB: this would block for ever
        out.write(batch)
    assert out.trouble and out.dropped
    os.set_blocking(read_fd, False)
    got = 0
    while select.select([read_fd], [], [], 0)[0]:
        data = os.read(read_fd, 1 << 16)
        assert data.endswith(b"\n") and set(data.split(b"\n")) == {b"x" * 99, b""}
        got += data.count(b"\n")
        out.write(b"")
    assert got + out.dropped == 500 * 40
    os.close(read_fd)
    out.write(batch)
    assert "roken pipe" in out.trouble
    os.close(write_fd)


def test_two_workers_that_write_to_one_pipe_do_not_mix_their_lines() -> None:
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, 4096)  # full at once, so that a long write waits in its middle
    code = (
        "import sys\nfrom midstream.serve.log_output import LineOutput\nout = LineOutput('-')\n"
        "sent = 0\nwhile sent < 3000:\n    out.write((sys.argv[1] * 120 + '\\n').encode() * 100)\n    sent += 100\n"
        "while out.trouble: out.write(b'')\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, name], stdout=write_fd) for name in "ab"]
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert [child.wait() for child in children] == [0, 0]
    assert set(lines) == {b"a" * 120, b"b" * 120}


def test_a_socket_as_standard_output_is_never_waited_for() -> None:
    """As systemd's journal is."""
    ours, theirs = socket.socketpair()
    out = LineOutput("-", theirs.fileno())
    for _ in range(2000):
        out.write(b"x" * 999 + b"\n")
    assert out.trouble and ours.recv(1000) == b"x" * 999 + b"\n"
    ours.close()
    theirs.close()


def test_a_fifo_may_be_named_before_its_reader_is_there(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    into = log(path)
    write(into, "/1")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"/1\n"
    os.close(reader)
    into.close()


def test_root_makes_the_file_for_another_user_and_follows_nobodys_link(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    victim = tmp_path / "victim"
    victim.write_text("")
    (tmp_path / "link").symlink_to(victim)
    log_output.make_for(str(tmp_path / "link"), 65534, 65534)
    log_output.make_for(str(tmp_path / "access"), 65534, 65534)
    log_output.make_for(str(tmp_path / "access"), 0, 0)
    assert victim.stat().st_uid == 0 and (tmp_path / "access").stat().st_uid == 65534


# ---- beside real gunicorn

ATOMS = ["h", "l", "u", "r", "s", "m", "U", "q", "H", "b", "B", "f", "a"]
LOOKS = [
    ("GET", "/plain", {}, b""),
    ("GET", "/search?q=a%20b&c=%22d", {"Referer": "http://example.com/?x=1", "User-Agent": "Mozilla/5.0 (X11)"}, b""),
    ("POST", "/form", {"User-Agent": 'a "quoted" one'}, b"a=1"),
    ("HEAD", "/plain", {}, b""),
    ("GET", "/missing?", {}, b""),
]


def test_lines_are_those_of_real_gunicorn_for_the_same_requests(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    wanted = _logged(tmp_path, "gunicorn", [sys.executable, "-m", "gunicorn", "--no-control-socket"])
    ours = _logged(tmp_path, "midstream", [sys.executable, "-m", "midstream", "serve"])
    assert len(ours) == len(LOOKS)
    assert ours == wanted


def _logged(folder: Path, name: str, command: list[str]) -> list[dict[str, str]]:
    """The atoms of each of LOOKS, as the server's own log has them."""
    (folder / "looked.py").write_text(_APP)
    path = folder / f"{name}.log"
    wanted = "\t".join(f"{atom}=%({atom})s" for atom in ATOMS) + "\t%(t)s %(T)s %(M)s %(D)s %(L)s %(p)s"
    environment = {**os.environ, "PYTHONPATH": f"{Path(log_output.__file__).parents[2]}:{folder}"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        bind = f"fd://{listener.fileno()}"
        argv = [*command, "looked:app", "--bind", bind, "--access-logfile", str(path), "--access-logformat", wanted]
        server = subprocess.Popen(argv, env=environment, cwd=folder, pass_fds=[listener.fileno()])
        port = listener.getsockname()[1]
    try:
        for method, target, headers, body in LOOKS:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request(method, target, body or None, headers)
            connection.getresponse().read()
            connection.close()
    finally:
        server.terminate()
        server.wait(20)
    found = []
    for line in path.read_text().splitlines():
        *pairs, rest = line.split("\t")
        assert re.fullmatch(r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0530\] 0 \d+ \d+ 0\.\d{6} <\d+>", rest), rest
        found.append(dict(pair.split("=", 1) for pair in pairs))
    return found


_APP = """
def app(environ, start_response):
    environ["wsgi.input"].read()
    missing = environ["PATH_INFO"] == "/missing"
    body = b"" if environ["REQUEST_METHOD"] == "HEAD" else b"hello\\n"
    start_response("404 Not Found" if missing else "200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [body]
"""
