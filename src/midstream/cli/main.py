"""The entry point of the command line, its table of commands, and the one boundary where errors become exit codes.

Commands are imported when they are called, so that `midstream status` starts fast; this module imports click and
`errors` alone. Words of Monit, sv, supervisorctl and Capistrano that mean the same are understood (`ALIASES`).
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import click

import midstream
from midstream.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, MidstreamError


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is (`module:attribute` below midstream.cli) and its line in the overview."""

    target: str
    summary: str


SECTIONS: dict[str, dict[str, Entry]] = {
    "Deploy": {
        "init": Entry("init_command:init", "Look at the project here and write its midstream.toml"),
        "check": Entry("check_command:check", "See whether a deploy could run: configuration, revision, host"),
        "plan": Entry("plan_commands:plan", "Print the plan that deploy would run"),
        "diff": Entry("plan_commands:diff", "Show the commits between what runs and what would"),
        "deploy": Entry("deploy_commands:deploy", "Put a release on the hosts and hand over to it"),
        "rollback": Entry("deploy_commands:rollback", "Hand over to an earlier release"),
        "resume": Entry("settle_commands:resume", "Carry a deploy whose deployer died to its end"),
        "abort": Entry("settle_commands:abort", "Put back a deploy whose deployer died"),
        "lock": Entry("lock_commands:lock", "Refuse deploys until unlock"),
        "unlock": Entry("lock_commands:unlock", "Allow deploys again"),
        "notify": Entry("notify_command:notify", "Who is told of deploys; --test tries it"),
    },
    "Look": {
        "status": Entry("status_command:status", "What runs: processes, generations, releases, drift"),
        "releases": Entry("look_commands:releases", "The releases on the host, and which one runs"),
        "why": Entry("look_commands:why", "Each start, stop and restart of a service with its cause"),
        "logs": Entry("look_commands:logs", "The output of services"),
        "doctor": Entry("doctor_command:doctor", "Examine this machine, the agent and the project"),
    },
    "Services": {
        "start": Entry("service_commands:start", "Start services"),
        "stop": Entry("service_commands:stop", "Stop services, and keep them stopped"),
        "restart": Entry("service_commands:restart", "Replace the processes of services by new ones"),
        "reload": Entry("service_commands:reload", "Have services read their configuration again"),
        "quiet": Entry("quiet_command:quiet", "Workers begin no further job for a while; ends by itself"),
        "hold": Entry("hold_commands:hold", "Start nothing of a service for a while; ends by itself"),
        "unhold": Entry("hold_commands:unhold", "End a hold"),
        "signal": Entry("service_commands:signal", "Send a signal to the processes of services"),
    },
    "Serve": {
        "serve": Entry("serve_command:serve", "Serve a WSGI or ASGI app from forked workers; upgrades lose nothing"),
    },
    "Run something of the app": {
        "run": Entry("run_commands:run", "Run a task of the deploy by itself"),
        "exec": Entry("run_commands:exec_", "Run a command in the running release, with its environment"),
        "console": Entry("console_command:console", "The app's own shell on a host, with a terminal"),
        "env": Entry("env_commands:env", "Variables and secrets on the hosts, without a new release"),
    },
    "Hosts": {
        "setup": Entry("setup_commands:setup", "Install agents on a stage's hosts, make folders, check everything"),
        "agent": Entry(
            "agent_commands:agent", "Run, reach, stop the agent of this machine; install and upgrade others"
        ),
        "demo": Entry("demo:demo", "See it work: deploys under load, in a temporary folder"),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}

# Words of other programs -> the words here that mean the same.
ALIASES: dict[str, tuple[str, ...]] = {
    "up": ("start",),  # sv
    "down": ("stop",),
    "monitor": ("unhold",),  # Monit
    "unmonitor": ("hold",),
    "summary": ("status",),
    "report": ("status",),
    "validate": ("status", "--check"),
    "tail": ("logs",),  # supervisorctl
    "pid": ("status",),
    "shutdown": ("agent", "stop"),
    "hup": ("signal", "HUP"),  # sv
    "alarm": ("signal", "ALRM"),
    "interrupt": ("signal", "INT"),
    "1": ("signal", "USR1"),
    "2": ("signal", "USR2"),
    "term": ("signal", "TERM"),
    "kill": ("signal", "KILL"),
    "pause": ("signal", "STOP"),
    "cont": ("signal", "CONT"),
    "deploy:check": ("check",),  # Capistrano
    "deploy:rollback": ("rollback",),
}


class LazyGroup(click.Group):
    """Imports a command when it is asked for. A command whose module is not part of this copy is not listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if _is_there(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None or not _is_there(cmd_name):
            return None
        module, _, attribute = entry.target.partition(":")
        found = getattr(importlib.import_module(f"midstream.cli.{module}"), attribute)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word in ALIASES:
            args = [*ALIASES[word], *args[1:]]
            click.echo(f"midstream: `{word}` is `midstream {' '.join(ALIASES[word])}` here", err=True)
        elif self.get_command(ctx, word) is None:
            _unknown_command(word, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in SECTIONS.items():
            rows = [(name, entry.summary) for name, entry in section.items() if _is_there(name)]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _is_there(name: str) -> bool:
    return importlib.util.find_spec(f"midstream.cli.{COMMANDS[name].target.partition(':')[0]}") is not None


def _unknown_command(word: str, ctx: click.Context) -> NoReturn:
    near = difflib.get_close_matches(word, [*COMMANDS, *ALIASES], n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else " `midstream --help` lists them."
    raise click.UsageError(f"There is no command `{word}`.{hint}", ctx)


@click.command(
    "midstream",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`midstream COMMAND --help` explains a command, with examples and exit codes.",
)
@click.version_option(midstream.__version__, prog_name="midstream", message="%(prog)s %(version)s")
def cli() -> None:
    """Change horses in midstream: new code on your own Linux servers without dropping a request, losing a job, or
    leaving one process on old code."""


def run(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit code (DESIGN 11). Every error is reported here and nowhere else."""
    try:
        code = _invoke(list(argv))
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except MidstreamError as error:
        show_error(error, as_json="--json" in argv)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("midstream: interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, e.g. `midstream logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_OK
    except Exception:
        import traceback

        traceback.print_exc()
        click.echo("midstream: this is a bug of Midstream; please report it with the lines above", err=True)
        return EXIT_BUG


def _invoke(argv: list[str]) -> object:
    """What the command returned. Not by `cli.main`, which makes a reader that leaves (`| head`) a failure; it is used
    where a shell asks for completions."""
    if "_MIDSTREAM_COMPLETE" in os.environ:
        return cli.main(args=argv, prog_name="midstream")
    with cli.make_context("midstream", argv) as context:
        return cli.invoke(context)


def show_error(error: MidstreamError, *, as_json: bool) -> None:
    """The error in words on stderr and, for `--json`, as one line on stdout."""
    from midstream.cli.output import clean, echo_json

    if as_json:
        echo_json({"type": "error", **error.to_wire()})
    click.echo(f"midstream: {clean(str(error))}", err=True)


def main() -> NoReturn:
    """The console script."""
    sys.exit(run(sys.argv[1:]))
