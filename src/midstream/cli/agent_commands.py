"""`midstream agent run|connect|allow|stop`: the agent of this machine; `install|upgrade`: of this one, or of others."""

from __future__ import annotations

import contextlib
import os
import select
import socket as sockets
import sys
import time
from typing import Any

import click

from midstream.cli.install_options import install_options, upgrade_options
from midstream.cli.manpage import ManCommand, config_option, json_option, socket_option
from midstream.cli.output import echo_json
from midstream.cli.places import Places, closed_to_others, places, socket_to_ask
from midstream.cli.words import DURATION
from midstream.core.lease import lease_of
from midstream.deploy.sync_client import ConnectionLost, SyncClient, connect
from midstream.deploy.unreachable import no_agent
from midstream.errors import HostError, MidstreamError

STOP_TIMEOUT_S = 120.0
UPGRADE_TIMEOUT_S = 30.0
LAST_EVENT = 2**62  # follow from here: none of the old ones


@click.group("agent")
def agent() -> None:
    """Run, reach, stop the agent of this machine; install and upgrade those of hosts."""


@agent.command(
    "run",
    cls=ManCommand,
    exits=(0, 1, 2, 4, 70),
    examples="""
    midstream agent run
    midstream agent run --state /tmp/m --socket /tmp/m/agent.sock
    midstream agent run --main web          as PID 1 of a container: exits with that service's status
    """,
)
@click.option("--state", metavar="DIR", default="", help="State folder (default /var/lib/midstream, or XDG's).")
@click.option("--runtime", metavar="DIR", default="", help="Runtime folder (default /run/midstream, XDG's, STATE/run).")
@click.option("--socket", metavar="PATH", default="", help="Control socket (default RUNTIME/agent.sock).")
@click.option("--grants", metavar="DIR", default="", help="Folder of grants (default /etc/midstream/apps.d); for root.")
@click.option("--main", "main_service", metavar="SERVICE", default="", help="Exit when this service does.")
@click.option("--stand-by", is_flag=True, help="Where a keeper runs already, wait for its end (for service managers).")
def run(state: str, runtime: str, socket: str, grants: str, main_service: str, stand_by: bool) -> int:
    """Run keeper and agent in the foreground: this process becomes the keeper. TERM or INT stops all in order.

    Exit code 4: a keeper runs with that state folder already. With --stand-by it is waited for instead, and TERM or INT
    stops that one.
    """
    from midstream.agent.accounts import GRANTS_VARIABLE
    from midstream.cli.private_agent import build_image
    from midstream.cli.programs import keeper_argv

    socket = socket or os.environ.get("MIDSTREAM_SOCKET", "")
    here = places(state=state, runtime=runtime, socket=socket)
    if stand_by:
        from midstream.cli.stand_by import stand_by as wait_for_turn

        if not wait_for_turn(here.state):
            return 0
    image = build_image(here.state)
    if closed := closed_to_others(here.runtime):
        click.echo(
            f"midstream agent: warning: services of other users cannot reach their run folders in {here.runtime}:"
            f" {closed} is closed to them; with --runtime /run/NAME they can",
            err=True,
        )
    extra = ("--main", main_service) if main_service else ()
    argv = keeper_argv(image, here, extra)
    lease_of(os.environ)  # refused here, while somebody looks, and not by an agent that is started again and again
    # Who runs the agent says where its grants are, here alone: a variable that was in the environment says nothing.
    os.environ.pop(GRANTS_VARIABLE, None)
    if grants:
        os.environ[GRANTS_VARIABLE] = os.path.abspath(grants)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], argv)


@agent.command(
    "connect",
    cls=ManCommand,
    exits=(0, 1, 2),
    examples="""
    ssh web1 midstream agent connect
    """,
)
@click.option("--silence", "silence_s", type=DURATION, default=0.0, help="End when the client is mute for so long.")
@socket_option
def connect_(silence_s: float, socket: str) -> int:
    """Copy stdin and stdout to the agent's control socket: over ssh this is the whole remote protocol."""
    from midstream.cli.bridge import bridge, no_agent_line

    path = socket_to_ask(socket)
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as sock:
        try:
            connect(path).close()  # for its patience, and its error messages
            sock.connect(path)
        except (MidstreamError, OSError) as error:
            told = error if isinstance(error, MidstreamError) else no_agent(path, str(error))
            os.write(1, no_agent_line(told))
            raise told from None
        bridge(sock, silence_s)
    return 0


@agent.command(
    "allow",
    cls=ManCommand,
    exits=(0, 1, 2),
    examples="""
    midstream agent allow deploy:shop:/srv/shop
    midstream agent allow deploy:shop:/srv/shop:run-as=www-data:port=80,443
    """,
)
@click.argument("allowance", metavar="USER:APP:PATH[:run-as=USER][:group=GROUP][:port=N][:path=FOLDER][:raise-limits]")
@click.option("--grants", metavar="DIR", default="", help="Folder of grants (default /etc/midstream/apps.d).")
@json_option
def allow(allowance: str, grants: str, as_json: bool) -> int:
    """As root: allow a user to deploy an app to a folder, and what its configuration may ask for beyond his own rights.

    It counts from the app's next deploy on. What was allowed before stays allowed; remove the file to take it back.
    """
    from midstream.agent.accounts import GRANTS_FOLDER
    from midstream.cli.grants import parse_allowance, write_grant

    app, grant = parse_allowance(allowance)
    path = write_grant(app, grant, os.path.abspath(grants or GRANTS_FOLDER))
    if as_json:
        echo_json({"app": app, "grant": path})
    else:
        click.echo(f"{grant.owner} may deploy {app} to {grant.deploy_to}: {path}")
    return 0


