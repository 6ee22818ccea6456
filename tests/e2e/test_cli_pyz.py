"""`midstream.pyz`: one file with everything, on any Python 3.11 or newer, also for a user who is not root."""

from __future__ import annotations

import importlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import built_pyz
from machine import Machine, Project, free_port, new_project, wait_for

from midstream.cli import zipapp_build
from midstream.errors import OperatorError
from midstream.testing import drain_server

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture(scope="module")
def pyz() -> Path:
    return built_pyz()


def run(pyz: Path, *args: str, python: str = sys.executable, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-I", str(pyz), *args], capture_output=True, text=True, timeout=120, **kwargs)  # type: ignore[call-overload,no-any-return]


def test_it_is_self_contained_and_pure_python(pyz: Path) -> None:
    """Nothing of the environment is imported: -I -S leaves no site-packages to find libraries in."""
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
    assert [name for name in names if name.endswith((".so", ".pyd"))] == []
    assert {"click/core.py", "rich/live.py", "cattrs/__init__.py", "attr/__init__.py"} <= set(names)
    assert [name for name in names if "LICENSE" in name.upper()], "the licences of the libraries go along"
    code = (
        f"import sys; sys.path.insert(0, {str(pyz)!r})\n"
        "import midstream.cli.main, midstream.cli.progress, rich.live, midstream.core.config, midstream.agent.program\n"
        "import midstream.keeper.image, midstream.steps.program\n"
        "ours = ('click', 'rich', 'cattrs', 'attr')\n"
        "outside = {m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in ours"
        " and m.__file__ and 'midstream.pyz' not in m.__file__}\n"
        "print(sorted(outside))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done


def test_the_same_input_gives_the_same_bytes(pyz: Path, tmp_path: Path) -> None:
    """Whatever the building process has loaded meanwhile."""
    importlib.import_module("midstream.cli.main")
    importlib.import_module("rich.console")
    zipapp_build.build(str(tmp_path / "again.pyz"))
    assert (tmp_path / "again.pyz").read_bytes() == pyz.read_bytes()


def test_it_runs_as_a_file_and_names_its_version(pyz: Path) -> None:
    assert run(pyz, "--version").stdout.startswith("midstream ")
    done = run(pyz, "steps", "no-such-step")
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_another_python_uses_the_sources(pyz: Path) -> None:
    others = [f"python3.{minor}" for minor in range(11, 20) if minor != sys.version_info[1]]
    found = [path for name in others if (path := shutil.which(name)) and _works(path)]
    if not found:
        pytest.skip("no other Python of 3.11 or newer here")
    for python in found:
        done = run(pyz, "deploy", "--help", python=python)
        assert "Exit codes" in done.stdout, done


def _works(python: str) -> bool:
    return subprocess.run([python, "-c", "import asyncio, sqlite3"], capture_output=True).returncode == 0


def test_an_old_python_is_told_so_in_words(pyz: Path) -> None:
    old = next((p for m in range(6, 11) if (p := shutil.which(f"python3.{m}")) and _works(p)), None)
    if old is None:
        pytest.skip("no old Python here")
    done = run(pyz, "--version", python=old)
    assert done.returncode == 1
    assert "needs Python 3.11" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_zipapp_does_not_build_another_one(pyz: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(pyz)!r})\n"
        "from midstream.cli.zipapp_build import build\n"
        "from midstream.errors import OperatorError\n"
        "try:\n    build(sys.argv[1])\nexcept OperatorError as error:\n    print('refused', error.what)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path / "x.pyz")], capture_output=True, text=True)
    assert done.stdout.startswith("refused"), done


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zipapp_build, "VENDORED", ("click", "no-such-library"))
    with pytest.raises(OperatorError, match="no-such-library is not installed"):
        zipapp_build.build(str(tmp_path / "x.pyz"))
    assert not (tmp_path / "x.pyz").exists()


# ---------------------------------------------------------------------- as a user who is not root


