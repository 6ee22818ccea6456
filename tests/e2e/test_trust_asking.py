"""Another user of the host at the control socket: he sees nothing of others' apps, and gets nothing done with them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from machine import wait_for
from strangers import GuardedMachine, OwnedProject, Person, guarded_machine, needs_root, new_owned_project

from midstream.agent.methods import Methods
from midstream.deploy import rpc
from midstream.errors import LockedError, MidstreamError, NotAllowedError, OperatorError

pytestmark = needs_root


@pytest.fixture(scope="module")
def machine() -> Iterator[GuardedMachine]:
    with guarded_machine() as started:
        yield started


@pytest.fixture(scope="module")
def shop(machine: GuardedMachine) -> OwnedProject:
    """The app of nobody, deployed by him."""
    project = new_owned_project(Person("nobody", machine))
    result = project.deploy()
    assert result.code == 0, result.text
    return project


@pytest.fixture
def stranger(machine: GuardedMachine) -> Person:
    return Person("games", machine)


def test_owner_deploys_and_his_processes_are_his(shop: OwnedProject, machine: GuardedMachine) -> None:
    """The other tests would prove little if nothing worked at all."""
    for pid in machine.pids():
        assert Path(f"/proc/{pid}").stat().st_uid == shop.person.uid
    for path in (shop.deploy_to / "current", shop.stored_spec, shop.deploy_to / "repo"):
        assert path.lstat().st_uid == shop.person.uid
    assert shop.get("/")[0] == 200
    status = shop.cli("status")
    assert status.code == 0 and "shop" in status.out, status.text
    restarted = shop.cli("restart", "web")
    assert restarted.code == 0, restarted.text
    wait_for("one generation", machine.settled)


READING: dict[str, dict[str, Any]] = {
    "why": {"service": "web"},
    "logs": {},
    "releases": {},
    "deploy.status": {},
    "status": {},
    "events": {},
    "env.list": {},
    "file.read": {"path": "current/REVISION", "offset": 0, "size": 100},
}
ACTING: dict[str, dict[str, Any]] = {
    "start": {},
    "stop": {},
    "restart": {},
    "reload": {},
    "signal": {"signal": "KILL"},
    "hold": {"service": "web"},
    "unhold": {"service": "web", "force": True},
    "lock": {},
    "unlock": {},
    "run": {"argv": ["id"]},
    "console": {"argv": ["id"]},
    "env.push": {"variables": {"": {"LD_PRELOAD": "/tmp/evil.so"}}},
    "file.write": {"path": "shared/x", "offset": 0, "data": "", "last": True, "id": "x"},
    "quiet": {"service": "web"},
    "app.remove": {},
    "deploy.settle": {},
}
HOST: dict[str, dict[str, Any]] = {
    "agent.stop": {},
    "agent.upgrade": {"argv": ["/bin/sh"], "keeper_image": "/tmp/evil"},
}
DEPLOYING = (
    *("deploy.upload", "deploy.update", "deploy.select", "deploy.publish"),
    *("deploy.commit", "deploy.revert", "deploy.finish"),
    *("deploy.command", "deploy.hold", "deploy.unhold", "deploy.artifact.read", "deploy.artifact.write"),
)
OPEN_TO_ALL = ("hello",)
OF_A_CONNECTION = ("console.write", "console.resize")


def test_every_method_is_attacked_here() -> None:
    """A new method of the agent has to be added to these tables."""
    covered = {*READING, *ACTING, *HOST, *DEPLOYING, *OPEN_TO_ALL, *OF_A_CONNECTION, "deploy.open"}
    nobody: Any = SimpleNamespace()
    assert covered == set(Methods(nobody, nobody, "", nobody, nobody).table())


def test_a_console_is_its_connections_alone(shop: OwnedProject, stranger: Person) -> None:
    """Root or owner, on another connection there is nothing to be typed into."""
    with contextlib.closing(shop.person.connect()) as client:
        sock, buffer, _ = client.take_over()
        ask = {"app": "shop", "argv": ["sh", "-c", "read line; echo got $line"]}
        sock.sendall(rpc.request_line(1, "console", ask))
        said: list[Any] = []

        def session() -> int:
            for line in rpc.split_lines(buffer):
                said.append(json.loads(line))
            return next((row["params"]["session"] for row in said if row.get("method") == "console"), 0)

        while not session():
            buffer += sock.recv(65536)
        for person in (stranger, shop.person):
            for method, params in (("console.write", {"data": "ZXZpbAo="}), ("console.resize", {"rows": 1, "cols": 1})):
                with pytest.raises(OperatorError, match="no such console"):
                    person.call(method, session=session(), **params)
        sock.sendall(rpc.request_line(2, "console.write", {"session": session(), "data": "bWluZQo="}))
        while not any(row.get("id") == 1 for row in said):
            buffer += sock.recv(65536)
            session()
        shown = b"".join(
            base64.b64decode(row["params"].get("data", "")) for row in said if row.get("method") == "console"
        )
        assert b"got mine" in shown and b"evil" not in shown


@pytest.mark.parametrize("method", [*READING, *ACTING])
def test_methods_on_anothers_app_are_refused(
    shop: OwnedProject, stranger: Person, machine: GuardedMachine, method: str
) -> None:
    pids = machine.pids()
    with pytest.raises(NotAllowedError):
        stranger.call(method, app="shop", **(READING | ACTING)[method])
    assert machine.pids() == pids and machine.settled()


@pytest.mark.parametrize("method", HOST)
def test_methods_on_the_host_are_refused(
    shop: OwnedProject, stranger: Person, machine: GuardedMachine, method: str
) -> None:
    """To the owner of an app, too."""
    agent = machine.agent_pid
    for person in (stranger, shop.person):
        with pytest.raises(NotAllowedError):
            person.call(method, **HOST[method])
    assert machine.agent_pid == agent


def test_nothing_of_others_is_shown(shop: OwnedProject, stranger: Person) -> None:
    """Neither apps nor services, paths, releases, users; events of others neither."""
    with contextlib.closing(stranger.connect()) as client:
        told: list[Any] = []
        told.append(client.call("status"))
        told.append(client.call("events", on_notice=lambda method, params: told.append(params)))
        text = json.dumps(told)
    assert told[0]["apps"] == []
    for word in ("shop", "nobody", str(shop.deploy_to), "web"):
        assert word not in text


def test_what_the_owner_sees_is_his_alone(shop: OwnedProject, stranger: Person) -> None:
    other = new_owned_project(stranger, "library")
    assert other.deploy().code == 0
    with contextlib.closing(shop.person.connect()) as client:
        assert [app["app"] for app in client.call("status")["apps"]] == ["shop"]
    assert [app["app"] for app in stranger.call("status")["apps"]] == ["library"]
    assert {app["app"] for app in shop.machine.status()["apps"]} >= {"shop", "library"}
    stranger.call("app.remove", app="library")


def test_name_that_was_anothers_tells_nothing_of_him(shop: OwnedProject, stranger: Person) -> None:
    """An app is removed, another user takes its name: logs and events begin anew."""
    former = new_owned_project(shop.person, "taken")
    assert former.deploy().code == 0
    shop.person.call("lock", app="taken", reason="word-of-the-former")
    log = shop.machine.state / "log" / "taken" / "web.log"
    wait_for("its log", log.exists)
    shop.person.call("app.remove", app="taken")
    assert former.deploy().code == 0  # his own name again: his own past
    assert "word-of-the-former" in shop.cli("why", "web", "--app", "taken").out
    shop.person.call("app.remove", app="taken")
    theirs = new_owned_project(stranger, "taken")
    assert theirs.deploy().code == 0
    told: list[str] = []
    with contextlib.closing(stranger.connect()) as client:
        for method, params in (
            ("logs", {"lines": 1000}),
            ("events", {}),
            ("why", {"service": "web"}),
            ("releases", {}),
        ):
            answer = client.call(
                method, app="taken", **params, on_notice=lambda kind, line: told.append(json.dumps(line))
            )
            told.append(json.dumps(answer))
    assert told and not [text for text in told if "word-of-the-former" in text or str(former.deploy_to) in text]
    assert [text for text in told if "nobody" in text] == []
    assert list((shop.machine.state / "log").glob("taken.uid*")), "his lines are kept, for root"
    stranger.call("app.remove", app="taken")


def test_deploys_of_others_are_refused(shop: OwnedProject, stranger: Person, machine: GuardedMachine) -> None:
    """By name, by folder, and by taking part in one that is under way, its id and token known."""
    spec = shop.spec()
    with pytest.raises(NotAllowedError):
        stranger.call("deploy.open", deploy_id="x1", spec=spec)
    with pytest.raises(NotAllowedError):
        stranger.call("deploy.open", deploy_id="x2", spec=spec | {"app": "mine"})
    with pytest.raises(NotAllowedError):
        stranger.call(
            "deploy.open", deploy_id="x3", spec=spec | {"app": "mine", "deploy_to": str(shop.deploy_to) + "/x"}
        )
    with contextlib.closing(shop.person.connect()) as client:
        opened = shop.open(client, spec, "underway")
        with contextlib.closing(stranger.connect()) as thief:
            with pytest.raises(NotAllowedError):
                thief.call("deploy.open", deploy_id="underway", spec=spec)
            for method in DEPLOYING:
                with pytest.raises(NotAllowedError):
                    thief.call(
                        method,
                        deploy_id="underway",
                        token=opened["token"],
                        offset=0,
                        data="AAAA",
                        **shop.update_request(),
                    )
            with pytest.raises(NotAllowedError):
                thief.call("deploy.status", app="shop", deploy_id="underway", token=opened["token"])
        assert client.call("deploy.status", app="shop")["deploy"]["state"] == "open"
        client.call("deploy.finish", deploy_id="underway", token=opened["token"])
    assert machine.settled()


@pytest.mark.parametrize("wrong", [-1, 0, 1, "1", None, 10**30, True])
def test_stale_or_guessed_token_is_refused(shop: OwnedProject, machine: GuardedMachine, wrong: Any) -> None:
    """Fencing: also for the owner, whose earlier deploy was taken over."""
    with contextlib.closing(shop.person.connect()) as client:
        opened = shop.open(client, shop.spec(), f"fenced-{wrong}")
        assert opened["token"] > 1
        try:
            for method in DEPLOYING:
                with pytest.raises((LockedError, OperatorError)):
                    client.call(
                        method, deploy_id=f"fenced-{wrong}", token=wrong, offset=0, data="AAAA", **shop.update_request()
                    )
            assert client.call("deploy.status", app="shop")["deploy"]["state"] == "open"
        finally:
            client.call("deploy.finish", deploy_id=f"fenced-{wrong}", token=opened["token"])
    with pytest.raises(LockedError):  # it is over: its token is good for nothing
        shop.person.call("deploy.publish", deploy_id=f"fenced-{wrong}", token=opened["token"])


def test_id_of_anothers_deploy_cannot_be_taken(shop: OwnedProject, stranger: Person) -> None:
    """His record would be replaced, and his journal shown."""
    shop.person.call("restart", app="shop")
    wait_for("one generation", shop.machine.settled)
    token = shop.machine.call("deploy.status", app="shop") and _last_token(shop)
    folder = stranger.home / "srv" / "mine"
    folder.mkdir(parents=True)
    stranger.own(stranger.home)
    spec = shop.spec() | {"app": "mine", "deploy_to": str(folder), "services": {}}
    with pytest.raises(OperatorError, match="used already"):
        stranger.call("deploy.open", deploy_id=f"restart-shop-{token}", spec=spec)
    for bad in ("", "x" * 101, "a\nb", "\x1b[2J"):
        with pytest.raises(OperatorError):
            stranger.call("deploy.open", deploy_id=bad, spec=spec)


def _last_token(project: OwnedProject) -> int:
    with contextlib.closing(project.person.connect()) as client:
        opened = project.open(client, project.spec(), "look-at-token")
        client.call("deploy.finish", deploy_id="look-at-token", token=opened["token"])
    return int(opened["token"]) - 1


@pytest.mark.parametrize(
    "app", ["..", "../shop", "shop/../shop", "/etc", "", "SHOP", "shop\n", "shop\0", "x" * 5000, "+run"]
)
def test_odd_names_of_apps(shop: OwnedProject, stranger: Person, app: str) -> None:
    for method in READING | ACTING:
        if method in ("status", "events") and not app:
            continue  # all that he may see
        with pytest.raises(MidstreamError):
            stranger.call(method, app=app, **(READING | ACTING)[method])
    with pytest.raises(MidstreamError):
        stranger.call("deploy.open", deploy_id="odd", spec=shop.spec() | {"app": app, "deploy_to": str(stranger.home)})


@pytest.mark.parametrize(
    "release", ["../../../etc", "20200101000000/../..", "2020", "current", "2020010100000\n", "x" * 5000]
)
def test_odd_release_ids(shop: OwnedProject, release: str) -> None:
    with contextlib.closing(shop.person.connect()) as client:
        opened = shop.open(client, shop.spec(), "odd-release")
        common = {"deploy_id": "odd-release", "token": opened["token"]}
        try:
            with pytest.raises(MidstreamError):
                client.call("deploy.update", **common, **(shop.update_request() | {"release": release}))
        finally:
            client.call("deploy.finish", **common)
        opened = shop.open(client, shop.spec(), "odd-rollback", "rollback")
        common = {"deploy_id": "odd-rollback", "token": opened["token"]}
        try:
            with pytest.raises(MidstreamError):
                client.call("deploy.select", **common, release=release)
        finally:
            client.call("deploy.finish", **common)
    assert shop.machine.settled()


def test_odd_numbers_spoil_nothing(shop: OwnedProject, machine: GuardedMachine) -> None:
    """A deadline of NaN seconds in the agent's timers would stop those of all users."""
    agent = machine.agent_pid
    for value in ("nan", "inf", 1e300, -1, 10**400, [], {"a": 1}, True):
        for method, name in (
            ("stop", "timeout_s"),
            ("run", "timeout_s"),
            ("logs", "lines"),
            ("why", "limit"),
            ("events", "after"),
        ):
            more = {"argv": ["true"]} if method == "run" else {"service": "web"} if method == "why" else {}
            with pytest.raises(MidstreamError):
                shop.person.call(method, app="shop", **more, **{name: value})
        with pytest.raises(MidstreamError):
            shop.person.call("hold", app="shop", service="web", ttl_s=value)
    if not machine.settled():
        shop.person.call("start", app="shop")
    assert machine.agent_pid == agent


