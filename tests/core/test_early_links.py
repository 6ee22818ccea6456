"""Hosts that are dialled before the configuration is read: each link is used once, or ended."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from midstream import __main__
from midstream.cli import early
from midstream.cli.deploy_commands import deploy, rollback
from midstream.cli.hosts import ALL, Only, only_of
from midstream.deploy.transport import LocalHost, SshHost

TWO_STAGES = """
[stages.production]
hosts = ["web1", { address = "batch1", roles = ["batch"] }, "localhost"]
[stages.staging]
hosts = ["test1"]
"""


class FakeLink:
    ping_s = 0.01

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False
        self.sock, self.far_end = socket.socketpair()

    def close(self) -> None:
        self.closed = True
        self.sock.close()


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> list[FakeLink]:
    made: list[FakeLink] = []

    def dial(host: SshHost) -> Any:
        made.append(FakeLink(host.name))
        return made[-1]

    monkeypatch.setattr(SshHost, "dial", dial)
    monkeypatch.delenv("MIDSTREAM_SOCKET", raising=False)
    return made


def project(folder: Path, text: str = TWO_STAGES) -> str:
    (folder / "midstream.toml").write_text(text)
    return str(folder)


@pytest.mark.parametrize(
    ("stage", "only", "names"),
    [
        ("production", ALL, ["web1", "batch1"]),
        ("production", Only(without=("web1",)), ["batch1"]),
        ("staging", ALL, ["test1"]),
        (None, ALL, []),  # which of the two? the command will say that it does not know
        ("production", Only(hosts=("nobody",)), []),
        ("none", ALL, []),
    ],
)
def test_the_hosts_that_are_meant_are_dialled_and_hung_up(tmp_path, links, stage, only, names):
    with early.dialled(stage, project(tmp_path), "", only):
        assert [link.name for link in links] == names and not any(link.closed for link in links)
    assert all(link.closed for link in links)


def test_a_link_is_used_once_then_the_host_is_dialled_again(tmp_path, links):
    with early.dialled("staging", project(tmp_path), "", ALL) as begun:
        ways = begun.using({"test1": SshHost("test1"), "localhost": LocalHost("localhost", "/none")})
        assert isinstance(ways["localhost"], LocalHost)
        assert ways["test1"].name == "test1"
        assert ways["test1"].dial() is links[0]
        assert ways["test1"].dial() is links[1]
    assert not any(link.closed for link in links)  # whoever took them ends them


@pytest.mark.parametrize("text", ["", "nonsense [", "[stages]\nproduction = 1\n"])
def test_a_file_that_makes_no_sense_begins_nothing(tmp_path, links, text):
    with early.dialled("production", project(tmp_path, text), "", ALL):
        assert links == []


def test_a_named_socket_is_believed(tmp_path, links):
    with early.dialled("production", project(tmp_path), "/run/agent.sock", ALL):
        assert links == []


def test_the_far_end_hears_of_us_until_the_link_is_used(tmp_path, links):
    """Fetching may take longer than a far end waits for a word; what is said must not come between those of the client."""
    with early.dialled("staging", project(tmp_path), "", ALL) as begun:
        links[0].far_end.settimeout(30)
        assert links[0].far_end.recv(1) == b"\n" == links[0].far_end.recv(1)
        taken = begun.using({"test1": SshHost("test1")})["test1"].dial()
        links[0].far_end.setblocking(False)
        while True:
            try:
                links[0].far_end.recv(100)
            except BlockingIOError:
                break
        links[0].far_end.settimeout(0.2)
        with pytest.raises(TimeoutError):
            links[0].far_end.recv(1)
        assert taken is links[0]


COMMANDS = {"deploy": deploy, "rollback": rollback}
LINES = [
    "deploy",
    "deploy production",
    "deploy --json -v production --wait",
    "deploy -b main --set a=b --set=c=d staging",
    "deploy -c other.toml --without web1,web2 --roles=web",
    "deploy --config=x --socket /run/a.sock --hosts= --branch=--json",
    "rollback --to 20261121190501 --force production",
    "rollback --hosts web1 --hosts web2",
]


@pytest.mark.parametrize("line", LINES)
def test_the_words_mean_to_the_early_look_what_they_mean_to_the_command(line):
    verb, *words = line.split()
    said = COMMANDS[verb].make_context(verb, list(words)).params
    only = only_of(said["hosts"], said["roles"], said["without"])
    assert early.meant_by(words) == (said["stage"], said["config_path"], said["socket"], only)


@pytest.mark.parametrize(
    "line", ["--help", "-h", "-cx.toml", "-c=x", "a b", "--nonsense", "--json=1", "--branch", "--", "-", "-vb x"]
)
def test_what_is_out_of_the_ordinary_begins_nothing(line):
    assert early.meant_by(line.split()) is None


def test_what_was_begun_is_used_by_the_command_that_means_it(tmp_path, links, monkeypatch):
    monkeypatch.chdir(project(tmp_path))
    early.begin(["production", "--without", "web1"])
    assert [link.name for link in links] == ["batch1"]
    with early.dialled("production", "", "", Only(without=("web1",))) as begun:
        assert begun.using({"batch1": SshHost("batch1")})["batch1"].dial() is links[0]
    assert [link.name for link in links] == ["batch1"]


def test_what_was_begun_is_ended_when_the_command_means_something_else(tmp_path, links, monkeypatch):
    monkeypatch.chdir(project(tmp_path))
    early.begin(["staging"])
    with early.dialled("production", "", "", ALL) as begun:
        assert [(link.name, link.closed) for link in links] == [("test1", True), ("web1", False), ("batch1", False)]
        assert begun.using({"test1": SshHost("test1")})["test1"].dial() is not links[0]


def test_only_deploy_and_rollback_dial_before_they_are_loaded(tmp_path, links, monkeypatch):
    """And whatever becomes of the command, nothing stays begun."""
    monkeypatch.chdir(project(tmp_path))
    for words, dialled in (
        (["plan", "staging"], 0),
        (["deploy", "staging", "--nonsense"], 0),
        (["rollback", "-b", "x"], 0),
    ):
        monkeypatch.setattr(sys, "argv", ["midstream", *words])
        assert __main__.main() == 2
        assert len(links) == dialled


def test_a_module_that_cannot_be_imported_meanwhile_is_the_importers_business(tmp_path, monkeypatch):
    (tmp_path / "loaded_meanwhile.py").write_text("WORD = 'there'\n")
    (tmp_path / "broken_meanwhile.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with early.loading("loaded_meanwhile"), early.loading("broken_meanwhile"), early.loading("absent_meanwhile"):
        pass
    assert sys.modules.pop("loaded_meanwhile").WORD == "there"
    with pytest.raises(RuntimeError, match="broken"):
        import broken_meanwhile  # noqa: F401
