"""The owner of an app against the host: asking for more than his own rights, by configuration, by links, by his files.

The agent is root, the app belongs to `nobody`. Everything that root would do for him in his own folder is tried to be led
somewhere else.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import wait_for
from strangers import PYTHON, GuardedMachine, OwnedProject, Person, guarded_machine, needs_root, new_owned_project

from midstream.errors import MidstreamError, NotAllowedError, OperatorError

pytestmark = needs_root


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


@pytest.fixture
def vault(machine: GuardedMachine) -> Iterator[Path]:
    """A folder of root's, as /etc: what is made, changed or missing there was done by root."""
    folder = machine.root / "vault"
    folder.mkdir(mode=0o755)
    (folder / "passwd").write_text("root:x:0:0\n")
    (folder / "shadow").write_text("SECRET=of-the-host\n")
    (folder / "shadow").chmod(0o600)
    before = sorted(os.listdir(folder))
    yield folder
    after = sorted(os.listdir(folder))
    contents = (folder / "passwd").read_text(), (folder / "shadow").read_text()
    owners = {(folder / name).lstat().st_uid for name in after}
    shutil.rmtree(folder)
    assert after == before and contents == ("root:x:0:0\n", "SECRET=of-the-host\n") and owners == {0}


def _web(change: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    def apply(spec: dict[str, Any]) -> None:
        spec["services"]["web"] |= change

    return apply


ASKING: dict[str, dict[str, Any]] = {
    "root": {"user": "root"},
    "another user": {"user": "games"},
    "group docker or such": {"group": "disk"},
    "more groups": {"groups": ["shadow"]},
    "port 80": {"listen": [{"address": "tcp://127.0.0.1:80"}]},
    "socket in /etc": {"listen": [{"address": "unix:///etc/midstream-test.sock"}]},
    "socket above": {"listen": [{"address": "unix://{shared}/../../../../midstream-test.sock"}]},
    "socket of root": {"listen": [{"address": "unix://{shared}/web.sock", "owner": "root"}]},
    "priority": {"limits": {"nice": -5}},
    "log in /etc": {"log": {"path": "/etc/cron.d/midstream-test"}},
}


@pytest.mark.parametrize("what", ASKING)
@pytest.mark.parametrize("when", ["open", "update", "rollback"])
def test_more_than_his_own_rights(shop: OwnedProject, machine: GuardedMachine, what: str, when: str) -> None:
    """Refused at the first word, when smuggled in later, and when written into the stored configuration that a rollback
    uses; and the app serves on."""
    pids = machine.pids()
    with pytest.raises(NotAllowedError) as refused:
        if when == "open":
            spec = shop.spec()
            _web(ASKING[what])(spec)
            shop.person.call("deploy.open", deploy_id="more", spec=spec)
        elif when == "update":
            shop.publish_changed(_web(ASKING[what]), "more")
        else:
            _roll_back_to_edited(shop, shop.person, _web(ASKING[what]))
    assert "web" in refused.value.where
    assert machine.pids() == pids and machine.app()["deploy"] is None
    assert shop.get("/")[0] == 200


def _roll_back_to_edited(shop: OwnedProject, person: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Edits the stored configuration of the committed release, and selects that."""
    good = shop.stored_spec.read_text()
    release = shop.machine.app()["release"]
    spec = json.loads(good)
    change(spec)
    shop.stored_spec.write_text(json.dumps(spec))
    try:
        with contextlib.closing(person.connect()) as client:
            opened = shop.open(client, json.loads(good), "back", "rollback")
            common = {"deploy_id": "back", "token": opened["token"]}
            try:
                client.call("deploy.select", **common, release=release, force=True)
                client.call("deploy.publish", **common)
                client.call("deploy.commit", **common)
            finally:
                client.call("deploy.finish", **common)
    finally:
        shop.stored_spec.write_text(good)


class _Root:
    """Root at the socket."""

    def __init__(self, machine: GuardedMachine) -> None:
        self._machine = machine

    def connect(self) -> Any:
        from midstream.deploy.sync_client import connect

        return connect(str(self._machine.socket))


def test_edited_configuration_stays_the_owners_word_when_root_rolls_back(
    shop: OwnedProject, machine: GuardedMachine
) -> None:
    with pytest.raises(NotAllowedError):
        _roll_back_to_edited(shop, _Root(machine), _web({"user": "root"}))


def test_edited_configuration_of_another_app_or_folder(shop: OwnedProject, vault: Path) -> None:
    for change in ({"app": "other"}, {"deploy_to": str(vault)}, {"user": "root"}):
        with pytest.raises(OperatorError):
            _roll_back_to_edited(shop, shop.person, lambda spec, change=change: spec.update(change))  # type: ignore[misc]


def test_what_root_granted_works(shop: OwnedProject, machine: GuardedMachine) -> None:
    """The same requests, with the grant: else the refusals would prove little."""
    port = _low_port()
    run = machine.root / "run-shop"
    run.mkdir(mode=0o755)
    allowance = f"nobody:shop:{shop.deploy_to}:run-as=games:port={port}:path={run}:group=video:raise-limits"
    by_himself = shop.person.cli("agent", "allow", allowance, "--grants", str(machine.grants))
    assert by_himself.code == 2 and not (machine.grants / "shop.toml").exists(), by_himself.text
    by_root = machine.cli("agent", "allow", allowance, "--grants", str(machine.grants))
    assert by_root.code == 0, by_root.text
    machine.kill_agent()  # the next agent knows where the grants are
    listen = [{"address": f"tcp://127.0.0.1:{port}"}, {"address": f"unix://{run}/web.sock", "name": "local"}]
    change = {"user": "games", "groups": ["video"], "listen": listen, "limits": {"nice": -1}}
    shop.publish_changed(_web(change), "granted")
    wait_for("one generation", machine.settled)
    [pid] = machine.pids()
    assert Path(f"/proc/{pid}").stat().st_uid == Person("games", machine).uid
    assert (run / "web.sock").is_socket()
    (machine.grants / "shop.toml").unlink()
    with pytest.raises(NotAllowedError):  # taken back
        shop.publish_changed(_web(change), "no more")
    result = shop.deploy()
    assert result.code == 0, result.text
    wait_for("one generation", machine.settled)
    assert not (run / "web.sock").exists(), "the socket of a listener that is gone"


def _low_port() -> int:
    for port in range(700, 1023):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    pytest.skip("no port below 1024 is free")


# -- links


def test_deploy_to_behind_a_link_to_roots_folder(machine: GuardedMachine, shop: OwnedProject, vault: Path) -> None:
    """Root would have made the folder there, and given it away."""
    link = shop.person.home / "link"
    link.symlink_to(vault)
    shop.person.own(link)
    for path in (link, link / "cron.d"):
        with pytest.raises(MidstreamError):
            shop.person.call(
                "deploy.open",
                deploy_id="link",
                spec=shop.spec() | {"app": "linked", "deploy_to": str(path), "services": {}},
            )
    link.unlink()


def test_deploy_to_that_becomes_a_link_while_it_is_made(
    machine: GuardedMachine, shop: OwnedProject, vault: Path
) -> None:
    """A folder on the way is exchanged again and again."""
    path = shop.person.home / "turning"
    aside = shop.person.home / "aside"
    path.mkdir()
    shop.person.own(path)
    over = threading.Event()

    def turn() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                path.rename(aside)
                path.symlink_to(vault)
                path.unlink()
                aside.rename(path)

    turning = threading.Thread(target=turn)
    turning.start()
    try:
        for number in range(15):
            spec = shop.spec() | {"app": f"turn{number}", "deploy_to": str(path / f"x{number}"), "services": {}}
            with contextlib.suppress(MidstreamError):
                shop.person.call("deploy.open", deploy_id=f"turn-{number}", spec=spec)
    finally:
        over.set()
        turning.join()
    for number in range(15):
        with contextlib.suppress(MidstreamError):
            shop.person.call("app.remove", app=f"turn{number}")


@pytest.mark.parametrize("name", ["../../../../../../VAULT/x", "web/../../../../../VAULT/x"])
def test_service_whose_name_is_a_path(shop: OwnedProject, machine: GuardedMachine, vault: Path, name: str) -> None:
    """Its run folder and its log would be made by root, and given to the user."""
    name = name.replace("VAULT", str(vault).lstrip("/"))

    def change(spec: dict[str, Any]) -> None:
        spec["services"][name] = spec["services"].pop("web") | {"name": name}

    with pytest.raises(OperatorError):
        shop.publish_changed(change, "path")
    assert shop.get("/")[0] == 200


def test_socket_through_a_link_to_roots_folder(shop: OwnedProject, machine: GuardedMachine, vault: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(vault / "passwd.sock"))
    dead.close()
    link = shop.deploy_to / "shared" / "run"
    link.symlink_to(vault)
    shop.person.own(link)
    try:
        for name in ("new.sock", "passwd.sock", "passwd"):
            with pytest.raises(MidstreamError):
                shop.publish_changed(_web({"listen": [{"address": f"unix://{{shared}}/run/{name}"}]}), f"sock-{name}")
        assert (vault / "passwd.sock").is_socket()
    finally:
        (vault / "passwd.sock").unlink()
        link.unlink()
    assert shop.get("/")[0] == 200


def test_folder_of_a_socket_that_is_exchanged_before_it_is_removed(
    shop: OwnedProject, machine: GuardedMachine, vault: Path
) -> None:
    """The listener goes with its generation; what then lies at its path is root's."""
    folder = shop.deploy_to / "shared" / "run"
    folder.mkdir()
    shop.person.own(folder)
    shop.publish_changed(_web({"listen": [{"address": "unix://{shared}/run/passwd"}]}), "before")
    wait_for("one generation", machine.settled)
    assert (folder / "passwd").is_socket() and (folder / "passwd").stat().st_uid == shop.person.uid
    shutil.rmtree(folder)
    folder.symlink_to(vault)
    result = shop.deploy()
    assert result.code == 0, result.text
    wait_for("one generation", machine.settled)
    wait_for(
        "the listener to be gone",
        lambda: not any("passwd" in item["address"] for item in machine.service()["listeners"]),
    )
    assert (vault / "passwd").exists()
    folder.unlink()


def test_env_file_that_is_a_link_to_what_he_may_not_read(shop: OwnedProject, vault: Path) -> None:
    link = shop.deploy_to / "shared" / "stolen.env"
    link.symlink_to(vault / "shadow")
    try:
        change = _web({"env": {"files": [str(link)]}})
        with pytest.raises(MidstreamError) as refused:
            shop.publish_changed(change, "env")
        assert "of-the-host" not in json.dumps(refused.value.to_wire())
    finally:
        link.unlink()


@pytest.mark.parametrize("kind", ["fifo", "device", "huge", "folder"])
def test_env_file_that_is_no_file(shop: OwnedProject, machine: GuardedMachine, kind: str) -> None:
    """The agent neither waits for it nor reads without end."""
    path = shop.deploy_to / "shared" / "odd.env"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "huge":
            path.write_text("A=" + "x" * 900_000 + "\n")
        case "folder":
            path.mkdir()
    shop.person.own(path)
    agent = machine.agent_pid
    try:
        with pytest.raises(MidstreamError):
            shop.publish_changed(_web({"env": {"files": [str(path)]}}), f"odd-{kind}")
        assert machine.agent_pid == agent and shop.get("/")[0] == 200
    finally:
        shutil.rmtree(path) if kind == "folder" else path.unlink()


def test_linked_files_and_releases_that_are_links(shop: OwnedProject, machine: GuardedMachine, vault: Path) -> None:
    """The steps are his own processes: they can do what he can."""
    shared = shop.deploy_to / "shared"
    (shared / "config").symlink_to(vault)
    shop.person.own(shared / "config")
    before = (shop.folder / "midstream.toml").read_text()
    shop.commit(
        "linked",
        config=before.replace(
            "\n[services", '\nlinked_dirs = ["config/new"]\nlinked_files = ["config/passwd"]\n[services', 1
        ),
    )
    result = shop.deploy()
    assert result.code != 0, result.text
    (shared / "config").unlink()
    shop.commit("mended", config=before)
    releases = shop.deploy_to / "releases"
    aside = shop.deploy_to / "releases.aside"
    old = vault / "20200101000000"
    old.mkdir()
    releases.rename(aside)
    releases.symlink_to(vault)
    shop.person.own(releases)
    try:
        assert shop.deploy().code != 0
        assert old.is_dir(), "the cleanup of root's folder"
        shown = shop.person.call("releases", app="shop")["releases"]
        assert "20200101000000" not in [row["release"] for row in shown if row["on_disk"]] or _may_list(shop, vault)
    finally:
        releases.unlink()
        aside.rename(releases)
        old.rmdir()
    result = shop.deploy()
    assert result.code == 0, result.text
    wait_for("one generation", machine.settled)


def _may_list(shop: OwnedProject, folder: Path) -> bool:
    return shop.person.run("ls", str(folder)).code == 0


def test_deploy_to_that_is_replaced_by_a_link(shop: OwnedProject, machine: GuardedMachine, vault: Path) -> None:
    """What root looks at for `status` and `releases` is looked at with the owner's rights."""
    closed = vault / "closed"
    (closed / "releases" / "20210101000000").mkdir(parents=True)
    (closed / "releases" / "20210101000000" / "REVISION").write_text("c0ffee\n")
    (closed / "current").symlink_to("/somewhere/20210101000000")
    closed.chmod(0o700)
    aside = shop.deploy_to.with_name("aside")
    shop.deploy_to.rename(aside)
    shop.deploy_to.symlink_to(closed)
    try:
        told = json.dumps([shop.person.call("status", app="shop"), shop.person.call("releases", app="shop")])
        assert "20210101000000" not in told and "c0ffee" not in told
        assert shop.deploy().code != 0
    finally:
        shop.deploy_to.unlink()
        aside.rename(shop.deploy_to)
        shutil.rmtree(closed)
    assert shop.cli("status", "--check").code == 0


# -- root as a deputy


def test_health_check_is_not_led_to_a_socket_of_root(shop: OwnedProject, machine: GuardedMachine) -> None:
    """The agent would have spoken the user's words to docker.sock, or to itself, as root."""
    heard: list[bytes] = []
    path = machine.root / "docker.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as docker:
        docker.bind(str(path))
        docker.listen(8)
        docker.settimeout(0.2)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    peer, _ = docker.accept()
                    with peer:
                        peer.settimeout(5)
                        heard.append(peer.recv(65536))
                        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            web = shop.deploy_to / "shared" / "web.sock"
            # Bound by the keeper, exchanged by the service itself when it starts.
            program = (
                f"import os, time; os.unlink({str(web)!r}); os.symlink({str(path)!r}, {str(web)!r}); time.sleep(3600)"
            )
            change = {
                "command": [PYTHON, "-c", program],
                "listen": [{"address": f"unix://{web}"}],
                "health": {"http": "/containers/all/kill", "method": "POST", "failures": 2},
                "ready": "health",
                "handover": "replace",
                "start_timeout_s": 3.0,
                "healthy_timeout_s": 2.0,
                "stop_timeout_s": 1.0,
            }
            with pytest.raises(MidstreamError):
                shop.publish_changed(_web(change), "deputy")
        finally:
            over.set()
            serving.join()
            web.unlink(missing_ok=True)
            path.unlink()
    assert heard == []
    wait_for("the old one again", lambda: machine.settled() and shop.get("/")[0] == 200)


@pytest.mark.parametrize(
    "change", [{"stop_signal": "NOPE"}, {"env": {"variables": {"A": "{nothing}"}}}, {"command": []}]
)
def test_values_that_would_stop_the_agent(shop: OwnedProject, machine: GuardedMachine, change: dict[str, Any]) -> None:
    agent = machine.agent_pid
    with pytest.raises(OperatorError):
        shop.publish_changed(_web(change), "poison")
    assert machine.agent_pid == agent and shop.get("/")[0] == 200


def test_environment_that_is_too_large_for_a_message(shop: OwnedProject, machine: GuardedMachine) -> None:
    """It would have cut the agent off its keeper, again and again."""
    agent, keeper = machine.agent_pid, machine.keeper_pid
    variables = {f"V{number}": "x" * 60_000 for number in range(10)}
    with pytest.raises(MidstreamError):
        shop.publish_changed(_web({"env": {"variables": variables}}), "large")
    assert (machine.agent_pid, machine.keeper_pid) == (agent, keeper)
    wait_for("the old one", lambda: machine.settled() and shop.get("/")[0] == 200)


def test_run_folder_of_a_thousand_levels(shop: OwnedProject, machine: GuardedMachine) -> None:
    """Root removes it when the generation is gone; it must neither stop the agent nor be left."""
    program = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "for _ in range(3000):\n    os.mkdir('x'); os.chdir('x')\n"
        "os.chdir('/')\n"
        "import time; time.sleep(3600)\n"
    )
    agent = machine.agent_pid

    def change(spec: dict[str, Any]) -> None:
        spec["services"]["deep"] = {"name": "deep", "command": [PYTHON, "-c", program, "{run}"], "stop_timeout_s": 1.0}

    try:
        shop.publish_changed(change, "deep")
        result = shop.deploy()
        assert result.code == 0, result.text
        wait_for("it to be gone", lambda: all(row["service"] != "deep" for row in machine.app()["services"]))
        assert machine.agent_pid == agent and shop.get("/")[0] == 200
        assert "too much was in" in shop.cli("why", "deep").out
    finally:
        subprocess.run(["rm", "-rf", str(machine.runtime / "run" / "shop" / "deep")], check=True)
    wait_for("the web service", lambda: machine.service()["state"] == "running")


def test_agent_was_never_restarted(machine: GuardedMachine, shop: OwnedProject) -> None:
    """None of all this stopped it."""
    assert "Traceback" not in machine.out()