def test_text_that_cannot_be_stored_spoils_no_record(shop: OwnedProject) -> None:
    """Half a surrogate pair in an event: nothing after it would have been recorded, for anybody."""
    with shop.person.raw() as sock:
        sock.sendall(b'{"id":1,"method":"lock","params":{"app":"shop","reason":"\\ud800"}}\n')
        assert b"-32700" in sock.recv(65536)
    shop.person.call("lock", app="shop", reason="\u2603 fine")
    shop.person.call("unlock", app="shop")
    kinds = [entry["cause"] for entry in shop.person.call("why", app="shop", service="web")["entries"]]
    assert any("\u2603" in cause for cause in kinds)


def test_client_that_follows_and_never_reads(shop: OwnedProject, machine: GuardedMachine) -> None:
    """`logs -f` and `events -f` into a pipe that nobody empties: all others are answered."""
    with contextlib.ExitStack() as stack:
        for method in ("logs", "events"):
            sock = stack.enter_context(shop.person.raw())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sock.sendall(
                json.dumps({"id": 1, "method": method, "params": {"app": "shop", "follow": True}}).encode() + b"\n"
            )
        done = shop.person.call("run", app="shop", argv=["sh", "-c", "for i in $(seq 3000); do echo line; done"])
        assert done["code"] == 0
        assert shop.get("/")[0] == 200 and machine.settled()


