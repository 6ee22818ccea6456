"""`midstream notify`: who is told of deploys, and whether it arrives."""

from __future__ import annotations

import click

from midstream.cli.manpage import command, config_option, json_option
from midstream.cli.output import echo_json
from midstream.core.config_tables import SecretSource
from midstream.errors import HostError


@command(
    "notify",
    exits=(0, 1, 2, 70),
    examples="""
    midstream notify                     who is told, and when
    midstream notify production --test   send a test to all of them
    """,
)
@click.argument("stage", required=False)
@click.option("--test", "is_test", is_flag=True, help="Send a test message to each address.")
@config_option
@json_option
def notify(stage: str | None, is_test: bool, config_path: str, as_json: bool) -> int:
    """Show who is told of deploys of STAGE (`[notify]` in midstream.toml), and try it.

    Addresses are shown by number, scheme and source alone: most have a token in them.
    """
    from midstream.cli import project
    from midstream.cli.deploy_run import operator_name
    from midstream.deploy import notify as telling

    file = project.open_file(config_path)
    chosen = file.load(profiles=project.profile_names()).stage(stage)
    table = chosen.notify
    rows = [(number, _shown(one)) for number, one in enumerate(table.urls)]
    if as_json:
        echo_json({"urls": [row for _, row in rows], "on": list(table.on)})
    elif not rows:
        click.echo(f"nobody is told of deploys of {chosen.app.app} ({chosen.name}): [notify] has no urls")
    else:
        click.echo("\n".join([f"told on {', '.join(table.on)}:", *(f"  notify.urls[{n}]: {row}" for n, row in rows)]))
    if not is_test or not rows:
        return 0
    troubles: list[str] = []
    notifier = telling.Notifier(telling.read_urls(table, file.folder), troubles.append)
    notifier.tell(telling.trial(chosen.app.app, chosen.name, operator_name()))
    notifier.close(30.0)
    if troubles:
        raise HostError(
            f"{len(troubles)} of {len(rows)} did not accept the test",
            where="[notify]",
            detail="\n".join(troubles),
            serving="unchanged: a notification never stops a deploy",
            remedy="correct `urls`; https://github.com/caronc/apprise/wiki has the form of each",
        )
    if not as_json:
        click.echo("accepted by all")
    return 0


def _shown(one: str | SecretSource) -> str:
    if isinstance(one, str):
        return f"{one.partition('://')[0]}://…"
    if one.file:
        return f"from the file {one.file}"
    return f"from the variable {one.env}" if one.env else f"from `{one.command[0]}`"