@agent.command(
    "stop",
    cls=ManCommand,
    exits=(0, 1, 2, 70),
    examples="""
    midstream agent stop
    midstream agent stop --socket /tmp/m/agent.sock
    """,
)
@click.option("--timeout", "timeout_s", type=DURATION, default=None, help="How long services may take to end.")
@socket_option
@json_option
def stop(timeout_s: float | None, socket: str, as_json: bool) -> int:
    """Stop all services in order, then agent and keeper. Returns when the keeper is gone."""
    path = socket_to_ask(socket)
    with connect(path) as client:
        keeper = int(client.hello["keeper"].get("pid") or 0)
        pidfd = _pidfd(keeper)
        try:
            _ask_to_stop(client, {} if timeout_s is None else {"timeout_s": timeout_s})
            gone = _wait_for(pidfd, STOP_TIMEOUT_S + (timeout_s or 0.0))
        finally:
            if pidfd is not None:
                os.close(pidfd)
    if not gone:
        raise HostError(
            f"the keeper (pid {keeper}) has not ended yet",
            where=path,
            remedy="`midstream status` tells what still runs, if the agent answers",
        )
    if as_json:
        echo_json({"stopped": True, "keeper": keeper})
    else:
        click.echo("stopped")
    return 0


def _ask_to_stop(client: SyncClient, params: dict[str, Any]) -> None:
    try:
        client.call("agent.stop", **params)
    except ConnectionLost:  # it ended before it could answer, which is what was asked
        return


def _pidfd(pid: int) -> int | None:
    if not pid:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # another pid namespace, or gone already
        return None


def _wait_for(pidfd: int | None, timeout_s: float) -> bool:
    if pidfd is None:
        return True
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


@agent.command(
    "install",
    cls=ManCommand,
    exits=(0, 1, 2, 4, 5, 70),
    examples="""
    midstream agent install web1 web2 --user root
    midstream agent install deploy@web1 --allow deploy:shop:/srv/shop:port=80     by sudo, where he may without password
    midstream agent install deploy@web1 --rootless
    """,
)
@click.argument("hosts", nargs=-1, required=True, metavar="HOST...")
@install_options
@json_option
def install(hosts: tuple[str, ...], how: Any, as_json: bool) -> int:
    """Put Midstream on hosts over ssh, have it started at boot, start it, and see that it answers.

    The hosts need sshd and Python 3.11 or newer, nothing else. What is there already is left as it is; where an agent of
    another version runs, it is upgraded under its services. HOST is what ssh takes: user@host, a name of ssh_config,
    ssh://user@host:port.
    """
    from midstream.cli import installing
    from midstream.deploy.install.request import INSTALL

    return installing.install(installing.goals(hosts, how), INSTALL, how, as_json=as_json)


@agent.command(
    "upgrade",
    cls=ManCommand,
    exits=(0, 1, 2, 4, 5, 70),
    examples="""
    midstream agent upgrade                    this machine's, after a new version of this command was installed
    midstream agent upgrade production         all hosts of the stage
    midstream agent upgrade web1 --user root
    """,
)
@click.argument("where", nargs=-1, metavar="[STAGE|HOST...]")
@upgrade_options
@config_option
@socket_option
@json_option
def upgrade(where: tuple[str, ...], how: Any, config_path: str, socket: str, as_json: bool) -> int:
    """Bring agent and keeper to the version of this command, under the running services: on this machine, or over ssh on
    hosts where `agent install` or `setup` put them. When the new version does not come up, the old one goes on."""
    if not where:
        return _upgrade_here(socket, as_json)
    from midstream.cli import installing
    from midstream.deploy.install.request import UPGRADE

    goals = installing.goals_of_words(where, how, config_path)
    return installing.install(goals, UPGRADE, how, as_json=as_json)


def _upgrade_here(socket: str, as_json: bool) -> int:
    import midstream
    from midstream.cli.private_agent import build_image
    from midstream.cli.programs import agent_argv

    path = socket_to_ask(socket)
    with connect(path) as client:
        hello = client.hello
        state = str(hello["state_dir"])
        runtime = str(hello["runtime_dir"])
        argv = agent_argv(Places(state, runtime, path))
        before = str(hello.get("version"))
        _ask_to_upgrade(client, argv, build_image(state))
    after = _next_agent(path, int(hello["pid"]))
    if as_json:
        echo_json({"before": before, "after": after.get("version"), "pid": after.get("pid"), "keeper": after["keeper"]})
    else:
        version = midstream.__version__
        click.echo(f"agent {before} -> {after.get('version')} (pid {after.get('pid')}); this command is {version}")
    return 0


def _next_agent(path: str, old_pid: int) -> dict[str, Any]:
    """The hello of the agent that comes after `old_pid`. Raises HostError when none does."""
    deadline = time.monotonic() + UPGRADE_TIMEOUT_S
    while time.monotonic() < deadline:
        with connect(path, give_up_s=UPGRADE_TIMEOUT_S) as client:
            if client.hello.get("pid") != old_pid:
                return client.hello
            with contextlib.suppress(ConnectionLost):  # waits until the old one hangs up
                client.call("events", follow=True, after=LAST_EVENT)
    raise HostError(
        f"the old agent (pid {old_pid}) is still there after {UPGRADE_TIMEOUT_S:g} s",
        where=path,
        serving="the services, untouched",
        remedy="see its log; midstream agent upgrade may be repeated",
    )


def _ask_to_upgrade(client: SyncClient, argv: list[str], image: str) -> None:
    try:
        client.call("agent.upgrade", argv=argv, keeper_image=image)
    except ConnectionLost:  # the old agent ended before it could answer
        return