def test_idle_connections_of_one_user_lock_nobody_out(shop: OwnedProject, stranger: Person) -> None:
    idle = []
    try:
        for _ in range(200):
            idle.append(stranger.raw())
        assert shop.person.call("status")["apps"][0]["app"] == "shop"
        assert shop.machine.status()["apps"]
    finally:
        for sock in idle:
            sock.close()

    def again() -> bool:
        try:
            return bool(stranger.call("hello"))
        except MidstreamError:
            return False

    wait_for("the stranger to be heard again", again)


def test_deploy_that_waits_for_the_lock_ends_with_its_client(shop: OwnedProject, machine: GuardedMachine) -> None:
    """It would have begun later, for nobody, and kept the lock for ever."""
    with contextlib.closing(shop.person.connect()) as client:
        opened = shop.open(client, shop.spec(), "first")
        with shop.person.raw() as waiting:
            request = {"deploy_id": "second", "spec": shop.spec(), "wait": True}
            waiting.sendall(json.dumps({"id": 1, "method": "hello"}).encode() + b"\n")
            waiting.sendall(json.dumps({"id": 2, "method": "deploy.open", "params": request}).encode() + b"\n")
            assert b"version" in waiting.recv(65536)
        client.call("deploy.finish", deploy_id="first", token=opened["token"])
    with contextlib.closing(shop.person.connect()) as client:
        opened = shop.open(client, shop.spec(), "third")
        client.call("deploy.finish", deploy_id="third", token=opened["token"])
    assert machine.app()["deploy"] is None


def test_the_keepers_socket_is_for_the_agent(shop: OwnedProject, stranger: Person, machine: GuardedMachine) -> None:
    for person in (stranger, shop.person):
        done = person.run(
            "python3",
            "-c",
            "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(sys.argv[1])",
            str(machine.runtime / "keeper.sock"),
        )
        assert "PermissionError" in done.err
    for folder in ("pids", "held", "orders"):
        assert (machine.runtime / folder).stat().st_mode & 0o077 == 0
    assert os.stat(machine.state).st_mode & 0o077 == 0
