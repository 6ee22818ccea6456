"""What a server is made of, and from whom it has it: the release behind `--chdir`, its virtualenv, its sockets, its check."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path

import pytest
from tests.process.serving import APP, make_release, point, running

from midstream.serve import interpreter, listening
from midstream.serve.settings import Settings

SRC = Path(interpreter.__file__).parents[2]


@pytest.mark.parametrize(
    ("chdir", "release", "link"),
    [
        ("current", "one", "current"),
        ("current/", "one", "current"),
        ("current/.", "one", "current"),
        ("current/backend", "one", "current"),
        ("current/backend/src", "one", "current"),
        ("current/media", "one", "current"),
        ("disk/backend", "one", "disk/backend"),
        ("mnt/srv/backend", "backend", ""),
        ("srv/backend", "backend", ""),
        ("srv", "srv", "srv"),
        ("current/../two", "two", ""),
    ],
)
def test_a_release_is_named_after_what_the_symlink_that_deploys_move_leads_to(
    tmp_path: Path, chdir: str, release: str, link: str
) -> None:
    """`media` and `srv` are symlinks that keep the name: a folder that lies elsewhere."""
    (tmp_path / "releases/one/backend/src").mkdir(parents=True)
    (tmp_path / "releases/two").mkdir()
    for folder in ("shared/media", "mnt/srv/backend", "disk"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/one")
    (tmp_path / "releases/one/media").symlink_to(tmp_path / "shared/media")
    (tmp_path / "srv").symlink_to("mnt/srv")
    (tmp_path / "disk/backend").symlink_to(tmp_path / "releases/one")
    found = interpreter.resolve(Settings(chdir=f"{tmp_path}/{chdir}"))
    assert (found.folder, found.release) == (os.path.realpath(f"{tmp_path}/{chdir}"), release)
    assert found.link == (f"{tmp_path}/{link}" if link else "")


def test_an_app_in_a_folder_of_the_release_is_upgraded_and_named_as_the_release(tmp_path: Path) -> None:
    for name in ("one", "two"):
        backend = make_release(tmp_path, name) / "backend"
        backend.mkdir()
        (backend.parent / "app.py").rename(backend / "app.py")
    point(tmp_path, tmp_path / "releases/one")
    with running(tmp_path, "--chdir", str(tmp_path / "current/backend")) as server:
        assert server.get().headers["X-Release"] == "one"
        assert server.reload().ok  # of the same release again; a symlink leads there all the same
        point(tmp_path, tmp_path / "releases/two")
        assert server.reload().ok
        assert (server.get().headers["X-Release"], server.get().release) == ("two", "two")
        assert not [line for line in server.lines if "no symlink" in line]


def test_a_virtualenv_with_midstream_alone_is_named_with_its_remedy(tmp_path: Path) -> None:
    """Without what its extra `serve` asks for: said by the zygote, or by a worker when that is the first to know."""
    release = make_release(tmp_path, "alone")
    venv = release / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(venv), "platbase": str(venv)}))
    (site / "midstream.pth").write_text(f"{SRC}\n")
    point(tmp_path, release)
    for more in ((), ("--no-preload",)):
        with running(tmp_path, *more, ready=False, environment={"PYTHONPATH": ""}) as server:
            assert server.ends() == 1
            text = "\n".join(server.lines)
            assert "without `serve`: No module named 'httptools'" in text or "No module named 'uvloop'" in text
            assert "midstream[serve]" in text and str(venv) in text


ONLY_HTTPS = {
    "wsgi": APP.format(release="one").replace(
        'status = "500', 'status = "301 Moved" if path == "/up" and environ["wsgi.url_scheme"] != "https" else "500'
    ),
    "asgi": """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    status = 301 if scope["scheme"] != "https" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})
""",
}


@pytest.mark.parametrize("interface", sorted(ONLY_HTTPS))
def test_a_health_check_of_https_is_believed_whomever_else_the_server_trusts(tmp_path: Path, interface: str) -> None:
    point(tmp_path, make_release(tmp_path, "one", app=ONLY_HTTPS[interface]))
    check = ("--health-path", "/up", "--health-scheme", "https", "--forwarded-allow-ips", "192.0.2.7")
    with running(tmp_path, "--lifespan", "off", *check) as server:
        url = f"http://127.0.0.1:{server.port}/up"
        request = urllib.request.Request(url, headers={"X-Forwarded-Proto": "https"})
        with pytest.raises(urllib.error.HTTPError, match="301"):
            urllib.request.urlopen(request)


def test_sockets_that_are_meant_for_a_program_in_front_are_warned_of(tmp_path: Path) -> None:
    point(tmp_path, make_release(tmp_path, "one"))
    with running(tmp_path, environment={"LISTEN_FDS": "1", "LISTEN_PID": "1"}) as server:
        server.line("LISTEN_FDS=1 are for process 1 .*without `sh -c`")
        assert server.get().release == "one"


def test_no_socket_is_no_reason_to_warn() -> None:
    told: list[str] = []
    for environment in ({}, {"LISTEN_FDS": "0", "LISTEN_PID": "1"}, {"LISTEN_FDS": "one", "LISTEN_PID": "1"}):
        assert listening.given(environment, os.getpid(), told.append) == []
    assert told == []
