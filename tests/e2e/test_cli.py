"""The commands, run as a user runs them, against an agent in memory that speaks the real protocol."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midstream.cli import main as cli_main
from midstream.cli.main import ALIASES, COMMANDS
from midstream.errors import AppError, LockedError
from midstream.testing.fake_agent import Fail, FakeAgent, HangUp, threaded

TOML = """
app = "shop"
deploy_to = "/srv/shop"
linked_files = [".env"]

[migrate]
run = "python manage.py migrate"

[services.web]
command = "python -m http.server"
listen = "tcp://127.0.0.1:8000"
health = "/up"

[services.jobs]
command = "python work.py"

[stages.production]
secrets = { SECRET_KEY = { env = "SHOP_KEY" } }
"""


class Shop:
    """A project in a git repository, a fake agent, and commands run there."""

    def __init__(self, folder: Path, agent: FakeAgent, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.agent = agent
        self._capsys = capsys

    def git(self, *args: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=A", "-c", "user.email=a@example.com", *args],
            cwd=self.folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def commit(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-qm", f"Change {name}")
        return self.git("rev-parse", "HEAD")

    def run(self, *argv: str) -> Result:
        self._capsys.readouterr()
        code = cli_main.run(argv)
        out, err = self._capsys.readouterr()
        return Result(code, out, err)

    def ok(self, *argv: str) -> Result:
        result = self.run(*argv)
        assert result.code == 0, result
        return result


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """stdout as JSON lines: fails when one of them is not."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shop]:
    folder = tmp_path / "shop"
    folder.mkdir()
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("SHOP_KEY", "hunter2-hunter2")
    monkeypatch.delenv("MIDSTREAM_SOCKET", raising=False)
    monkeypatch.chdir(folder)
    with threaded(str(tmp_path / "agent.sock")) as agent:
        monkeypatch.setenv("MIDSTREAM_SOCKET", agent.socket_path)
        shop = Shop(folder, agent, capsys)
        shop.git("init", "-q", "-b", "main")
        shop.commit("midstream.toml", TOML)
        yield shop


# ---------------------------------------------------------------------- deploy


def test_deploy_then_status_then_rollback(shop: Shop) -> None:
    first = shop.ok("deploy")
    assert "shop (production) is on release" in first.out
    assert "generation 1" in first.out
    release = shop.agent.apps["shop"].committed
    sha = shop.commit("app.py", "2")
    second = shop.ok("deploy", "production")
    assert sha[:10] in second.out
    assert shop.agent.apps["shop"].committed > release
    text = shop.ok("status").out
    assert "web/0" in text
    assert "4711" in text
    back = shop.ok("rollback")
    assert f"is back on release {release}" in back.out
    assert shop.agent.apps["shop"].committed == release


def test_deploy_as_json_is_lines_that_end_with_a_summary(shop: Shop) -> None:
    rows = shop.ok("deploy", "--json").rows
    assert [rows[0]["type"], rows[-1]["type"]] == ["plan", "summary"]
    assert rows[-1]["ok"] is True
    assert rows[-1]["release"] == shop.agent.apps["shop"].committed
    assert {row["type"] for row in rows} >= {"plan", "state", "begin", "end", "call", "summary"}


def test_the_plan_that_is_printed_is_the_plan_that_runs(shop: Shop) -> None:
    printed = shop.ok("plan", "--json").rows[0]
    run = shop.ok("deploy", "--json").rows[0]["plan"]
    assert {key: printed[key] for key in run} == run
    calls = [move["call"] for move in run["moves"]]
    assert [m for m in shop.agent.methods() if m in calls] == calls


def test_the_plan_in_words(shop: Shop) -> None:
    text = shop.ok("plan").out
    for part in ("starting", "deploy:check", "deploy:symlink:shared", ".env", "python manage.py migrate", "finished"):
        assert part in text
    assert "deploy:revert_release" in shop.ok("plan", "--rollback").out


