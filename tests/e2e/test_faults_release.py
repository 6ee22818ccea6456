"""Releases that are wrong in every way we know of: each is refused with exit 1, a message that names the cause, and the old
release answers all the while (DESIGN 2, 8)."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest
from machine import Machine, Project, new_machine, new_project, under_load, wait_for


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Machine, Project, str]]:
    """One machine for the module: every test must leave the good release serving, as it found it."""
    with new_machine() as machine:
        project = new_project(machine)
        quick = 'healthy_deadline = "4s"'
        project.write(
            config=project.config(project.web(quick).replace('start_timeout = "20s"', 'start_timeout = "4s"'))
        )
        project.commit("good")
        good = project.deployed()
        yield machine, project, good


def refused(served: tuple[Machine, Project, str], *expected: str, code: int = 1) -> str:
    """Deploys what was committed last under load; insists that nothing changed and that the message says why."""
    machine, project, good = served
    pids = machine.pids()
    assert pids
    with under_load(project.address, "--pause", "0.02", "--keep-alive", "2", "--closing", "2") as load:
        result = project.deploy()
        tally = load()
    assert result.code == code, result.text
    for text in expected:
        assert text in result.text, f"missing {text!r} in:\n{result.text}"
    assert tally["failed"] == 0, tally["failures"]
    assert set(tally["seen"]) == {good}, "something else answered"
    assert machine.pids() == pids, "the old release was restarted without cause"
    app = machine.app()
    assert app["release"] == good and project.current == good
    assert app["deploy"] is None and app["lock"] is None, "something was left locked"
    wait_for("the refused generation to be gone", lambda: len(machine.service()["generations"]) == 1)
    assert good in result.text, "the message must say what serves"
    assert "do:" in result.text, "the message must say what to do"
    return result.text


@pytest.mark.parametrize(
    ("misbehaviour", "expected"),
    [
        ("exit", ["exit 3"]),
        ("never-ready", ["4 s"]),
        ("unhealthy", ["answered 500", "the database is not there"]),
        ("picky", ["400", "host"]),
        ("redirect", ["302", "X-Forwarded-Proto"]),
        ("own-port", ["which it bound itself"]),
    ],
)
def test_misbehaving_release(served: tuple[Machine, Project, str], misbehaviour: str, expected: list[str]) -> None:
    served[1].misbehave(misbehaviour)
    try:
        refused(served, *expected)
    finally:
        served[1].misbehave("")


def test_health_path_that_is_not_there(served: tuple[Machine, Project, str]) -> None:
    machine, project, _ = served
    before = (project.folder / "midstream.toml").read_text()
    project.commit("wrong path", config=before.replace('health = "/up"', 'health = "/nowhere"'))
    try:
        refused(served, "/nowhere", "404")
    finally:
        project.commit("mended", config=before)


def test_hanging_at_import(served: tuple[Machine, Project, str]) -> None:
    machine, project, _ = served
    server = (project.folder / "server.py").read_text()
    project.commit("hangs", server_dot_py="import time\ntime.sleep(3600)\n")
    try:
        refused(served, "4 s")
    finally:
        project.commit("mended", server_dot_py=server)


def test_syntax_error(served: tuple[Machine, Project, str]) -> None:
    machine, project, _ = served
    server = (project.folder / "server.py").read_text()
    project.commit("broken", server_dot_py="def broken(:\n")
    try:
        refused(served, "SyntaxError", "exit 1")
    finally:
        project.commit("mended", server_dot_py=server)


def changed_command(served: tuple[Machine, Project, str], command: str, *expected: str) -> str:
    machine, project, _ = served
    before = (project.folder / "midstream.toml").read_text()
    good = f'command = "{sys.executable} server.py"'
    assert good in before
    project.commit("other command", config=before.replace(good, f"command = {command}"))
    try:
        return refused(served, *expected)
    finally:
        project.commit("mended", config=before)


def test_command_that_is_not_there(served: tuple[Machine, Project, str]) -> None:
    changed_command(served, '"no-such-server --port 1"', "no-such-server", "No such file")


def test_wrapper_that_swallows_the_listener(served: tuple[Machine, Project, str]) -> None:
    """`sh -c` without exec keeps its own pid, so LISTEN_PID does not fit and the server binds a port of its own."""
    line = f"{sys.executable} server.py; true"
    changed_command(served, f"['sh', '-c', '{line}']", "which it bound itself")


def test_port_in_use_names_who_has_it(served: tuple[Machine, Project, str]) -> None:
    machine, project, _ = served
    before = (project.folder / "midstream.toml").read_text()
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        project.commit("port", config=before.replace(project.address, f"tcp://127.0.0.1:{port}"))
        try:
            refused(served, f"127.0.0.1:{port} is in use", str(os.getpid()))
        finally:
            project.commit("mended", config=before)


def test_linked_file_missing(served: tuple[Machine, Project, str]) -> None:
    machine, project, _ = served
    before = (project.folder / "midstream.toml").read_text()
    project.commit("linked", config='linked_files = ["config/secret.yml"]\n' + before)
    try:
        refused(served, "config/secret.yml", "shared", code=2)
    finally:
        project.commit("mended", config=before)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        ("[[build]]\nrun = [\"sh -c 'echo compiling; exit 7'\"]\n", ["exit 7", "compiling", "build step 1"]),
        ('[[build]]\nrun = ["sleep 3600"]\ntimeout = "1s"\n', ["was stopped after 1 s"]),
        ('[migrate]\nrun = "false"\n', ["migration", "exit 1"]),
    ],
)
def test_build_and_migration_that_fail(served: tuple[Machine, Project, str], build: str, expected: list[str]) -> None:
    machine, project, _ = served
    before = (project.folder / "midstream.toml").read_text()
    project.commit("build", config=before + build)
    try:
        refused(served, *expected, code=5 if "migrate" in build else 1)
    finally:
        project.commit("mended", config=before)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("instances = 1", 'instances = "many"'), ["services.web.instances"]),
        (('health = "/up"', 'helath = "/up"'), ["helath", "health"]),
        (('app = "shop"', 'app = "Shop!"'), ["Shop!"]),
        (("[services.web]", "[services.web"), ["midstream.toml:5: not valid TOML"]),
    ],
)
def test_configuration_mistakes_change_nothing(
    served: tuple[Machine, Project, str], change: tuple[str, str], expected: list[str]
) -> None:
    machine, project, good = served
    before = (project.folder / "midstream.toml").read_text()
    assert change[0] in before
    project.commit("mistake", config=before.replace(*change, 1))
    try:
        result = project.deploy()
        assert result.code == 2, result.text
        for text in expected:
            assert text in result.text, result.text
        assert "midstream.toml" in result.text
        assert machine.app()["release"] == good
    finally:
        project.commit("mended", config=before)


def test_unknown_branch_and_unreachable_repository(served: tuple[Machine, Project, str]) -> None:
    machine, project, good = served
    result = project.deploy("--branch", "mian")
    assert result.code in (1, 2) and "mian" in result.text and "main" in result.text, result.text
    before = (project.folder / "midstream.toml").read_text()
    project.commit("gone", config='repository = "/nowhere/at/all.git"\n' + before)
    try:
        result = project.deploy()
        assert result.code in (1, 2) and "/nowhere/at/all.git" in result.text, result.text
    finally:
        project.commit("mended", config=before)
    assert machine.app()["release"] == good
