"""Every key of `midstream.toml`: its name, the spec's field it sets, its reader, what it means.

Pure. The one place where a key is declared: reading, the messages about unknown keys and docs/configuration.md are
all drawn from these tables, and a test holds them against the fields of `core/spec.py`. What spans several keys (ports
taken twice, roles that no host has) is in `core/config_checks.py`; files, stages and lines are `core/config.py`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

from midstream.core import config_forms as form
from midstream.core import config_values as read
from midstream.core.config_mistakes import Misfit, nearest, shown
from midstream.core.config_tables import (
    NAME_KEY,
    NOTIFY_ON,
    BuildTable,
    HookTable,
    Key,
    MigrateTable,
    NotifyTable,
    SecretSource,
    StageTable,
    Table,
    reader_of,
    shell_lines,
    short_or_table,
)
from midstream.core.config_values import Reader
from midstream.core.instance import THROWAWAY_SLOT
from midstream.core.spec import (
    AppSpec,
    BackoffSpec,
    CommandStep,
    EnvSpec,
    HandoverPolicy,
    HealthSpec,
    HoldSpec,
    HookSpec,
    HostSpec,
    LimitsSpec,
    ListenSpec,
    LogSpec,
    MigrateSpec,
    Readiness,
    ServiceSpec,
    Source,
)


def _unknown_key(table: Table, key: str) -> str:
    own = [*(one.name for one in table.keys if one.name != NAME_KEY), *table.also]
    meant = LIKELY.get((table.kind, key)) or nearest(key, own, 0.8)
    others = [other.place for other in TABLES if any(one.name == key for one in other.keys)]
    if meant is None and others:
        return f'unknown key here; "{key}" belongs in {" or ".join(dict.fromkeys(others))}'
    meant = meant or nearest(key, own)
    if meant is not None:
        return f'unknown key; did you mean "{meant}"?'
    return f"unknown key; known are {', '.join(own)}"


_reader = partial(reader_of, advice=_unknown_key)


def _commands(value: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(value, list):
        return (form.command(value),)
    if not value:
        raise Misfit("expected a command or several, got an empty list")
    return tuple(read.list_of(form.command)(value))


commands = Reader(
    _commands, "a command line, or a list of them (each a string or a list of words)", "a command, or a list of them"
)


def _env(value: Any) -> EnvSpec:
    if not isinstance(value, dict):
        raise Misfit(f"expected a table, got {shown(value)}")
    several = (
        (("path",), read.one_or_list_of(form.search_entry), value.get("path", [])),
        (("files",), read.one_or_list_of(form.inside), value.get("files", [])),
        ((), read.table_of(read.variable, read.variable_value, ("path", "files")), value),
    )
    path, files, variables = read.gather(several)
    return EnvSpec(path, variables, files)


env = Reader(_env, "a table of variables")

_ROLES = read.one_or_list_of(read.name)
_STEP_KEYS = (
    Key("run", "run", commands, "The command line, or several, one after the other. The first that fails ends it."),
    Key("shell", "shell", read.flag, "Each line is given to `/bin/sh -c` as it is."),
    Key("timeout", "timeout_s", read.some_duration, "How long each command may take."),
    Key("env", "env", read.variables, "Further variables for these commands."),
)

LISTEN = Table(
    ListenSpec,
    "[[services.NAME.listen]]",
    "A listening socket. It belongs to the service: the keeper binds it once and holds it, processes come and go. A "
    'string is short for `{ address = "…" }`.',
    (
        Key("address", "address", form.listen_address, "`localhost` is 127.0.0.1. Of the placeholders `{shared}` and "
            "`{deploy_to}` may be used."),
        Key("name", "name", read.name, "For `{fd:NAME}` and LISTEN_FDNAMES.", "`web` for the first, then `listen1`, …"),
        Key("backlog", "backlog", read.whole(1, 65535), "The queue of connections nobody has accepted yet."),
        Key("mode", "mode", read.mode, "Permissions of a unix socket.", "by the umask"),
        Key("owner", "owner", read.owner, "Owner of a unix socket.", "the app's user"),
    ),
)  # fmt: skip
_LISTEN = short_or_table(
    lambda value: ListenSpec(form.listen_address(value)), _reader(LISTEN), form.listen_address.expected
)

HEALTH = Table(
    HealthSpec,
    "[services.NAME.health]",
    'One check; exactly one of `http`, `tcp` and `command`. `health = "/up"` is short for `{ http = "/up" }`. It must '
    "be answered by the new generation before the old one is touched.",
    (
        Key("http", "http", form.http_path, "The path to ask for."),
        Key("tcp", "tcp", read.flag, "A connection is accepted."),
        Key("command", "command", form.command, "Runs in the release; exit code 0 is healthy."),
        Key("host", "host", form.host_header, "The Host header, as Django's ALLOWED_HOSTS wants it.",
            "the listener's address"),
        Key("method", "method", form.http_method, "The HTTP method."),
        Key("headers", "headers", form.headers, "Further headers, such as `X-Forwarded-Proto`."),
        Key("status", "status", read.one_or_list_of(read.whole(100, 599)), "The statuses that are healthy.", "any 2xx"),
        Key("contains", "contains", read.text, "Text that the body must contain."),
        Key("timeout", "timeout_s", read.some_duration, "For one check."),
        Key("interval", "interval_s", read.duration, "Also check this often while running; 0 only in a handover."),
        Key("failures", "failures", read.whole(1), "Failed checks in a row, while running, before a restart."),
        Key("listener", "listener", read.name, "The listener to ask.", "the first"),
    ),
)  # fmt: skip
_HEALTH_TABLE = short_or_table(
    lambda value: HealthSpec(http=form.http_path(value)), _reader(HEALTH), form.http_path.expected
)


def _health(value: Any) -> HealthSpec:
    check: HealthSpec = _HEALTH_TABLE(value)
    if (bool(check.http), check.tcp, bool(check.command)).count(True) != 1:
        raise Misfit('expected exactly one of "http", "tcp" and "command"')
    return check


_HEALTH = Reader(_health, _HEALTH_TABLE.expected)

LIMITS = Table(
    LimitsSpec,
    "[services.NAME.limits]",
    "What an instance may use.",
    (
        Key("rlimits", "rlimits", form.rlimits, "Limits of setrlimit(2) by name: `{ nofile = 65536, core = 0 }`; one "
            'value or `[soft, hard]`, `"unlimited"` for none. Raising a hard limit needs root, and a grant.'),
        Key("memory", "memory_bytes", read.size, "Resident memory of an instance and its children above which it is "
            "restarted.", "none"),
        Key("no_new_privileges", "no_new_privileges", read.flag, "No setuid program gains rights below it."),
        Key("nice", "nice", read.whole(-20, 19),
            "Priority; below 0 needs root.", "the keeper's"),
        Key("umask", "umask", read.mode, 'As in `"0027"`.', "the keeper's"),
    ),
)  # fmt: skip

LOG = Table(
    LogSpec,
    "[services.NAME.log]",
    "Where the output of a service goes. The file is rotated by size and by age.",
    (
        Key("path", "path", form.log_path, "A file of its own.", "`APP/SERVICE.log` in the agent's log folder"),
        Key("max_size", "max_size_bytes", read.size, "Rotated when it is larger."),
        Key("max_age", "max_age_s", read.some_duration, "Rotated when it is older."),
        Key("keep", "keep", read.whole(0, 10000), "Rotated files that are kept."),
        Key("timestamps", "timestamps", read.flag, "Put the time in front of each line."),
    ),
)

BACKOFF = Table(
    BackoffSpec,
    "[services.NAME.backoff]",
    "The pauses before restarts after crashes. A committed generation is never given up on.",
    (
        Key("first", "first_s", read.duration, "Before the first restart."),
        Key("second", "second_s", read.duration, "Before the second; from here on it grows."),
        Key("max", "max_s", read.some_duration, "The longest pause."),
        Key("factor", "factor", read.number(1, 100), "By how much it grows each time."),
        Key("jitter", "jitter", read.number(0, 1), "By which part it varies, so that hosts do not restart in step."),
        Key("reset_after", "reset_after_s", read.duration, "Time of good health after which it begins anew."),
    ),
)

SERVICE = Table(
    ServiceSpec,
    "[services.NAME]",
    "One kind of process of the app.",
    (
        Key(NAME_KEY, "name", read.name, ""),
        Key("command", "command", form.command, "What to run, in the release. Placeholders are filled in, see below."),
        Key("shell", "shell", read.flag, "Give `command` to `/bin/sh -c`; begin it with `exec`, or signals end at the "
            "shell."),
        Key("profile", "profile", read.name, "What is known of the server: how it takes a listener, drains, stops.",
            "recognised from the command"),
        Key("instances", "instances", read.whole(0, THROWAWAY_SLOT), "How many processes; they differ in `{slot}`."),
        Key("listen", "listen", read.one_or_list_of(_LISTEN), "Its listening sockets: a string, or a list of strings "
            "and tables."),
        Key("roles", "roles", _ROLES, "It runs on hosts with one of these roles.", "every host"),
        Key("health", "health", _HEALTH, "How to tell that it works.", "none"),
        Key("ready", "ready", read.choice(Readiness), "How an instance says that it is ready: sd_notify, a newline on "
            "`{ready_fd}`, its health check, its process tree holds the listeners, it stays alive.",
            "the profile's, else `health` if there is one, `listening`, `alive`"),
        Key("handover", "handover", read.choice(HandoverPolicy), "How it is replaced: `overlap` new proven, then old "
            "drained; `drain` for workers: old fetches no more, new fetches, old finishes; `replace` old stopped, then "
            "new started.", "the profile's"),
        Key("soak", "soak_s", read.duration, "Time between proven and committed in which a crash still brings the old "
            "generation back."),
        Key("min_healthy_time", "min_healthy_s", read.duration, "How long ready and healthy must last to count."),
        Key("start_timeout", "start_timeout_s", read.some_duration, "From its start until it is ready."),
        Key("healthy_deadline", "healthy_timeout_s", read.some_duration, "From ready until the health check is "
            "answered."),
        Key("min_uptime", "min_uptime_s", read.duration, 'For `ready = "alive"`: how long it must have run.'),
        Key("drain_timeout", "drain_timeout_s", read.duration, "How long the old generation may finish what it "
            "accepted."),
        Key("stop_timeout", "stop_timeout_s", read.duration, "From the stop signal until its whole process tree is "
            "killed."),
        Key("stop_signal", "stop_signal", read.signal, "The signal that asks it to stop.", "the profile's"),
        Key("reload_signal", "reload_signal", read.signal, "The signal for `midstream reload`.", "the profile's"),
        Key("surge", "surge", read.whole(0, THROWAWAY_SLOT), "How many instances boot at a time in a handover, for "
            "small machines; 0 all. The old ones stay until the commit."),
        Key("max_draining", "max_draining", read.whole(1, 100), "Old generations that may drain at a time."),
        Key("watchdog", "watchdog_s", read.duration, "WATCHDOG=1 must come within this time, else it is restarted; 0 "
            "none."),
        Key("redis", "redis", read.text, "Of a worker: `redis://[USER:PASSWORD@]HOST[:PORT][/DB]` or `unix:///PATH[?db=N]`, "
            "where its job library keeps its jobs. The agent asks there whether it is quiet.",
            "from its command, `REDIS_URL`, else `redis://localhost:6379/0`"),
        Key("env", "env", env, "Variables for this service alone; see `[env]`."),
        Key("user", "user", read.user, "Who it runs as; needs root, and a grant.", "the app's user"),
        Key("group", "group", read.user, "Its group.", "the user's"),
        Key("groups", "groups", read.list_of(read.user), "Its further groups.", "the user's"),
        Key("cwd", "cwd", form.below, "Its folder inside the "
            "release.", "the release"),
        Key("limits", "limits", _reader(LIMITS), "See `[services.NAME.limits]`."),
        Key("log", "log", _reader(LOG), "See `[services.NAME.log]`."),
        Key("backoff", "backoff", _reader(BACKOFF), "See `[services.NAME.backoff]`."),
        Key("restart_on", "restart_on", read.choice(("always", "failure", "never")), "`failure`: an exit code that is "
            "not in `ok_codes`, or a signal."),
        Key("ok_codes", "ok_codes", read.one_or_list_of(read.whole(0, 255)), "Exit codes that are no failure."),
        Key("autostart", "autostart", read.flag, "Start it with the agent and at the first deploy."),
        Key("depends_on", "depends_on", read.one_or_list_of(read.name), "Services that are started before it."),
    ),
    prepare=shell_lines("command"),
)  # fmt: skip

BUILD = Table(
    BuildTable,
    "[[build]]",
    'A build step, run in the new release before anything is switched. `build = "make"` and '
    '`build = ["make", "make docs"]` are short forms.',
    (
        *_STEP_KEYS,
        Key("on", "on", read.choice(("each", "once", "deployer")), "On each host; once, on the first host of its roles; "
            "or in a clean checkout on the machine that deploys."),
        Key("files", "files", read.one_or_list_of(form.inside), "What a build that is not made on each host is for: the "
            "files and folders that are carried to the other hosts of its roles."),
        Key("roles", "roles", _ROLES, "Only on hosts with one of these roles.", "every host"),
        Key("name", "name", read.name, "For messages, and for hooks (`deploy:build`).", "none"),
    ),
    prepare=shell_lines("run"),
)  # fmt: skip

MIGRATE = Table(
    MigrateTable,
    "[migrate]",
    'The migration: run once in each deploy, on the first host of its role. `migrate = "COMMAND"` is short.',
    (
        *_STEP_KEYS,
        Key("role", "role", read.name, "It runs on the first host with this role."),
        Key("reversible", "reversible", read.flag, "`false` refuses the way back, automatic or by hand: old code "
            "cannot work with the new schema."),
        Key("rerun", "rerun", read.flag, "It may be run again when its end is unknown."),
    ),
    prepare=shell_lines("run"),
)  # fmt: skip

HOOK = Table(
    HookTable,
    "[[hooks]]",
    "A command at a point of the deploy; exactly one of `before` and `after`.",
    (
        Key("before", "before", read.point, "The point it runs before."),
        Key("after", "after", read.point, "The point it runs after; after a phase means that it ended on all hosts."),
        *_STEP_KEYS,
        Key("undo", "undo", form.command, "Runs in every way of failing once `run` has begun."),
        Key("on", "on", read.choice(("each", "primary")), "On each host of its roles, or on the first one only."),
        Key("roles", "roles", _ROLES, "Only on hosts with one of these roles.", "every host"),
        Key("name", "name", read.name, "For messages.", "none"),
    ),
    prepare=shell_lines("run", "undo"),
)

HOLD = Table(
    HoldSpec,
    "[[holds]]",
    "A span of the deploy in which another supervisor leaves its service alone. It ends by itself when the deployer is "
    "gone.",
    (
        Key("supervisor", "supervisor", read.choice(sorted(read.SUPERVISORS)), "Who owns the service."),
        Key("service", "service", read.line, "What the supervisor calls it."),
        Key("from", "start", read.moment, 'Such as "after check".'),
        Key("to", "end", read.moment, 'Such as "after finishing".'),
        Key("ttl", "ttl_s", read.some_duration, "It ends after this time whatever happens."),
        Key("control", "control", read.line, "The supervisor's control file, an absolute path.", "what it finds itself"),
        Key("restart", "restart", read.flag, "The agent moves `current` and restarts the service through its "
            "supervisor, within the handover, and back when the deploy fails. `false`: a hook of yours does."),
        Key("quiet", "quiet", read.signal, 'A signal after which a worker fetches no more jobs (Sidekiq: "TSTP"), sent '
            "before it is restarted.", "none"),
        Key("quiet_timeout", "quiet_timeout_s", read.duration, "How long its jobs in hand may take after `quiet`."),
        Key("min_uptime", "min_uptime_s", read.duration, "How long the restarted process must stay up to count."),
        Key("roles", "roles", _ROLES, "Only on hosts with one of these roles.", "every host"),
    ),
)  # fmt: skip

HOST = Table(
    HostSpec,
    "[[stages.NAME.hosts]]",
    'A host of a stage. A string is short for `{ address = "…" }`.',
    (
        Key("address", "address", read.address, "What ssh takes; `localhost` is this machine."),
        Key("roles", "roles", _ROLES, "What it is for.", "every role"),
        Key("env", "env", read.variables, "Variables for everything on this host. They win over those of services."),
    ),
)

SECRET = Table(
    SecretSource,
    "[secrets]",
    "One secret, by the name of its variable. It is read on the deployer, sent on stdin, kept with mode 0600 and never "
    "printed. Exactly one of:",
    (
        Key("file", "file", read.line, "A file; one newline at its end is dropped. `~` is the home folder, a relative "
            "path begins at `midstream.toml`."),
        Key("env", "env", read.variable, "A variable of the deployer's environment."),
        Key("command", "command", form.command, "A command; its output, without one newline at its end."),
    ),
)  # fmt: skip


ENV = Table(
    EnvSpec,
    "[env]",
    "The environment of builds, migrations, hooks, services and `midstream exec`. Placeholders `{shared}`, "
    "`{deploy_to}`, `{release}` and `{run}` are filled in.",
    (
        Key("path", "path", read.one_or_list_of(form.search_entry), "Folders put in front of PATH, relative ones "
            "inside the release."),
        Key("files", "files", read.one_or_list_of(form.inside), "Files of `KEY=value` lines inside the release, "
            "read at each start."),
    ),
    free="Every other key is a variable.",
)  # fmt: skip

# readers of whole sections


def _steps(
    table: BuildTable | MigrateTable | HookTable, on: str, roles: tuple[str, ...], name: str
) -> list[CommandStep]:
    return [
        CommandStep(run, table.shell, table.timeout_s, table.env, on=on, roles=roles, name=name) for run in table.run
    ]


_BUILD = short_or_table(lambda value: BuildTable((form.command(value),)), _reader(BUILD), form.command.expected)


def _build_checked(value: Any) -> BuildTable:
    table: BuildTable = _BUILD(value)
    if table.on == "each" and table.files:
        raise Misfit(
            'a build on each host carries nothing; `files` goes with on = "once" and on = "deployer"', ("files",)
        )
    if table.on != "each" and not table.files:
        raise Misfit(
            f'with on = "{table.on}" it must be said what is carried to the other hosts: files = ["public/assets"]',
            ("files",),
            missing=True,
        )
    return table


_BUILD_CHECKED = Reader(_build_checked, _BUILD.expected)


def _build(value: Any) -> tuple[CommandStep, ...]:
    tables = read.list_of(_BUILD_CHECKED)(value) if isinstance(value, list) else (_BUILD_CHECKED(value),)
    steps: list[CommandStep] = []
    for number, table in enumerate(tables, start=1):
        own = _steps(table, table.on, table.roles, table.name)
        if table.on != "each":
            own = [dataclasses.replace(step, number=number) for step in own]
            own[-1] = dataclasses.replace(own[-1], files=table.files)  # carried once all its commands are done
        steps += own
    return tuple(steps)


_MIGRATE = short_or_table(lambda value: MigrateTable(_commands(value)), _reader(MIGRATE), commands.expected)


def _migrate(value: Any) -> MigrateSpec:
    table = _MIGRATE(value)
    return MigrateSpec(tuple(_steps(table, "each", (), "")), table.role, table.reversible, table.rerun)


_HOOK = _reader(HOOK)


def _hook(value: Any) -> list[HookSpec]:
    table = _HOOK(value)
    if bool(table.before) == bool(table.after):
        raise Misfit('expected exactly one of "before" and "after"')
    when, point = ("before", table.before) if table.before else ("after", table.after)
    undo = CommandStep(table.undo, table.shell, table.timeout_s, table.env) if table.undo else None
    steps = _steps(table, table.on, table.roles, table.name)
    # the first carries the undo: it counts from the moment the hook began, and runs once
    return [HookSpec(when, point, step, undo if index == 0 else None) for index, step in enumerate(steps)]


def _hooks(value: Any) -> tuple[HookSpec, ...]:
    found = [hook for hooks in read.list_of(Reader(_hook, "a table"))(value) for hook in hooks]
    return tuple(dataclasses.replace(hook, number=number) for number, hook in enumerate(found))


_SERVICE = _reader(SERVICE)


def _service(value: Any, name: str) -> ServiceSpec:
    if not isinstance(value, dict):
        raise Misfit(f"expected a table, got {shown(value)}")
    service: ServiceSpec = _SERVICE({**value, NAME_KEY: name})
    return dataclasses.replace(service, listen=_named(service.listen))


def _named(listeners: Iterable[ListenSpec]) -> tuple[ListenSpec, ...]:
    return tuple(
        one if one.name else dataclasses.replace(one, name=f"listen{index}" if index else "web")
        for index, one in enumerate(listeners)
    )


def _service_reader(name: str) -> Reader:
    return Reader(lambda value: _service(value, name), "a table")


def _services(value: Any) -> dict[str, ServiceSpec]:
    if not isinstance(value, dict):
        raise Misfit(f"expected a table, got {shown(value)}")
    read.gather(((name,), read.name, name) for name in value)
    services = read.gather(((name,), _service_reader(name), table) for name, table in value.items())
    return dict(zip(value, services, strict=True))


APP = Table(
    AppSpec,
    "the top of the file",
    "What is deployed, and how.",
    (
        Key("app", "app", read.name, "The app's name.", "the name of the folder"),
        Key("repository", "repository", read.repository, "A URL or a path that git takes.",
            "the git repository of the folder"),
        Key("branch", "branch", read.branch, "What is deployed when the command names nothing.",
            "`main`; `master` where the default repository has that and no `main`"),
        Key("deploy_to", "deploy_to", form.deploy_to, "The app's folder on its hosts.",
            "`/srv/APP`; on this machine without root `~/.local/share/midstream/apps/APP`"),
        Key("source", "source", read.choice(Source), "`push`: the deployer sends the commits, hosts need no keys; "
            "`fetch`: hosts fetch from the repository."),
        Key("repo_tree", "repo_tree", form.below, "Deploy only this folder of the repository.",
            "the folder of `midstream.toml` inside the default repository"),
        Key("submodules", "submodules", read.flag, "Check out git submodules too."),
        Key("keep_releases", "keep_releases", read.whole(1, 1000), "Releases that are kept, beside those in use."),
        Key("linked_dirs", "linked_dirs", read.list_of(form.inside), "Folders that live in `shared` and are linked "
            "into every release."),
        Key("linked_files", "linked_files", read.list_of(form.inside), "Files likewise; they must exist before a "
            "deploy."),
        Key("user", "user", read.user, "Who owns and builds the app.", "the owner of `deploy_to`, or the deployer"),
        Key("env", "env", env, "See `[env]`."),
        Key("build", "build", Reader(_build, "a command, a list of commands, or tables"), "See `[[build]]`."),
        Key("migrate", "migrate", Reader(_migrate, "a command, or a table"), "See `[migrate]`.", "none"),
        Key("assets", "assets", read.list_of(form.inside), "Folders of the built release that are added to "
            "`shared/assets` before the switch, so that old and new pages find their files."),
        Key("console", "console", form.command, "The app's own shell, such as `python manage.py shell`: what `midstream "
            "console` opens.", "none"),
        Key("services", "services", Reader(_services, "tables by name"), "See `[services.NAME]`."),
        Key("hooks", "hooks", Reader(_hooks, "a list of tables"), "See `[[hooks]]`."),
        Key("holds", "holds", read.list_of(_reader(HOLD)), "See `[[holds]]`."),
        Key("min_free", "min_free_bytes", read.size, "A deploy is refused when the disk has less."),
        Key("progress_deadline", "progress_timeout_s", read.some_duration, "How long the handover on one host may go "
            "on without progress."),
        Key("max_parallel", "max_parallel", read.whole(0, 10000), "How many hosts of a wave are handed over at the same "
            "time; 0 all."),
        Key("auto_revert", "auto_revert", read.flag, "`false`: when the handover fails on one host, those that were "
            "proven before stay on the new release. The fleet is then on two, and the deploy says so (exit 5)."),
    ),
    also=("secrets", "stages", "notify"),
)  # fmt: skip

app = _reader(APP)
host = short_or_table(lambda value: HostSpec(read.address(value)), _reader(HOST), read.address.expected)


def _one_source(value: Any) -> SecretSource:
    if not isinstance(value, dict):  # what stands there may be the secret itself: not repeated in the message
        raise Misfit(
            'expected a table such as { file = "~/.shop/key" }: the file says where a secret is, never the value'
        )
    source: SecretSource = _SECRET(value)
    if sum(1 for one in (source.file, source.env, source.command) if one) != 1:
        raise Misfit('expected exactly one of "file", "env" and "command"')
    return source


_SECRET = _reader(SECRET)
secrets = read.table_of(read.variable, Reader(_one_source, 'a table such as { file = "~/.shop/key" }'))


def _notify_url(value: Any) -> str | SecretSource:
    """A URL of apprise; most of these have a token in them, so none is repeated in a message."""
    if isinstance(value, dict):
        return _one_source(value)
    if not isinstance(value, str) or "://" not in value or not value.isprintable():
        raise Misfit('expected a URL of apprise such as "json://HOST/PATH", or a table such as { env = "CHAT_URL" }')
    return value


NOTIFY = Table(
    NotifyTable,
    "[notify]",
    "Who is told of deploys, by apprise. A notification never delays or fails a deploy.",
    (
        Key("urls", "urls", read.list_of(Reader(_notify_url, "a URL, or a table as in `[secrets]`")), "Where to, in "
            "apprise's form. A URL with a token in it belongs elsewhere: `{ file = … }`, `{ env = … }`, `{ command = … }`."),
        Key("on", "on", read.list_of(read.choice(NOTIFY_ON)), "When. `failed`: in every way but an interrupt; "
            "`attention`: only when somebody has to do something (exit code 5)."),
    ),
)  # fmt: skip
notify = _reader(NOTIFY)

hosts = Reader(
    lambda value: tuple(read.list_of(host)(value)), 'a list such as ["deploy@web1"], or of tables with an address'
)

STAGE = Table(
    StageTable,
    "[stages.NAME]",
    "Where the app runs. Without stages, or without hosts, it is this machine.",
    (
        Key("hosts", "hosts", hosts, "Its hosts, see `[[stages.NAME.hosts]]`. The first host of a role is its primary, "
            "the first of all the coordinator.", "this machine"),
        Key("secrets", "secrets", secrets, "See `[secrets]`.", "none"),
        Key("notify", "notify", notify, "See `[notify]`.", "nobody"),
    ),
    free='Every other key overrides the one of the same path at the top of the file: `branch = "release"`, '
    '`services.web.soak = "30s"`. Tables are merged, everything else is replaced.',
)  # fmt: skip
stage = _reader(STAGE)

TABLES = (
    APP, ENV, BUILD, MIGRATE, SERVICE, LISTEN, HEALTH, LIMITS, LOG, BACKOFF, HOOK, HOLD, STAGE, HOST, SECRET, NOTIFY,
)  # fmt: skip

# words that other programs use for the same thing
LIKELY: dict[tuple[type, str], str] = {
    (AppSpec, "name"): "app",
    (AppSpec, "repo"): "repository",
    (AppSpec, "repo_url"): "repository",
    (AppSpec, "application"): "app",
    (AppSpec, "shared_dirs"): "linked_dirs",
    (AppSpec, "shared_files"): "linked_files",
    (AppSpec, "service"): "services",
    (AppSpec, "stage"): "stages",
    (ServiceSpec, "port"): "listen",
    (ServiceSpec, "bind"): "listen",
    (ServiceSpec, "run"): "command",
    (ServiceSpec, "cmd"): "command",
    (ServiceSpec, "exec"): "command",
    (ServiceSpec, "processes"): "instances",
    (ServiceSpec, "numprocs"): "instances",
    (ServiceSpec, "workers"): "instances",
    (ServiceSpec, "replicas"): "instances",
    (ServiceSpec, "healthcheck"): "health",
    (ServiceSpec, "directory"): "cwd",
    (ServiceSpec, "chdir"): "cwd",
    (ServiceSpec, "restart"): "restart_on",
    (ServiceSpec, "min_healthy"): "min_healthy_time",
    (ServiceSpec, "healthy_timeout"): "healthy_deadline",
    (ServiceSpec, "kill_timeout"): "stop_timeout",
    (HealthSpec, "path"): "http",
    (HealthSpec, "url"): "http",
    (BuildTable, "command"): "run",
    (MigrateTable, "command"): "run",
    (HookTable, "command"): "run",
    (HostSpec, "host"): "address",
    (HostSpec, "role"): "roles",
}