def test_a_failed_deploy_says_what_where_what_serves_and_what_to_do(shop: Shop) -> None:
    shop.ok("deploy")
    old = shop.agent.apps["shop"].committed
    error = AppError("web did not answer GET /up", where="web, generation 2", detail="ImportError: no module x")
    shop.agent.script("deploy.publish", Fail(error))
    result = shop.run("deploy")
    assert result.code == 1
    for part in ("web did not answer GET /up", "localhost: web, generation 2", "ImportError", old, "midstream deploy"):
        assert part in result.err
    log = Path(result.err.split("full log: ")[1].splitlines()[0])
    assert "web did not answer GET /up" in log.read_text()
    assert shop.agent.apps["shop"].running == old


def test_a_failure_as_json_has_a_summary_and_an_error(shop: Shop) -> None:
    shop.agent.script("deploy.open", Fail(LockedError("a deploy by berta is going on")))
    result = shop.run("deploy", "--json")
    assert result.code == 4
    by_type = {row["type"]: row for row in result.rows}
    assert by_type["summary"]["exit_code"] == 4
    assert by_type["error"]["code"] == "locked"


def test_an_agent_killed_in_the_middle_does_not_stop_a_deploy(shop: Shop) -> None:
    shop.agent.script("deploy.publish", HangUp())
    result = shop.ok("deploy")
    assert "lost the agent" in result.out
    assert "the agent is back" in result.out


def test_secrets_are_printed_nowhere(shop: Shop, tmp_path: Path) -> None:
    """Not on the screen, not in the log, not in the record: even when a build or an error repeats them."""
    leak = "your key is hunter2-hunter2"
    step = {"phase": "updated", "step": "deploy:build", "state": "line", "line": leak}
    shop.agent.tell_during("deploy.update", "progress", step)
    shop.agent.script("deploy.publish", Fail(AppError(leak, detail=leak, where=leak)))
    result = shop.run("deploy", "-v")
    assert "your key is [SECRET_KEY]" in result.err
    assert "your key is [SECRET_KEY]" in result.out
    assert shop.agent.apps["shop"].secrets == {"SECRET_KEY": "hunter2-hunter2"}
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert kept == []
    assert "hunter2" not in result.out + result.err


