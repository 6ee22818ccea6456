"""Who may speak for a service, and what is never said: readiness of others, output of others, secrets."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from machine import wait_for
from strangers import PYTHON, GuardedMachine, OwnedProject, Person, guarded_machine, needs_root, new_owned_project

from midstream.agent.store import Store
from midstream.errors import MidstreamError

pytestmark = needs_root

SECRET = "xyzzy-plugh-1f2e3d"
LINES = "-----BEGIN KEY-----\nfirst-line-0a1b2c\nsecond-line-3d4e5f\n-----END KEY-----"


@pytest.fixture(scope="module")
def machine() -> Iterator[GuardedMachine]:
    with guarded_machine() as started:
        yield started


@pytest.fixture(scope="module")
def shop(machine: GuardedMachine) -> OwnedProject:
    project = new_owned_project(Person("nobody", machine))
    result = project.deploy()
    assert result.code == 0, result.text
    return project


_SPEAK = """
import socket, sys
print("ready", flush=True)
path = sys.stdin.readline().strip()
try:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(sys.argv[1].encode(), path)
    print("sent", flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
sys.stdin.read()  # alive while it is judged, as any attacker would be; a sender that is gone is judged by its uid
"""


@contextlib.contextmanager
def _speaker(person: Person, words: str) -> Iterator[Callable[[str], str]]:
    """Call the value with the path of a socket: the words are sent there, and how that went is the answer. The program is
    there already: who is proven has only so much time."""
    with subprocess.Popen(
        ["python3", "-c", _SPEAK, words],
        cwd=person.home,
        env=person.machine.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        user=person.uid,
        group=person.gid,
        extra_groups=[],
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        told, heard = process.stdin, process.stdout
        assert heard.readline() == "ready\n"

        def say(path: str) -> str:
            told.write(path + "\n")
            told.flush()
            return heard.readline().strip()

        yield say


WAITER = "import os, time; print('waiting', os.environ['NOTIFY_SOCKET'], flush=True); time.sleep(3600)"
SLOW = {
    "command": [PYTHON, "-c", WAITER],
    "ready": "notify",
    "handover": "replace",
    "start_timeout_s": 6.0,  # others speak within it
    "stop_timeout_s": 1.0,
    "listen": [],
    "health": None,
}


def _notify_socket(pid: int) -> str:
    """As the process was given it; "" while it is not yet what it will be."""
    for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if item.startswith(b"NOTIFY_SOCKET="):
            return item.partition(b"=")[2].decode()
    return ""


def test_ready_said_by_others_is_not_believed(shop: OwnedProject, machine: GuardedMachine) -> None:
    """By another user, who cannot send; by another process of the same user, who is refused. The deploy fails, as the
    service never said it. Its own word counts (the service `web` of the other tests is ready that way)."""
    heard: list[str] = []
    with contextlib.ExitStack() as stack:
        stranger = stack.enter_context(_speaker(Person("games", machine), "READY=1"))
        another = stack.enter_context(_speaker(shop.person, f"READY=1\nMAINPID={os.getpid()}"))
        with pytest.raises(MidstreamError) as refused:
            _publish(shop, _with_slow, lambda: _tell(machine, heard, (stranger, another)))
    assert heard == ["PermissionError", "sent"]
    assert "READY=1" in refused.value.what
    assert machine.settled() or machine.service("slow")["state"] in ("stopped", "failed")
    assert "is not of this instance" in shop.cli("why", "slow").out


def _tell(machine: GuardedMachine, heard: list[str], speakers: Sequence[Callable[[str], str]]) -> None:
    """Once, as soon as there is somebody to speak for."""
    if heard:
        return
    services = [item["service"] for item in machine.app()["services"]]
    pids = [item["pid"] for item in machine.instances("slow") if item["pid"]] if "slow" in services else []
    if path := _notify_socket(pids[0]) if pids else "":
        heard += [say(path) for say in speakers]


def _with_slow(spec: dict[str, Any]) -> None:
    spec["services"]["slow"] = SLOW | {"name": "slow"}


def _publish(shop: OwnedProject, change: Any, tell: Any) -> None:
    """As `publish_changed`, with somebody who acts while the agent waits."""
    over = threading.Event()

    def act() -> None:
        while not over.wait(0.1):
            with contextlib.suppress(OSError):  # the process may end at any moment
                tell()

    acting = threading.Thread(target=act)
    acting.start()
    try:
        shop.publish_changed(change, "speaking")
    finally:
        over.set()
        acting.join()


def test_fifos_and_notify_sockets_are_each_for_one_user(shop: OwnedProject, machine: GuardedMachine) -> None:
    stranger = Person("games", machine)
    fifos = list((machine.runtime / "out").iterdir())
    sockets = list((machine.runtime / "n").iterdir())
    assert fifos and sockets
    for path in (*fifos, *sockets):
        found = path.lstat()
        assert stat.S_IMODE(found.st_mode) == 0o600 and found.st_uid == shop.person.uid
        done = stranger.run("python3", "-c", f"open({str(path)!r}, 'w')")
        assert "PermissionError" in done.err
    for folder in ("n", "l", "out", "run"):
        done = stranger.run("ls", str(machine.runtime / folder))
        assert done.code != 0 or folder == "run"
    for path in (machine.runtime / "run" / "shop").rglob("*"):
        if path.parent.parent.name == "shop":
            assert stat.S_IMODE(path.lstat().st_mode) == 0o700 and path.lstat().st_uid == shop.person.uid


def test_secrets_are_said_nowhere(shop: OwnedProject, machine: GuardedMachine) -> None:
    """A build that prints its environment and fails, one that succeeds, a service that has them: in what is shown, told,
    logged by us, and in every file that the agent writes, but those that are root's alone and hold them on purpose."""
    spec = shop.spec()
    spec["env"] = {"secrets": ["TOKEN", "KEY"]}
    spec["build"] = [{"run": ["sh", "-c", 'printenv TOKEN; printenv KEY; test ! -e "$0"/fail', str(shop.person.home)]}]
    told: list[str] = []
    for number, fails in enumerate((True, False)):
        (shop.person.home / "fail").touch() if fails else (shop.person.home / "fail").unlink()
        deploy_id = f"secret-{number}"
        with contextlib.closing(shop.person.connect()) as client:
            hear = lambda method, params: told.append(json.dumps(params))  # noqa: E731
            opened = client.call("deploy.open", deploy_id=deploy_id, spec=spec, on_notice=hear)
            common = {"deploy_id": deploy_id, "token": opened["token"]}
            request = shop.update_request() | {"release": f"209901010001{number:02}"}
            try:
                client.call(
                    "deploy.update",
                    **common,
                    **request,
                    spec=spec,
                    secrets={"TOKEN": SECRET, "KEY": LINES},
                    on_notice=hear,
                )
                client.call("deploy.publish", **common, on_notice=hear)
                client.call("deploy.commit", **common, on_notice=hear)
                assert not fails
            except MidstreamError as error:
                assert fails, error
                told.append(json.dumps(error.to_wire()))
            told.append(json.dumps(client.call("deploy.status", app="shop")))
            told.append(json.dumps(client.call("deploy.finish", **common, on_notice=hear)))
    assert any("[secret]" in text for text in told), "the build did not say them, so nothing is shown"
    wait_for("one generation", lambda: machine.service()["state"] == "running")
    [pid] = machine.pids()
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert SECRET.encode() in environ and LINES.encode() in environ
    for args in (["status", "--json"], ["why", "web"], ["releases", "--json"], ["logs", "--lines", "1000"]):
        told.append(shop.cli(*args).text)
    with contextlib.closing(shop.person.connect()) as client:
        client.call("events", app="shop", on_notice=lambda method, params: told.append(json.dumps(params)))
    told.append(shop.person.run("ps", "-eww", "-o", "args").out)
    told.append(machine.out())
    words = [SECRET, "first-line-0a1b2c", "second-line-3d4e5f"]
    for text in told:
        for word in words:
            assert word not in text, text[:2000]
    _look_into_files(shop, machine, words)


def _look_into_files(shop: OwnedProject, machine: GuardedMachine, words: list[str]) -> None:
    holding = {"agent.db", "agent.db-wal", "agent.db-shm", "shop.json"}
    for top in (machine.state, machine.runtime, shop.deploy_to, machine.grants):
        for path in top.rglob("*"):
            if not stat.S_ISREG(path.lstat().st_mode):
                continue
            data = path.read_bytes()
            if any(word.encode() in data for word in words):
                assert path.name in holding or path.parent.name == "orders", path
                assert path.stat().st_mode & 0o077 == 0 and path.stat().st_uid == 0, path


def test_tables_that_are_shown_hold_no_secret(machine: GuardedMachine, shop: OwnedProject) -> None:
    """Only the table of generations has them; journal, events, intents do not."""
    with contextlib.closing(sqlite3.connect(machine.state / "agent.db")) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert {"journal", "event", "intent", "release", "generation"} <= set(tables)
        text = {table: json.dumps(database.execute(f"SELECT * FROM {table}").fetchall()) for table in tables}
    assert SECRET in text.pop("generation")
    for table, rows in text.items():
        assert SECRET not in rows and "first-line-0a1b2c" not in rows, table


def test_state_is_for_root_alone(machine: GuardedMachine) -> None:
    for path in (machine.state, machine.state / "agent.db", machine.state / "committed", machine.state / "incoming"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert Store  # the names above are its


def test_flood_of_notices_is_not_heard_at_the_cost_of_others(shop: OwnedProject, machine: GuardedMachine) -> None:
    """A service that says STATUS as fast as it can: the agent answers, and the record does not fill up with it."""
    program = (
        "import os, socket\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ['NOTIFY_SOCKET'])\n"
        "s.send(b'READY=1')\n"
        "n = 0\n"
        "while True:\n    n += 1; s.send(b'STATUS=%d' % n)\n"
    )

    def change(spec: dict[str, Any]) -> None:
        spec["services"]["flood"] = {
            "name": "flood",
            "command": [PYTHON, "-c", program],
            "ready": "notify",
            "stop_timeout_s": 1.0,
        }

    shop.publish_changed(change, "flood")
    try:
        [pid] = machine.pids("flood")
        before = _cpu_s(machine.agent_pid)
        for _ in range(20):
            assert machine.status("shop")["apps"]
        used_s = _cpu_s(machine.agent_pid) - before
        assert Path(f"/proc/{pid}").exists()
        assert used_s < 20, used_s
        assert len(shop.person.call("why", app="shop", service="flood", limit=1000)["entries"]) < 100
    finally:
        shop.person.call("stop", app="shop", services=["flood"])


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
