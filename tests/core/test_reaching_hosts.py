"""Values about reaching hosts: what ssh's words mean, which hosts are meant, what the far end is given to run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import pytest

from midstream.cli.bridge import _Lines
from midstream.cli.hosts import Only, choose, reach
from midstream.deploy.rpc import UNADDRESSED, Reply, first_word, parse_line
from midstream.deploy.ssh import far_end, ssh_argv, ssh_words
from midstream.deploy.transport import LocalHost, SshHost
from midstream.deploy.unreachable import NotNow, name_of, ssh_failed
from midstream.errors import HostError, OperatorError


@dataclass(frozen=True)
class Row:
    address: str
    roles: tuple[str, ...] = ()


ROWS = (Row("deploy@web1", ("web", "db")), Row("ssh://web2:22", ("web",)), Row("batch1", ("batch",)))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("web1", "web1"),
        ("deploy@web1", "web1"),
        ("ssh://deploy@web1:2222", "web1"),
        ("ssh://web1", "web1"),
        ("ssh://deploy@[2001:db8::1]:22", "2001:db8::1"),
        ("deploy@2001:db8::1", "2001:db8::1"),
        ("a@b@web1", "web1"),
    ],
)
def test_the_name_in_an_address(address: str, name: str) -> None:
    assert name_of(address) == name


# Words of OpenSSH 8.4 to 9.9, and of the far ends of Debian, Alpine and macOS.
@pytest.mark.parametrize(
    ("status", "said", "what", "again"),
    [
        (255, "ssh: connect to host web1 port 22: Connection refused", "refused", True),
        (255, "ssh: connect to host web1 port 22: No route to host", "no route", True),
        (255, "ssh: connect to host web1 port 22: Network is unreachable", "no route", True),
        (255, "ssh: connect to host web1 port 22: Operation timed out", "in time", True),
        (255, "Connection timed out during banner exchange\nConnection to 10.0.0.1 port 22 timed out", "in time", True),
        (255, "ssh: Could not resolve hostname web1: Name or service not known", "cannot be resolved", True),
        (255, "kex_exchange_identification: Connection closed by remote host", "closed the connection", True),
        (255, "Connection reset by 10.0.0.1 port 22", "closed the connection", True),
        (255, "deploy@web1: Permission denied (publickey,password).", "refused the log-in", False),
        (
            255,
            "Received disconnect from 1.2.3.4 port 22:2: Too many authentication failures",
            "refused the log-in",
            False,
        ),
        (255, "No ED25519 host key is known for web1 and you have requested strict checking.", "not known here", False),
        (255, "Host key verification failed.", "not known here", False),
        (
            255,
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.",
            "not the one that is known",
            False,
        ),
        (255, "Unable to negotiate with 1.2.3.4 port 22: no matching host key type found.", "no algorithm", False),
        (255, "/home/x/.ssh/config: line 3: Bad configuration option: nosuch", "its own configuration", False),
        (255, "channel 0: open failed: connect failed: Connection refused\nstdio forwarding failed", "refused", True),
        (255, "something new", "ssh failed", False),
        (255, "", "did not say why", False),
        (-15, "", "ended by signal 15", True),
        (127, "midstream-is-not-installed", "not installed", False),
        (127, "/usr/bin/env: 'python3': No such file or directory", "no python3", False),
        (127, "env: can't execute 'python3': No such file or directory", "no python3", False),
        (126, "sh: /opt/midstream/bin/midstream: /x/python3: bad interpreter: No such file", "no python3", False),
        (1, "midstream needs Python 3.11 or newer; this is 3.9", "too old", False),
        (2, "Error: No such option: --silence", "older than this command", False),
        (1, "This account is currently not available.", "ended with status 1", False),
    ],
)
def test_what_the_end_of_an_ssh_means(status: int, said: str, what: str, again: bool) -> None:
    error = ssh_failed("deploy@web1", status, said)
    assert isinstance(error, NotNow) is again
    shown = error.error if isinstance(error, NotNow) else error
    assert what in shown.what
    assert shown.where == "deploy@web1"
    assert shown.remedy
    assert "{" not in shown.remedy


def test_words_of_the_far_end_are_not_taken_for_those_of_ssh() -> None:
    """A program at the far end that says "Permission denied" did not fail to log in."""
    error = ssh_failed("web1", 126, "sh: 1: exec: /opt/midstream/bin/midstream: Permission denied")
    assert isinstance(error, HostError)
    assert "log-in" not in error.what


def test_the_far_end_is_one_word_in_single_quotes_for_every_login_shell() -> None:
    line = far_end("agent", "connect", "--silence", "20")
    exec_, sh, c, script = shlex.split(line)
    assert (exec_, sh, c) == ("exec", "sh", "-c")
    assert "'" not in script
    assert "!" not in script
    assert "\n" not in line
    assert 'exec "$m" agent connect --silence 20' in script


@pytest.mark.parametrize("address", ["", "-oProxyCommand=x", "web1 -x", "web1\n", "a\x00b"])
def test_what_is_no_address_never_reaches_ssh(address: str) -> None:
    with pytest.raises(OperatorError):
        ssh_argv(address, "true")


def test_host_keys_are_never_left_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIDSTREAM_SSH", raising=False)
    argv = ssh_argv("deploy@web1", "true")
    assert argv[0] == "ssh"
    assert argv[-3:] == ["--", "deploy@web1", "true"]
    assert not [word for word in argv if "HostKey" in word or "KnownHosts" in word]
    assert ssh_words({"MIDSTREAM_SSH": "ssh -F 'a b'"}) == ["ssh", "-F", "a b"]
    with pytest.raises(OperatorError):
        ssh_words({"MIDSTREAM_SSH": "ssh 'open"})


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (Only(), ["deploy@web1", "ssh://web2:22", "batch1"]),
        (Only(hosts=("web2", "deploy@web1")), ["deploy@web1", "ssh://web2:22"]),
        (Only(roles=("web",)), ["deploy@web1", "ssh://web2:22"]),
        (Only(roles=("batch", "db")), ["deploy@web1", "batch1"]),
        (Only(without=("web1",)), ["ssh://web2:22", "batch1"]),
        (Only(hosts=("web1", "batch1"), without=("batch1",)), ["deploy@web1"]),
    ],
)
def test_which_hosts_are_meant(only: Only, names: list[str]) -> None:
    assert [row.address for row in choose(ROWS, only, "production")] == names


@pytest.mark.parametrize(
    "only", [Only(hosts=("web7",)), Only(roles=("mail",)), Only(hosts=("web1",), without=("web1",))]
)
def test_a_name_that_no_host_has_is_refused(only: Only) -> None:
    with pytest.raises(OperatorError):
        choose(ROWS, only, "production")


def test_a_host_without_roles_has_them_all() -> None:
    assert choose((Row("web1"),), Only(roles=("batch",)), "production") == (Row("web1"),)


def test_how_hosts_are_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIDSTREAM_SOCKET", raising=False)
    assert reach(["web1"]) == {"web1": SshHost("web1")}
    assert reach(["web1"], "/a.sock") == {"web1": LocalHost("web1", "/a.sock")}
    assert isinstance(reach(["", "web1"])["localhost"], LocalHost)
    with pytest.raises(OperatorError):
        reach(["web1", "web2"], "/a.sock")
    monkeypatch.setenv("MIDSTREAM_SOCKET", "/own.sock")
    several = reach(["localhost", "web1"], of_several=True)
    assert several == {"localhost": LocalHost("localhost", "/own.sock"), "web1": SshHost("web1")}


def test_empty_lines_go_no_further_however_they_are_cut() -> None:
    stream = b'\n{"a":1}\n\n\n{"b":2}\n\n{"c":3}\n'
    for size in range(1, len(stream) + 1):
        lines = _Lines()
        pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert b"".join(map(lines, pieces)) == b'{"a":1}\n{"b":2}\n{"c":3}\n'


def test_the_first_word_of_the_protocol_behind_what_a_login_prints() -> None:
    message = b'{"jsonrpc":"2.0","id":0,"result":{}}\n'
    assert first_word(b"Welcome! " + message) == message
    assert first_word(b"Last login: Sat\n") == b""


def test_an_error_that_answers_nobody_is_still_an_error() -> None:
    line = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"no agent answers"}}'
    reply = parse_line(line, where="web1")
    assert isinstance(reply, Reply)
    assert (reply.id, reply.code) == (UNADDRESSED, -32001)
    assert reply.error is not None
