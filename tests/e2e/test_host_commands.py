"""Commands and files on a host: `run` with its options, `file.read`, `file.write`, and with whose rights."""

from __future__ import annotations

import base64
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from machine import Machine, Project

from midstream.errors import HostError, MidstreamError, OperatorError


def write(machine: Machine, path: str, data: bytes, **more: Any) -> Any:
    given = {"offset": 0, "last": True, "id": "test", **more}
    return machine.call("file.write", app="shop", path=path, data=base64.b64encode(data).decode(), **given)


def test_a_command_gets_its_folder_variables_and_stdin_and_its_stdout_apart(project: Project, machine: Machine) -> None:
    project.deployed()
    script = "cat; echo $A; pwd; echo to-stderr >&2; exit 3"
    answer = machine.call(
        "run", app="shop", argv=[script], shell=True, stdin="in\n", env={"A": "b {{c}}"}, where="deploy_to", cwd="shared",
        capture=True,
    )  # fmt: skip
    assert answer["output"] == f"in\nb {{c}}\n{project.deploy_to}/shared\n"
    assert (answer["code"], answer["ok"]) == (3, False)
    with pytest.raises(OperatorError):
        machine.call("run", app="shop", argv=["x\0y"])
    with pytest.raises(OperatorError):
        machine.call("run", app="shop", argv=["true"], no_such="parameter")
    with pytest.raises(OperatorError, match="unknown placeholder"):
        machine.call("run", app="shop", argv=["true"], env={"A": "{c}"})
    slow = machine.call("run", app="shop", argv=["sleep", "600"], timeout_s=0.2)
    assert not slow["ok"] and "was stopped" in slow["text"]


def test_what_a_command_prints_is_told_without_secrets(project: Project) -> None:
    """By `exec`, with --json too; of a secret of several lines each one. The command itself has them as they are."""
    secrets = {"TOKEN": "tok-5e1f9a", "KEY": "first-line-0a1b2c\nsecond-line-3d4e5f"}
    top = 'secrets = { TOKEN = { env = "TOKEN" }, KEY = { env = "KEY" } }'
    project.commit("secrets", config=project.config(top=top))
    result = project.deploy(**secrets)
    assert result.code == 0, result.text
    script = 'echo "it is <$TOKEN>"; printenv KEY; echo ${#TOKEN}'
    for how in ([], ["--json"]):
        told = project.cli("exec", *how, "--shell", script)
        assert told.code == 0, told.text
        assert "it is <[secret]>" in told.out and "10" in told.out
        assert told.out.count("[secret]") == 3
        assert not [word for value in secrets.values() for word in value.splitlines() if word in told.text]


def test_what_prints_without_end_is_stopped(project: Project, machine: Machine) -> None:
    project.deployed()
    with pytest.raises(MidstreamError, match="printed more than"):
        machine.call("run", app="shop", argv=["yes"], capture=True)


def test_files_go_there_in_pieces_and_take_their_place_whole(project: Project, machine: Machine) -> None:
    project.deployed()
    target = project.deploy_to / "shared" / "data"
    target.write_bytes(b"old")
    write(machine, "shared/data", b"new ", last=False)
    assert target.read_bytes() == b"old"
    write(machine, "shared/data", b"text", offset=4, mode=0o640)
    assert target.read_bytes() == b"new text"
    assert target.stat().st_mode & 0o7777 == 0o640
    assert [path.name for path in target.parent.iterdir()] == ["data"]
    assert write(machine, "shared/data", b"text", offset=4)["offset"] == 8, "a repeated last piece is no failure"
    first = machine.call("file.read", app="shop", path="shared/data", offset=0, size=5)
    assert (base64.b64decode(first["data"]), first["size_bytes"], first["last"]) == (b"new t", 8, False)
    with pytest.raises(OperatorError):
        write(machine, "shared/data", b"x", mode=0o4755)
    for path in ("shared", "/dev/zero", "nowhere/x"):
        with pytest.raises(HostError):
            machine.call("file.read", app="shop", path=path, offset=0, size=5)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: several users")
def test_files_are_touched_with_the_rights_of_the_owner_alone(project: Project, machine: Machine) -> None:
    """The agent is root, the app is nobody's: what nobody could not do is not done for him."""
    nobody = pwd.getpwnam("nobody")
    project.deployed()
    record = machine.root / "secret"
    record.write_text("root's")
    record.chmod(0o600)
    machine.root.chmod(0o711)
    folder = machine.root / "srv"
    folder.chmod(0o711)
    for path in [project.deploy_to, *project.deploy_to.rglob("*")]:
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    hand_over(machine, nobody.pw_uid)
    (project.deploy_to / "link").symlink_to(record)
    with pytest.raises(HostError, match="Permission denied"):
        machine.call("file.read", app="shop", path="link", offset=0, size=100)
    with pytest.raises(HostError, match="Permission denied"):
        write(machine, str(machine.root / "planted"), b"x")
    write(machine, "link", b"his own")
    assert record.read_text() == "root's", "a link is replaced, not followed"
    assert (project.deploy_to / "link").stat().st_uid == nobody.pw_uid


def hand_over(machine: Machine, uid: int) -> None:
    """Makes the app another user's, as if he had deployed it."""
    import sqlite3

    machine.stop()
    with sqlite3.connect(Path(machine.state) / "agent.db") as db:
        [(body,)] = db.execute("SELECT body FROM app WHERE app = 'shop'").fetchall()
        import json

        row = {**json.loads(body), "owner_uid": uid}
        db.execute("UPDATE app SET body = ? WHERE app = 'shop'", (json.dumps(row),))
    machine.start()