def test_a_missing_secret_stops_before_anything_is_done(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_KEY")
    result = shop.run("deploy")
    assert result.code == 2
    assert "SECRET_KEY" in result.err
    assert shop.agent.methods() == []


def test_the_configuration_of_the_revision_counts(shop: Shop) -> None:
    (shop.folder / "midstream.toml").write_text(TOML.replace("/up", "/not-committed"))
    result = shop.ok("deploy")
    spec = shop.agent.params_of("deploy.open")["spec"]
    assert spec["services"]["web"]["health"]["http"] == "/up"
    assert "not committed" in result.err


def test_mistakes_in_the_file_are_usage_errors_with_their_line(shop: Shop) -> None:
    shop.commit("midstream.toml", TOML.replace("health =", "helth ="))
    result = shop.run("deploy")
    assert result.code == 2
    assert "health" in result.err
    assert "midstream.toml" in result.err
    assert shop.agent.methods() == []


def test_an_unknown_branch_is_a_usage_error_with_the_nearest(shop: Shop) -> None:
    result = shop.run("deploy", "--branch", "mian")
    assert result.code == 2
    assert "main" in result.err


def test_hosts_that_are_not_this_machine_are_asked_over_ssh(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIDSTREAM_SOCKET")
    monkeypatch.setenv("MIDSTREAM_SSH", "sh -c 'echo Connection refused >&2; exit 255'")
    shop.commit("midstream.toml", TOML + 'hosts = ["deploy@web1.example.com"]\n')
    for argv in (["deploy"], ["status"], ["restart", "web"]):
        result = shop.run(*argv)
        assert result.code == 1, result
        assert "no sshd listens there" in result.err
        assert "deploy@web1.example.com" in result.err
    assert shop.agent.methods() == []


def test_diff_names_the_commits_that_a_deploy_would_bring(shop: Shop) -> None:
    assert "nothing is deployed" in shop.ok("diff").out
    shop.ok("deploy")
    assert "would bring no commit" in shop.ok("diff").out
    shop.commit("app.py", "2")
    assert "Change app.py" in shop.ok("diff").out
    shop.ok("deploy")
    assert [c["subject"] for c in shop.ok("diff", "--branch", "main~1", "--json").rows[0]["removed"]] == [
        "Change app.py"
    ]


def test_check_takes_the_lock_and_frees_it_again(shop: Shop) -> None:
    result = shop.ok("check")
    assert shop.agent.methods() == ["deploy.open", "deploy.finish"]
    assert shop.agent.apps["shop"].deploy is None
    assert "SECRET_KEY can be read" in result.out


# ---------------------------------------------------------------------- a dead deployer


def leave_open(shop: Shop) -> None:
    """As after `kill -9` of the deployer in the middle: the agent has the deploy open, the record says so."""
    code = (
        "import os, sys\n"
        "from midstream.deploy import runner\n"
        "runner.HostRun.publish = lambda *_: os._exit(9)\n"
        "from midstream.cli.main import run\n"
        "sys.exit(run(['deploy']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=shop.folder, capture_output=True, text=True)
    assert done.returncode == 9, done
    assert shop.agent.apps["shop"].deploy is not None


def test_resume_carries_the_deploy_of_a_killed_deployer_to_its_end(shop: Shop) -> None:
    leave_open(shop)
    deploy_id = shop.agent.apps["shop"].deploy.id  # type: ignore[union-attr]
    shop.commit("app.py", "later")
    rows = shop.ok("resume", "--json").rows
    assert rows[-1]["deploy_id"] == deploy_id
    assert len(shop.agent.apps["shop"].releases) == 1
    assert shop.run("resume").code == 2, "there is nothing left to resume"


def test_resume_of_a_deploy_that_was_put_back_meanwhile_makes_it_anew(shop: Shop) -> None:
    wanted = shop.git("rev-parse", "HEAD")
    leave_open(shop)
    shop.agent.expire_leases()
    shop.commit("app.py", "later")
    rows = shop.ok("resume", "--json").rows
    assert rows[-1]["revision"] == wanted
    assert shop.agent.apps["shop"].committed == rows[-1]["release"]


def test_abort_puts_back_whatever_is_going_on(shop: Shop) -> None:
    shop.ok("deploy")
    assert "no deploy of shop is going on" in shop.ok("abort").out
    shop.agent.apps.clear()
    leave_open(shop)
    assert "is ended; nothing is committed" in shop.ok("abort").out
    assert shop.agent.apps["shop"].deploy is None


# ---------------------------------------------------------------------- looking


def test_status_check_exits_3_when_something_is_down_or_drifted(shop: Shop) -> None:
    assert shop.run("status", "--check").code == 3, "nothing is deployed"
    shop.ok("deploy")
    assert shop.run("status", "--check").code == 0
    shop.agent.apps["shop"].running = "20200101000000"
    result = shop.run("status", "--check")
    assert result.code == 3
    assert "20200101000000" in result.err + result.out


def test_status_of_one_service_and_of_an_unknown_one(shop: Shop) -> None:
    shop.ok("deploy")
    text = shop.ok("status", "jobs").out
    assert "jobs/0" in text
    assert "web/0" not in text
    result = shop.run("status", "jibs")
    assert result.code == 2
    assert "jobs" in result.err


def test_status_without_an_agent_says_what_to_do(shop: Shop, tmp_path: Path) -> None:
    result = shop.run("status", "--socket", str(tmp_path / "nobody.sock"))
    assert result.code == 1
    assert "no agent answers" in result.err
    assert "midstream agent run" in result.err


def test_status_shows_a_lock_a_hold_and_what_was_stopped(shop: Shop) -> None:
    shop.ok("deploy")
    shop.ok("lock", "--reason", "freeze")
    shop.ok("hold", "jobs", "--reason", "moving")
    shop.ok("stop", "web")
    text = shop.ok("status").out
    assert "freeze" in text
    assert "moving" in text
    assert "stopped by hand" in text
    assert shop.run("status", "--check").code == 3, "what was stopped by hand does not run"


def test_releases_why_and_logs(shop: Shop) -> None:
    shop.ok("deploy")
    release = shop.agent.apps["shop"].committed
    assert release in shop.ok("releases").out
    assert shop.ok("releases", "--json").rows[0]["committed"] is True
    shop.agent.apps["shop"].events.append(
        {"time": 1.0, "service": "web", "generation": 1, "slot": 0, "what": "ended", "cause": "exit 1", "who": "agent"}
    )
    assert "exit 1" in shop.ok("why", "web").out
    assert shop.ok("why", "production", "web", "--json").rows[0]["what"] == "ended"
    assert "web.1.0 | web is up" in shop.ok("logs", "web").out
    assert [row["service"] for row in shop.ok("logs", "--json").rows] == ["web", "jobs"]


def test_terminal_escapes_in_logs_are_shown_not_sent(shop: Shop) -> None:
    from midstream.testing.fake_agent import Say

    shop.ok("deploy")
    row = {"time": "2026-11-21T19:05:01.000Z", "service": "web", "generation": 1, "slot": 0, "line": "\x1b]0;owned\x07"}
    shop.agent.script("logs", Say((("log", row),)))
    assert "\x1b" not in shop.ok("logs").out


# ---------------------------------------------------------------------- services


def test_services_are_acted_on_by_name_by_stage_and_all(shop: Shop) -> None:
    shop.ok("deploy")
    shop.ok("restart", "web")
    assert shop.agent.params_of("restart") == {"app": "shop", "services": ["web"], "wait": True}
    shop.ok("stop", "production", "jobs", "--timeout", "2m", "--no-wait")
    expected = {"app": "shop", "services": ["jobs"], "wait": False, "timeout_s": 120.0}
    assert shop.agent.params_of("stop") == expected
    shop.ok("start", "all")
    assert shop.agent.params_of("start")["services"] == []
    shop.ok("reload", "web")
    assert shop.ok("restart", "web", "--json").rows[0]["service"] == "web"


def test_a_verb_without_a_service_does_not_mean_all(shop: Shop) -> None:
    shop.ok("deploy")
    result = shop.run("stop")
    assert result.code == 2
    assert "all" in result.err
    assert "stop" not in shop.agent.methods()


def test_signals_by_name_and_number(shop: Shop) -> None:
    shop.ok("deploy")
    shop.ok("signal", "sighup", "web")
    assert shop.agent.params_of("signal")["signal"] == "HUP"
    shop.ok("signal", "10", "web", "--slot", "0")
    assert shop.agent.params_of("signal") == {"app": "shop", "services": ["web"], "signal": "USR1", "slot": 0}
    result = shop.run("signal", "HUPP", "web")
    assert result.code == 2
    assert "HUP" in result.err


def test_a_hold_is_ended_with_its_token_and_somebody_elses_only_by_force(shop: Shop) -> None:
    shop.ok("deploy")
    shop.ok("hold", "jobs", "--for", "1h")
    assert shop.agent.params_of("hold")["ttl_s"] == 3600
    shop.ok("unhold", "jobs")
    shop.ok("hold", "jobs")
    shop.agent.apps["shop"].holds["jobs"]["token"] = "berta's"
    assert shop.run("unhold", "jobs").code == 4
    shop.ok("unhold", "jobs", "--force")


def test_locked_for_deploys_until_unlocked(shop: Shop) -> None:
    shop.ok("deploy")
    shop.ok("lock", "--reason", "freeze")
    result = shop.run("deploy")
    assert result.code == 4
    assert "freeze" in result.err
    shop.ok("unlock")
    shop.ok("deploy")


def test_exec_passes_words_on_and_fails_when_the_command_does(shop: Shop) -> None:
    shop.ok("deploy")
    assert "ran: ls -l --color" in shop.ok("exec", "ls", "-l", "--color").out
    result = shop.run("exec", "false")
    assert result.code == 1
    assert "exit code 3" in result.err


def test_run_lists_and_runs_the_migration(shop: Shop) -> None:
    shop.ok("deploy")
    assert "deploy:migrate" in shop.ok("run", "--list").out
    assert "ran: python manage.py migrate" in shop.ok("run", "deploy:migrate").out
    assert shop.run("run", "deploy:migarte").code == 2


@pytest.mark.parametrize(
    ("alias", "method"),
    [
        (("up", "web"), "start"),
        (("down", "web"), "stop"),
        (("unmonitor", "web"), "hold"),
        (("monitor", "web"), "unhold"),
        (("hup", "web"), "signal"),
        (("tail", "web"), "logs"),
        (("summary",), "status"),
    ],
)
def test_words_of_other_programs_are_understood_and_it_is_said(shop: Shop, alias: tuple[str, ...], method: str) -> None:
    shop.ok("deploy")
    shop.agent.calls.clear()
    result = shop.ok(*alias)
    assert method in shop.agent.methods()
    assert f"`{alias[0]}` is `midstream" in result.err


def test_agent_connect_is_a_pipe_to_the_socket(shop: Shop) -> None:
    request = json.dumps({"jsonrpc": "2.0", "id": 7, "method": "status", "params": {}}) + "\n"
    done = subprocess.run(
        [sys.executable, "-m", "midstream", "agent", "connect"],
        input=request,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["id"] == 7


def test_doctor_finds_the_agent_and_the_project(shop: Shop) -> None:
    shop.ok("deploy")
    text = shop.ok("doctor").out
    assert "answers on" in text
    assert "midstream.toml" in text
    assert {row["level"] for row in shop.ok("doctor", "--json").rows} <= {"ok", "note", "bad"}
    (shop.folder / "midstream.toml").write_text("app = 7\n")
    assert shop.run("doctor").code == 1


# ---------------------------------------------------------------------- the command line itself


def test_unknown_words_are_answered_with_the_nearest(shop: Shop) -> None:
    result = shop.run("delpoy")
    assert (result.code, result.out) == (2, "")
    assert "`deploy`" in result.err
    result = shop.run("deploy", "--jsno")
    assert result.code == 2
    assert "--json" in result.err


def test_an_unforeseen_exception_is_a_bug_and_exits_70(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("midstream.cli.status_command.take_aim", broken)
    result = shop.run("status")
    assert result.code == 70
    assert "a bug of Midstream" in result.err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("demo", "agent", "env")])
def test_every_help_page_has_usage_examples_and_exit_codes(shop: Shop, name: str) -> None:
    text = shop.ok(name, "--help").out
    assert text.startswith(f"Usage: midstream {name}")
    assert f"\n  midstream {name}" in text
    assert "Exit codes:" in text
    if name not in ("init", "console"):
        assert "--json" in text


def test_the_overview_lists_every_command_and_every_alias_leads_to_one(shop: Shop) -> None:
    text = shop.ok("--help").out
    for name in COMMANDS:
        assert f"  {name} " in text or name == "demo"
    assert {target[0] for target in ALIASES.values()} <= set(COMMANDS)


def test_status_does_not_import_what_it_does_not_need() -> None:
    """It is what is typed most, and often by scripts."""
    code = (
        "import sys\nfrom midstream.cli.main import run\nrun(['status', '--socket', '/nonexistent'])\n"
        "print([m for m in ('asyncio', 'rich', 'cattrs', 'attr', 'ssl') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip().splitlines()[-1] == "[]", done


def test_a_reader_that_leaves_is_no_error(shop: Shop) -> None:
    done = subprocess.run(
        f"{sys.executable} -m midstream plan --json | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_deploy_goes_on_when_nobody_reads_its_output(shop: Shop) -> None:
    """A closed terminal or `| head` must not put a deploy back, nor leave it half-way."""
    done = subprocess.run(
        f"{sys.executable} -m midstream deploy -v | true; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert shop.agent.apps["shop"].committed
    assert shop.agent.apps["shop"].deploy is None


def test_escapes_in_a_commit_or_an_error_do_not_reach_the_terminal(shop: Shop) -> None:
    shop.git("commit", "-q", "--allow-empty", "-m", "evil \x1b]0;owned\x07")
    shop.agent.script("deploy.publish", Fail(AppError("evil \x1b[2J", detail="\x1b[31m")))
    result = shop.run("deploy")
    assert result.code == 1
    assert "\x1b" not in result.out + result.err
    assert "evil" in result.out
