"""`midstream quiet`: a worker begins no further job for a while. It always ends: by hand, or by itself."""

from __future__ import annotations

from typing import Any

import click

from midstream.cli.aim import only_app, take_aim
from midstream.cli.ask import services_here
from midstream.cli.hosts import Only, host_options
from midstream.cli.manpage import app_option, command, config_option, json_option, socket_option
from midstream.cli.output import echo_json, span
from midstream.cli.words import DURATION
from midstream.deploy.sync_client import SyncClient
from midstream.errors import OperatorError


@command(
    "quiet",
    examples="""
    midstream quiet jobs --for 10m --reason "Redis is being moved"
    midstream quiet jobs --end
    """,
)
@click.argument("words", metavar="[STAGE] SERVICE", nargs=-1, required=True)
@click.option("--for", "ttl_s", type=DURATION, default="15m", show_default=True, help="When it ends by itself.")
@click.option("--reason", metavar="TEXT", default="", help="Why; `status` shows it.")
@click.option("--end", is_flag=True, help="End it now.")
@host_options
@app_option
@config_option
@socket_option
@json_option
def quiet(
    words: tuple[str, ...],
    ttl_s: float,
    reason: str,
    end: bool,
    only: Only,
    app: str,
    config_path: str,
    socket: str,
    as_json: bool,
) -> int:
    """Let the workers of SERVICE begin no further job for a while; those in hand go on.

    When this returns, the job library itself says that each worker is quiet. A quiet worker cannot be woken: when the
    time is over, or with `--end`, a fresh generation of the same release takes its place, and the quiet one finishes
    what it has in hand. So nothing stays quiet for good.
    """
    from midstream.cli.deploy_run import operator_name

    aim = take_aim(words, config=config_path, app=app, socket_path=socket, only=only)
    if len(aim.services) != 1:
        raise OperatorError("quiet which service?", remedy="midstream quiet SERVICE: one at a time")
    service = aim.services[0]

    def ask(client: SyncClient, host: str) -> dict[str, Any]:
        name = only_app(client, aim.app)
        services_here(client, name, aim.services, several=aim.several)
        return client.call(
            "quiet", app=name, service=service, owner=operator_name(), ttl_s=ttl_s, reason=reason, end=end
        )

    answers = aim.ask(ask)
    aim.require_somebody(answers)
    for host, answer in answers.good():
        on = f" on {host}" if aim.several else ""
        if as_json:
            echo_json({"host": host, **answer} if aim.several else answer)
        elif end:
            click.echo(f"{service} fetches again{on}, from fresh processes")
        else:
            jobs = f", {answer['jobs']} jobs go on" if answer["jobs"] else ""
            tail = f"`midstream quiet {service} --end` ends it earlier"
            click.echo(f"{service} is quiet{on} for {span(ttl_s)}{jobs}; {tail}")
    return answers.conclude(as_json)
