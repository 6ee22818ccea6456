"""`midstream demo`: the command. What it does is told in `story.py`; what it needs is imported when it is called."""

from __future__ import annotations

import sys

import click

from midstream.cli.manpage import command, json_option


@command(
    "demo",
    exits=(0, 1, 2, 70, 130),
    examples="""
    midstream demo
    midstream demo --quick               a small server in place of Django: nothing is downloaded, half a minute
    midstream demo --keep                look around in the folder afterwards
    midstream demo --picture latency.html
    midstream demo --json | tail -n 1
    """,
)
@click.option("--quick", is_flag=True, help="Deploy a small server that needs no package in place of Django.")
@click.option("--keep", is_flag=True, help="Leave the temporary folder (project, releases, logs) where it is.")
@click.option(
    "--picture", metavar="FILE", default="", help="Where to write the picture (default: a new temporary file)."
)
@click.option(
    "--open/--no-open", "show", default=None, help="Open the picture in a browser (default: if there is a display)."
)
@click.option("--seed", type=int, default=None, help="For the moments at which processes are killed.")
@click.option("--traffic", hidden=True, default="")
@json_option
def demo(
    quick: bool, keep: bool, picture: str, show: bool | None, seed: int | None, traffic: str, as_json: bool
) -> int:
    """See it work: a project is deployed under load, in a temporary folder, while processes are killed.

    A git repository with a Django project and a job worker is made, and a private agent is started; neither needs root.
    Release 1 is deployed, clients begin to ask for pages, and the worker is killed at random moments. Releases 2 and 3
    take over, the agent is killed in the middle; then come a release that does not boot and one that answers 500, and a
    rollback. In the end a table tells what was lost (nothing), and a picture shows the latency over time.

    Exit code 1: a request failed, a process ran code that was not committed, or a deploy ended otherwise than meant.
    """
    if traffic:
        from midstream.cli.demo import traffic as program

        return program.main([traffic])
    from midstream.cli.demo.run import Options, run

    return run(Options(quick, keep, picture, show, seed, as_json, sys.stdout.isatty()))
