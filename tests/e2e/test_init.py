"""`midstream init`: what it writes for each kind of project loads without a mistake, and what it says can be run."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from init_projects import DJANGO, DJANGO_GROWN, PROJECTS, SETTINGS
from machine import free_port

from midstream.core.config import Surroundings, load
from midstream.core.placeholders import fill
from midstream.core.spec import AppSpec, HandoverPolicy, ServiceSpec
from midstream.deploy.config_file import open_project
from midstream.deploy.scaffold import Proposal, propose, propose_for
from midstream.deploy.scaffold.tree import Tree
from midstream.errors import OperatorError
from midstream.profiles.profile import place_listeners
from midstream.profiles.servers import SERVERS, recognise

PROFILES = [profile.name for profile in SERVERS]


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return folder


def git(folder: Path, *words: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    name = ["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]
    subprocess.run(["git", "-C", str(folder), *name, *words], check=True, capture_output=True, env=environ)


def committed(folder: Path, files: Mapping[str, str], branch: str = "main") -> Path:
    write(folder, files)
    git(folder, "init", "-q", "-b", branch)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def resolved(folder: Path, proposal: Proposal) -> AppSpec:
    (folder / "midstream.toml").write_text(proposal.text)
    config = open_project(folder=folder).load(profiles=PROFILES)
    assert config.stage().warnings == ()
    return config.resolve()


@pytest.mark.parametrize("name", PROJECTS)
def test_what_is_written_has_no_mistake(name: str, tmp_path: Path) -> None:
    folder = committed(tmp_path / name, PROJECTS[name])
    spec = resolved(folder, propose(folder))
    assert spec.app == name
    assert spec.repository == str(folder)
    assert set(spec.services) >= {"web"}


COMMANDS = {
    "django": ("gunicorn", "shop.wsgi:application", "--workers", "2"),
    "django-grown": ("gunicorn", "shop.wsgi:application", "--workers", "2"),
    "django-asgi": ("uvicorn", "shop.asgi:application", "--fd", "{fd}"),
    "flask": ("gunicorn", "app:app", "--workers", "2"),
    "flask-factory": ("gunicorn", "flaskr:create_app()", "--workers", "2"),
    "fastapi": ("uvicorn", "app.main:app", "--fd", "{fd}"),
    "plain-wsgi": ("gunicorn", "wsgi:application", "--workers", "2"),
    "plain-asgi": ("uvicorn", "hello.asgi:app", "--fd", "{fd}"),
    "procfile": ("gunicorn", "--log-file", "-", "app:app"),
    "procfile-alone": ("exec ./server --port $PORT",),
    "rails": ("bundle", "exec", "puma", "-C", "config/puma.rb"),
    "rack": ("bundle", "exec", "unicorn", "-c", "config/unicorn.rb"),
    "node": ("node", "server.js"),
    "node-takes": ("node", "server.js"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_web_service_is_started_as_its_kind_is(name: str, tmp_path: Path) -> None:
    folder = committed(tmp_path / name, PROJECTS[name])
    assert resolved(folder, propose(folder)).services["web"].command == COMMANDS[name]


def test_a_server_that_is_not_among_the_dependencies_is_installed(tmp_path: Path) -> None:
    folder = committed(tmp_path / "flask", PROJECTS["flask"])
    steps = [step.run for step in resolved(folder, propose(folder)).build]
    assert steps[-1] == ("pip", "install", "-r", "requirements.txt", "gunicorn")


def test_what_a_grown_django_project_keeps_in_its_settings_is_found(tmp_path: Path) -> None:
    folder = committed(tmp_path / "shop", {name: text for name, text in DJANGO_GROWN.items() if name != ".env"})
    write(folder, {".env": DJANGO_GROWN[".env"]})
    proposal = propose(folder)
    spec = resolved(folder, proposal)
    assert spec.env.variables == {"DJANGO_SETTINGS_MODULE": "shop.settings.production"}
    assert spec.linked_dirs == ("site/media/up",)
    assert spec.linked_files == (".env",)
    assert any(".env is not in git" in note for note in proposal.notes)
    assert [step.run[-2:] for step in spec.build][-1] == ("collectstatic", "--noinput")
    health = spec.services["web"].health
    assert health is not None
    assert (health.http, health.host) == ("/up/", "shop.example.com")
    assert health.headers == {"X-Forwarded-Proto": "https"}
    assert spec.services["jobs"].command[:3] == ("celery", "-A", "shop")
    assert spec.services["jobs"].handover is HandoverPolicy.DRAIN
    assert spec.services["beat"].handover is HandoverPolicy.REPLACE


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ('os.environ.get("DATABASE", BASE_DIR / "db.sqlite3")', "db.sqlite3"),
        ('BASE_DIR / os.getenv("DATABASE", "data/db.sqlite3")', "data/db.sqlite3"),
        ('config("DATABASE", default=str(BASE_DIR / "db.sqlite3"))', "db.sqlite3"),
        ('os.environ["DATABASE"]', ""),
        ('env("DATABASE")', ""),
    ],
)
def test_the_database_of_a_variable_is_its_default(written: str, path: str, tmp_path: Path) -> None:
    files = {**PROJECTS["django"]}
    old = 'BASE_DIR / "db.sqlite3"'
    assert old in files["shop/settings.py"]
    files["shop/settings.py"] = files["shop/settings.py"].replace(old, written)
    links = [line for line in propose(committed(tmp_path / "shop", files)).text.splitlines() if "ln -sfn" in line]
    assert [line.split('"')[1] for line in links] == ([f"ln -sfn {{shared}}/db.sqlite3 {path}"] if path else [])


def test_a_dotenv_that_comes_with_the_revision_is_not_linked(tmp_path: Path) -> None:
    folder = committed(tmp_path / "shop", {**PROJECTS["flask"], ".env": "A=1\n"})
    assert resolved(folder, propose(folder)).linked_files == ()


def test_the_release_line_of_a_procfile_is_the_migration(tmp_path: Path) -> None:
    folder = committed(tmp_path / "shop", PROJECTS["procfile"])
    spec = resolved(folder, propose(folder))
    assert spec.migrate is not None
    assert spec.migrate.run[0].run == ("flask", "--app", "app", "db", "upgrade")
    assert spec.services["worker"].shell
    assert spec.services["worker"].handover is HandoverPolicy.DRAIN
    assert spec.services["clock"].handover is HandoverPolicy.REPLACE


def test_a_branch_of_another_name_is_written_down(tmp_path: Path) -> None:
    folder = committed(tmp_path / "shop", PROJECTS["flask"], branch="trunk")
    assert resolved(folder, propose(folder)).branch == "trunk"


def test_a_project_that_is_not_in_git_yet_is_told_so(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", PROJECTS["flask"])
    assert any("git add" in note for note in propose(folder).notes)


def test_nothing_of_somebody_else_is_looked_at(tmp_path: Path) -> None:
    vendored = {f"{folder}/manage.py": DJANGO["manage.py"] for folder in ("node_modules", ".git", "my-env", "vendor")}
    folder = write(tmp_path / "shop", {**PROJECTS["flask"], **vendored, "my-env/pyvenv.cfg": ""})
    (folder / "loop").symlink_to(folder)
    assert "A Flask app" in propose(folder).text


def test_files_that_are_no_text_or_no_python_are_no_reason_to_fail(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "shop", {**PROJECTS["flask"], "broken.py": "def (:\n", "package.json": "{", "pyproject.toml": "["}
    )
    (folder / "binary.py").write_bytes(b"\xff\x00\xfe")
    (folder / "secret.py").write_text("")
    (folder / "secret.py").chmod(0)
    assert "A Flask app" in propose(folder).text


def test_a_folder_that_is_not_there_is_an_error_of_the_operator(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot be read"):
        propose(tmp_path / "nothing")


# what is written is run


# descriptor 3 and LISTEN_PID, as sd_listen_fds(3) wants them, then the server in place of this program
STARTER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
environ = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execvpe(sys.argv[2], sys.argv[2:], environ)
"""


