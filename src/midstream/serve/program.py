"""`midstream serve`: reads what is asked for and becomes the program that does it.

Standalone it becomes the master, started anew with `-I` so that no variable or file of the app's can reach into it; under
Midstream's agent it is the zygote itself, for the agent decides what else a master would. What must not live here: what
master and zygote do. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence

import midstream
from midstream.errors import EXIT_BUG, EXIT_OK, HostError, MidstreamError, OperatorError
from midstream.serve import log_output, options
from midstream.serve.account import run_as
from midstream.serve.options import Action, Invocation
from midstream.serve.settings import Settings


def main(argv: Sequence[str]) -> int:
    """argv: what stands behind `serve`. The exit code; every error is told here and nowhere else."""
    try:
        return _run(list(argv))
    except MidstreamError as error:
        if "--json" in argv:
            print(json.dumps({"type": "error", **error.to_wire()}))
        print(f"midstream serve: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as leaving:  # --help, --version
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return 130
    except Exception:
        import traceback

        traceback.print_exc()
        print("midstream serve: this is a bug of Midstream; please report it with the lines above", file=sys.stderr)
        return EXIT_BUG


def _run(argv: list[str]) -> int:
    environment = dict(os.environ)
    folder = options.start_folder(environment)
    invocation = options.read(argv, environment, folder)
    if invocation.action is Action.PRINT:
        print(options.as_toml(invocation), end="")
        return EXIT_OK
    if invocation.action is Action.CHECK:
        from midstream.serve import check

        return check.run(invocation)
    if invocation.action is Action.ASK:
        from midstream.serve import ask

        return ask.run(invocation)
    return _serve(argv, invocation, environment, folder)


def _serve(argv: list[str], invocation: Invocation, environment: Mapping[str, str], folder: str) -> int:
    settings = invocation.settings
    if is_under_agent(environment):
        _tell(invocation)
        _refuse_under_agent(settings)
        from midstream.serve import zygote_alone

        return zygote_alone.run_alone(settings)
    if not sys.flags.isolated:
        os.execv(sys.executable, [sys.executable, *isolated_start(), "serve", *argv])
    _tell(invocation)
    make_logs(settings)
    if settings.reload:
        from midstream.serve import watching

        watching.start(settings)
    from midstream.serve import master

    return master.run(settings, lambda: options.read(argv, environment, folder).settings)


def is_under_agent(environment: Mapping[str, str]) -> bool:
    """Whether Midstream's agent started this process as an instance of a service."""
    return bool(environment.get("MIDSTREAM_GENERATION") and environment.get("MIDSTREAM_RELEASE"))


def isolated_start() -> list[str]:
    """Arguments for an interpreter that run this very copy of Midstream with -I, wherever it lies."""
    loader = getattr(midstream, "__loader__", None)
    archive = getattr(loader, "archive", "")  # midstream.pyz
    return ["-I", archive or os.path.dirname(os.path.abspath(midstream.__file__))]


def _tell(invocation: Invocation) -> None:
    for note in invocation.notes:
        print(f"midstream serve: note: {note}", file=sys.stderr, flush=True)


def _refuse_under_agent(settings: Settings) -> None:
    if settings.reload:
        raise OperatorError(
            "--reload restarts behind the agent's back, half-way through a checkout",
            remedy="leave it out of the service's command; it is for development",
        )
    if settings.user or settings.group:
        raise OperatorError(
            "--user and --group are the agent's to set", remedy="write user = … into the service in midstream.toml"
        )


def make_logs(settings: Settings) -> None:
    """As root, for a user that may not make them himself. Raises HostError."""
    if os.geteuid() != 0 or not settings.user:
        return
    account = run_as(settings)
    for path in (settings.access_log, settings.error_log):
        if path in ("", "-"):
            continue
        try:
            log_output.make_for(path, account.uid or 0, account.gid or 0)
        except OSError as error:
            raise HostError(f"{path} cannot be made: {error.strerror}", remedy="make its folder") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