class User:
    """An unprivileged user on a machine without agent, with their own home and the zipapp."""

    def __init__(self, root: Path, python: str, pyz: Path) -> None:
        self.root, self.python, self.pyz = root, python, pyz
        self.env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(root / "h"),
            "XDG_RUNTIME_DIR": str(root / "r"),
            "LANG": "C.UTF-8",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.com",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.com",
        }
        self.folder = root / "shop"
        for name in ("h", "r", "shop"):
            (root / name).mkdir()

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=self.folder,
            env=self.env,
            user=_user(),
            group=_group(),
            extra_groups=[] if os.geteuid() == 0 else None,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def midstream(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.python, "-I", str(self.pyz), *args)


def _user() -> int | None:
    return NOBODY.pw_uid if os.geteuid() == 0 else None


def _group() -> int | None:
    return NOBODY.pw_gid if os.geteuid() == 0 else None


@pytest.fixture
def user(pyz: Path) -> Iterator[User]:
    import tempfile

    python = next((p for p in ("/usr/bin/python3", sys.executable) if _fits(p)), None)
    if python is None:
        pytest.skip("no Python 3.11 that an unprivileged user may run")
    root = Path(tempfile.mkdtemp(prefix="msu-"))
    root.chmod(0o755)
    shutil.copy(pyz, root / "midstream.pyz")
    user = User(root, python, root / "midstream.pyz")
    if os.geteuid() == 0:
        for path in [root, *root.rglob("*")]:
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    try:
        yield user
    finally:
        user.midstream("agent", "stop", "--timeout", "3")
        machine = Machine(root)
        for pid in machine.left_over():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(root, ignore_errors=True)


def _fits(python: str) -> bool:
    try:
        done = subprocess.run(
            [python, "-c", "import sys, sqlite3; print(sys.version_info >= (3, 11))"],
            user=_user(),
            capture_output=True,
            text=True,
            cwd="/",
        )
    except OSError:
        return False
    return done.stdout.strip() == "True"


def test_deploy_without_an_agent_starts_a_private_one_and_says_so(user: User) -> None:
    port = free_port()
    shutil.copy(drain_server.__file__, user.folder / "server.py")
    (user.folder / "midstream.toml").write_text(
        f'app = "shop"\n[services.web]\ncommand = "{user.python} server.py"\n'
        f'listen = "tcp://127.0.0.1:{port}"\nhealth = "/up"\n'
    )
    for path in user.folder.iterdir():
        if os.geteuid() == 0:
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    for argv in (["git", "init", "-q", "-b", "main"], ["git", "add", "-A"], ["git", "commit", "-qm", "first"]):
        assert user.run(*argv).returncode == 0
    first = user.midstream("deploy")
    assert first.returncode == 0, first
    assert "started one for you" in first.stderr
    status = json.loads(user.midstream("status", "--json").stdout)
    app = status["apps"][0]
    assert app["deploy_to"] == str(user.root / "h/.local/share/midstream/apps/shop")
    machine = Machine(user.root)
    project = Project(user.folder, machine, port)
    assert project.get("/") == (200, app["release"])
    second = user.midstream("deploy", "--json")
    assert second.returncode == 0
    assert "started one" not in second.stderr, "it is running now"
    stopped = user.midstream("agent", "stop")
    assert stopped.returncode == 0, stopped
    wait_for("all processes to end", lambda: not machine.left_over())


def test_a_whole_machine_from_the_one_file(pyz: Path, machine: Machine) -> None:
    """The keeper's image, the agent and the steps all come out of the archive."""
    machine.close()
    machine.root.mkdir()
    project = new_project(machine)
    process = subprocess.Popen(
        [
            sys.executable,
            "-I",
            str(pyz),
            "agent",
            "run",
            "--state",
            str(machine.state),
            "--socket",
            str(machine.socket),
        ],
        env=machine.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    machine.process = process  # type: ignore[assignment]
    wait_for("the agent to answer", machine.answers)
    done = run(pyz, "deploy", env=machine.env, cwd=project.folder)
    assert done.returncode == 0, done
    assert project.get("/")[0] == 200
    argv = Path(f"/proc/{machine.agent_pid}/cmdline").read_bytes()
    assert str(pyz).encode() in argv