@contextlib.contextmanager
def serving(service: ServiceSpec, release: Path, environ: Mapping[str, str]) -> Iterator[int]:
    """The service started as an agent would start it, its listener as descriptor 3. Gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        argv = place_listeners(recognise(service.command), service.command, {"web": 3})
        argv = tuple(fill(word, {"release": str(release)}) for word in argv)
        with open(release / "server.log", "wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-c", STARTER, str(listener.fileno()), *argv],
                cwd=release / service.cwd,
                env=dict(environ),
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    try:
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def environment(spec: AppSpec, shared: Path, release: Path) -> dict[str, str]:
    words = {"shared": str(shared), "release": str(release)}
    here = str(Path(sys.executable).parent)  # stands for the release's own virtualenv, which pip would fill
    base = {"PATH": f"{here}:{os.environ['PATH']}", "HOME": str(shared.parent)}
    return base | {name: fill(value, words) for name, value in spec.env.variables.items()}


def installs(run: tuple[str, ...]) -> bool:
    return run[0] in ("pip", "uv", "poetry") or run[1:3] == ("-m", "venv")


def answer(port: int, service: ServiceSpec) -> int:
    assert service.health is not None
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", service.health.http, headers={"Host": service.health.host or "127.0.0.1"})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("django", "django"),
        ("django-asgi", "django"),
        ("flask", "flask"),
        ("flask-factory", "flask"),
        ("fastapi", "fastapi"),
        ("plain-wsgi", "gunicorn"),
        ("plain-asgi", "uvicorn"),
    ],
)
def test_what_is_written_can_be_run(name: str, needs: str, tmp_path: Path) -> None:
    """Build and migration (less what installs packages), then the server on a listener that was open before it."""
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    shared = tmp_path / "shared"
    shared.mkdir()
    release = committed(tmp_path / name, PROJECTS[name])
    spec = resolved(release, propose(release))
    environ = environment(spec, shared, release) | {"HOSTS": "shop.example.com"}
    steps = [*spec.build, *(spec.migrate.run if spec.migrate and needs == "django" else ())]
    for step in steps:
        argv = [fill(word, {"shared": str(shared)}) for word in step.run]
        if not installs(step.run):
            subprocess.run(argv, cwd=release, env=environ, check=True, capture_output=True)
    service = spec.services["web"]
    assert service.health is not None
    with serving(service, release, environ) as port:
        status = answer(port, service)
    accepted = service.health.status or range(200, 300)
    assert status in accepted, (release / "server.log").read_text()
    if needs == "django":
        assert (shared / "db.sqlite3").stat().st_size > 0, "the data are outside the release"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_a_node_app_and_its_check_can_be_run(tmp_path: Path) -> None:
    release = committed(tmp_path / "shop", PROJECTS["node"])
    service = resolved(release, propose(release)).services["web"]
    assert service.health is not None
    port = free_port()
    assert service.env.variables == {"PORT": "3000"}
    check = [word.replace(":3000/", f":{port}/") for word in service.health.command]
    server = subprocess.Popen(service.command, cwd=release, env={**os.environ, "PORT": str(port)})
    try:
        while server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
                break
            time.sleep(0.02)
        assert subprocess.run(check, cwd=release, timeout=60).returncode == 0
    finally:
        server.terminate()
        server.wait(30)
    assert subprocess.run(check, cwd=release, timeout=60).returncode == 1


# the command


def midstream(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, "-m", "midstream", *words],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_writes_the_file_and_overwrites_none(tmp_path: Path) -> None:
    folder = committed(tmp_path / "shop", PROJECTS["flask"])
    assert midstream(folder, "init").returncode == 0
    written = (folder / "midstream.toml").read_text()
    assert written == propose(folder).text
    (folder / "midstream.toml").write_text("mine\n")
    refused = midstream(folder, "init")
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert (folder / "midstream.toml").read_text() == "mine\n"
    assert midstream(folder, "init", "--force").returncode == 0
    assert (folder / "midstream.toml").read_text() == written


# whatever a project says of itself, what is written has no mistake

WORDS = st.text("ab {}$'\"\\|&;<>=/-.:0é\t", max_size=14)
AROUND = Surroundings(folder="/home/ann/shop", repository="/home/ann/shop")


def tree_of(files: Mapping[str, str]) -> Tree:
    return Tree("shop", frozenset(files), files, None, "main")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["web", "Web", "worker", "2x", "release", "a-b", "-", "web"]), WORDS), max_size=4
    )
)
def test_any_procfile_becomes_a_valid_file(lines: list[tuple[str, str]]) -> None:
    text = "".join(f"{name}: {command}\n" for name, command in lines)
    for files in ({"Procfile": text}, {**PROJECTS["flask"], "Procfile": text}):
        load(propose_for(tree_of(files)).text, around=AROUND, profiles=PROFILES).resolve()


@settings(max_examples=200, deadline=None)
@given(server=st.sampled_from(["gunicorn", "uvicorn", "puma", "unicorn", "hypercorn"]), before=WORDS, after=WORDS)
def test_any_server_in_a_procfile_becomes_a_valid_file(server: str, before: str, after: str) -> None:
    text = f"web: {before} {server} -b 0.0.0.0:$PORT {after}\n"
    load(propose_for(tree_of({"Procfile": text})).text, around=AROUND, profiles=PROFILES).resolve()


@settings(max_examples=200, deadline=None)
@given(start=WORDS, build=st.booleans(), main=WORDS)
def test_any_package_json_becomes_a_valid_file(start: str, build: bool, main: str) -> None:
    scripts = {"start": start} | ({"build": "x"} if build else {})
    files = {"package.json": json.dumps({"scripts": scripts, "main": main}), main or "x": ""}
    load(propose_for(tree_of(files)).text, around=AROUND, profiles=PROFILES).resolve()


@settings(max_examples=200, deadline=None)
@given(
    value=WORDS,
    name=st.sampled_from(
        ["ALLOWED_HOSTS", "MEDIA_ROOT", "WSGI_APPLICATION", "ROOT_URLCONF", "STATIC_ROOT", "DATABASES"]
    ),
    shape=st.sampled_from(["{}", "[{}]", "BASE_DIR / {}", "{{'default': {{'ENGINE': 'sqlite3', 'NAME': {}}}}}"]),
)
def test_any_django_settings_become_a_valid_file(value: str, name: str, shape: str) -> None:
    text = SETTINGS + f"{name} = {shape.format(repr(value))}\n"
    load(propose_for(tree_of({**DJANGO, "shop/settings.py": text})).text, around=AROUND, profiles=PROFILES).resolve()


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=3), st.booleans())
@example(["{a}"], True)
def test_any_dependencies_become_a_valid_file(names: list[str], in_project: bool) -> None:
    listed = {"pyproject.toml": f"[project]\nname = 'x'\ndependencies = {json.dumps(names, ensure_ascii=False)}\n"}
    files = {"app.py": PROJECTS["flask"]["app.py"]} | (listed if in_project else {"requirements.txt": "\n".join(names)})
    load(propose_for(tree_of(files)).text, around=AROUND, profiles=PROFILES).resolve()


@pytest.mark.parametrize("path", ["wsgi.py", "a b/app.py", "1/app.py", "ünï/app.py", "class/app.py", "a.b/app.py"])
def test_any_place_of_an_app_becomes_a_valid_file(path: str) -> None:
    load(propose_for(tree_of({path: PROJECTS["flask"]["app.py"]})).text, around=AROUND, profiles=PROFILES).resolve()
