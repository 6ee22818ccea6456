"""Every kind of mistake has a message that names file, line, path and what was expected."""

# ruff: noqa: E501 (a row of the table is one line)

from __future__ import annotations

import pytest
from config_samples import AROUND, THREE_LINES

from midstream.core.config import Surroundings, load
from midstream.core.config_mistakes import ConfigError
from midstream.errors import EXIT_USAGE

SERVICE = '[services.web]\ncommand = "a"\n'
WITH_PORT = '[services.web]\ncommand = "a"\nlisten = "tcp://127.0.0.1:80"\n'

# text, line, path, what
MISTAKES = [
    # syntax
    ("a = \n", 1, "", "not valid TOML: Invalid value (column 5)"),
    ('a = "x', 1, "", "not valid TOML: "),
    ('app = "a"\napp = "b"\n', 2, "", "Cannot overwrite a value"),
    # unknown keys
    ('aap = "x"\n', 1, "aap", 'unknown key; did you mean "app"?'),
    ('repo = "x"\n', 1, "repo", 'unknown key; did you mean "repository"?'),
    ('soak = "1s"\n', 1, "soak", 'unknown key here; "soak" belongs in [services.NAME]'),
    ('hosts = ["x"]\n', 1, "hosts", 'unknown key here; "hosts" belongs in [stages.NAME]'),
    ("zzz = 1\n", 1, "zzz", "unknown key; known are app, repository, branch"),
    (SERVICE + "port = 8000\n", 3, "services.web.port", 'unknown key; did you mean "listen"?'),
    (SERVICE + "workers = 8\n", 3, "services.web.workers", 'unknown key; did you mean "instances"?'),
    (SERVICE + "min_healthy = 8\n", 3, "services.web.min_healthy", 'did you mean "min_healthy_time"?'),
    (SERVICE + 'health = {path = "/up"}\n', 3, "services.web.health.path", 'did you mean "http"?'),
    (SERVICE + "limits = {memroy = 1}\n", 3, "services.web.limits.memroy", 'did you mean "memory"?'),
    ("[[build]]\ncommand = 'x'\n", 2, "build[0].command", 'did you mean "run"?'),
    # missing keys
    ("[services.web]\ninstances = 2\n", 1, "services.web.command", "missing; expected a command"),
    ("[[build]]\nname = 'x'\n", 1, "build[0].run", "missing; expected a command"),
    ("[[hooks]]\nrun = 'x'\n", 1, "hooks[0]", 'expected exactly one of "before" and "after"'),
    ("[[holds]]\nsupervisor = 'monit'\n", 1, "holds[0].service", "missing"),
    ("[stages.p]\nhosts = [{roles = ['x']}]\n", 2, "stages.p.hosts[0].address", "missing; expected what ssh takes"),
    # types
    ("app = 5\n", 1, "app", "expected a name (lower-case letters, digits, - and _, a letter first, at most 48), got 5"),
    ('app = "Shop"\n', 1, "app", 'got "Shop"'),
    ("submodules = 1\n", 1, "submodules", "expected true or false, got 1"),
    ("keep_releases = 0\n", 1, "keep_releases", "expected a whole number from 1 to 1000, got 0"),
    ("keep_releases = true\n", 1, "keep_releases", "got true"),
    ("services = 1\n", 1, "services", "expected a table, got 1"),
    ("[services]\nweb = 'x'\n", 2, "services.web", 'expected a table, got "x"'),
    ("[services.Web]\ncommand = 'x'\n", 1, "services.Web", "expected a name"),
    ("env = 1\n", 1, "env", "expected a table, got 1"),
    ("hooks = {}\n", 1, "hooks", "expected a list, got a table"),
    ("source = 'pull'\n", 1, "source", 'expected one of "push", "fetch", got "pull"'),
    (SERVICE + "ready = 'soon'\n", 3, "services.web.ready", 'expected one of "notify", "fd", "health", "listening"'),
    (SERVICE + "handover = 'now'\n", 3, "services.web.handover", 'expected one of "overlap", "drain", "replace"'),
    (SERVICE + "restart_on = 'x'\n", 3, "services.web.restart_on", 'expected one of "always", "failure", "never"'),
    (SERVICE + "instances = -1\n", 3, "services.web.instances", "expected a whole number from 0 to 900, got -1"),
    (SERVICE + "instances = 901\n", 3, "services.web.instances", "expected a whole number from 0 to 900, got 901"),
    # durations, sizes, modes, signals, limits
    (SERVICE + "soak = '30'\n", 3, "services.web.soak", 'expected a duration such as "30s", "2m" or "1h30m"'),
    (SERVICE + "soak = -1\n", 3, "services.web.soak", "not negative"),
    (SERVICE + "soak = nan\n", 3, "services.web.soak", "expected a duration"),
    (SERVICE + "start_timeout = 0\n", 3, "services.web.start_timeout", "expected a duration above 0"),
    ("min_free = '10XB'\n", 1, "min_free", 'expected a size such as "10MB" or "1.5G", or a number of bytes, got "10XB"'),
    (SERVICE + "limits.umask = 22\n", 3, "services.web.limits.umask", 'expected a mode in quotes such as "0660", got 22'),
    (SERVICE + "limits.nice = 20\n", 3, "services.web.limits.nice", "from -20 to 19"),
    (SERVICE + "limits.rlimits.nofiles = 1\n", 3, "services.web.limits.rlimits.nofiles", 'did you mean "nofile"?'),
    (SERVICE + "limits.rlimits.nofile = [2, 1]\n", 3, "services.web.limits.rlimits.nofile", "soft limit is above"),
    (SERVICE + "stop_signal = 'TERMINATE'\n", 3, "services.web.stop_signal", 'did you mean "TERM"?'),
    # commands
    ("[services.web]\ncommand = ''\n", 2, "services.web.command", "expected a command, got an empty one"),
    ("[services.web]\ncommand = []\n", 2, "services.web.command", "got an empty list"),
    ("[services.web]\ncommand = ['', 'x']\n", 2, "services.web.command[0]", "expected the program to run"),
    ("[services.web]\ncommand = \"it's\"\n", 2, "services.web.command", "cannot be split into words (No closing quotation)"),
    ("[services.web]\ncommand = ['a', 1]\n", 2, "services.web.command[1]", "expected a string, got 1"),
    ("[services.web]\ncommand = ['a', 'b']\nshell = true\n", 2, "services.web.command", "with shell = true a command is one string"),
    ("build = ['a', 1]\n", 1, "build[1]", "expected a command"),
    ("build = []\nmigrate = []\n", 2, "migrate", "expected a command or several, got an empty list"),
    # names, paths
    ("[env]\n'A-B' = '1'\n", 2, "env.A-B", "expected the name of a variable"),
    ("[env]\nA = true\n", 2, "env.A", "expected a string; put it in quotes"),
    ("[env]\nA = {file = 'x'}\n", 2, "env.A", "belongs in `secrets`"),
    ("[env]\npath = ['a:b']\n", 2, "env.path[0]", "expected one folder"),
    ("linked_dirs = ['/etc']\n", 1, "linked_dirs[0]", 'without a leading "/" and without ".."'),
    ("linked_dirs = ['a/../../b']\n", 1, "linked_dirs[0]", 'without ".."'),
    ("linked_dirs = ['a', 'a/']\n", 1, "linked_dirs[1]", '"a" is linked twice'),
    ("linked_dirs = ['a']\nlinked_files = ['a/b']\n", 2, "linked_files[0]", '"a/b" and "a" are linked one inside the other'),
    ("linked_dirs = ['a/b', 'a']\n", 1, "linked_dirs[1]", "one inside the other"),
    ("deploy_to = 'srv/shop'\n", 1, "deploy_to", 'expected an absolute path such as "/srv/shop"'),
    ("deploy_to = '/'\n", 1, "deploy_to", "expected an absolute path"),
    ("deploy_to = '/srv/../etc'\n", 1, "deploy_to", 'without "." and ".." parts'),
    ("repository = '--upload-pack=x'\n", 1, "repository", "which git would take for a command"),
    ("repository = 'ext::sh -c x'\n", 1, "repository", "which git would take for a command"),
    ("branch = '-x'\n", 1, "branch", "expected a branch, tag or commit"),
    (SERVICE + "user = 'a b'\n", 3, "services.web.user", "expected the name of a user"),
    (SERVICE + "cwd = '../x'\n", 3, "services.web.cwd", "expected a path inside the release"),
    (SERVICE + "log.path = 'log/x'\n", 3, "services.web.log.path", "expected an absolute path"),
    # listeners
    (SERVICE + "listen = ['8000']\n", 3, "services.web.listen[0]", 'write "tcp://127.0.0.1:8000"'),
    (SERVICE + "listen = '10.0.0.1:80'\n", 3, "services.web.listen", 'write "tcp://10.0.0.1:80"'),
    (SERVICE + "listen = 'unix:/run/x'\n", 3, "services.web.listen", 'write "unix:///run/x"'),
    (SERVICE + "listen = 'tcp://127.0.0.1:65536'\n", 3, "services.web.listen", "expected a port from 1 to 65535"),
    (SERVICE + "listen = 'tcp://example.com:80'\n", 3, "services.web.listen", "expected an IP address"),
    (SERVICE + "listen = 'tcp://::1:80'\n", 3, "services.web.listen", "stands in brackets"),
    (SERVICE + "listen = 'unix://x'\n", 3, "services.web.listen", "expected an absolute path"),
    (SERVICE + f"listen = 'unix:///{'x' * 107}'\n", 3, "services.web.listen", "at most 107 bytes"),
    (SERVICE + "listen = 'unix://{run}/x'\n", 3, "services.web.listen", "expected an absolute path"),
    (SERVICE + "listen = {address = 'tcp://127.0.0.1:80', mode = '0660'}\n", 3, "services.web.listen", "for unix sockets"),
    (SERVICE + "listen = ['tcp://127.0.0.1:80', {address='tcp://127.0.0.1:81', name='web'}]\n", 3,
     "services.web.listen[1]", 'two listeners of this service are called "web"'),
    (WITH_PORT + "[services.b]\ncommand='b'\nlisten='tcp://localhost:80'\n", 6, "services.b.listen",
     "tcp://127.0.0.1:80 is taken by services.web.listen[0] on the same host"),
    (WITH_PORT + "[services.b]\ncommand='b'\nlisten='tcp://0.0.0.0:80'\n", 6, "services.b.listen", "is taken by"),
    (WITH_PORT + "[services.b]\ncommand='b'\nlisten='tcp://[::]:80'\n", 6, "services.b.listen", "is taken by"),
    # placeholders
    ("[services.web]\ncommand = 'a {relase}'\n", 2, "services.web.command", 'unknown placeholder {relase}; did you mean "{release}"?'),
    ("[services.web]\ncommand = 'a {home}'\n", 2, "services.web.command", "unknown placeholder {home}"),
    ("[services.web]\ncommand = 'a --fd {fd}'\n", 2, "services.web.command", "{fd} stands for a listener, and the service has none"),
    ("[services.web]\ncommand = 'a {fd:x}'\nlisten = 'tcp://127.0.0.1:1'\n", 2, "services.web.command",
     '{fd:x}: no listener is called "x"; there is "web"'),
    ("[services.web]\ncommand = 'a {ready_fd}'\n", 2, "services.web.command", 'expected ready = "fd"'),
    ("build = 'a {run}'\n", 1, "build", "{run} cannot be used here"),
    ("[migrate]\nrun = 'a {fd}'\n", 2, "migrate.run", "{fd} cannot be used here"),
    ("[env]\nA = '{fd}'\n", 2, "env.A", "{fd} cannot be used here"),
    ("[env]\nA = '{message}'\n", 2, "env.A", "write {{message}} if {message} is meant as it stands"),
    # health, readiness
    (WITH_PORT + "health = {}\n", 4, "services.web.health", 'expected exactly one of "http", "tcp" and "command"'),
    (WITH_PORT + "health = {http = '/', tcp = true}\n", 4, "services.web.health", "expected exactly one of"),
    (WITH_PORT + "health = 'up'\n", 4, "services.web.health", 'expected a path such as "/up", got "up"'),
    (WITH_PORT + "health = {http = '/', listener = 'x'}\n", 4, "services.web.health.listener", 'no listener is called "x"'),
    (WITH_PORT + "health = {http = '/', status = 99}\n", 4, "services.web.health.status", "from 100 to 599"),
    (WITH_PORT + 'health = {http = "/", host = "a\\r\\nb"}\n', 4, "services.web.health.host", "expected a host"),
    (WITH_PORT + 'health = {http = "/", headers = {X = "a\\r\\nb"}}\n', 4, "services.web.health.headers.X", "one line"),
    (SERVICE + "health = '/up'\n", 3, "services.web.health", "the service has no listener"),
    (SERVICE + "ready = 'health'\n", 3, "services.web.ready", '"health" needs a health check'),
    (SERVICE + "ready = 'listening'\n", 3, "services.web.ready", '"listening" needs a listener'),
    (SERVICE + "ready = 'fd'\n", 3, "services.web.ready", '"fd" needs {ready_fd}'),
    (SERVICE + "profile = 'gunicrn'\n", 3, "services.web.profile", 'unknown profile "gunicrn"; did you mean "gunicorn"?'),
    (SERVICE + "profile = 'zzz'\n", 3, "services.web.profile", "known are generic, gunicorn"),
    (SERVICE + "backoff = {max = '1s', second = '2s'}\n", 3, "services.web.backoff", '"max" is shorter'),
    # dependencies
    (SERVICE + "depends_on = 'wbe'\n[services.x]\ncommand='x'\n", 3, "services.web.depends_on", 'there is no service "wbe"; did you mean "web"?'),
    (SERVICE + "depends_on = ['x']\n[services.x]\ncommand='x'\ndepends_on='web'\n", 3, "services.web.depends_on",
     "goes in a circle: web -> x -> web"),
    (SERVICE + "depends_on = ['web']\n", 3, "services.web.depends_on", "goes in a circle: web -> web"),
    # hooks, holds
    ("[[holds]]\nsupervisor='monit'\nservice='x'\nfrom='after finishing'\nto='after check'\n", 5, "holds[0].to",
     '"after check" does not come after "after finishing"'),
    ("[[holds]]\nsupervisor='monit'\nservice='x'\nfrom='after check'\nto='after failed'\n", 5, "holds[0].to",
     '"after failed" does not come in a deploy that goes well'),
    ("[[holds]]\nsupervisor='monit'\nservice='x'\nfrom='after check'\nto='after finishing'\ncontrol='rc'\n", 6,
     "holds[0].control", "expected an absolute path"),
    (2 * "[[holds]]\nsupervisor='monit'\nservice='x'\nfrom='after check'\nto='after finishing'\n", 8, "holds[1].service",
     "'x' of monit is held twice"),
    ("[[hooks]]\nafter = 'deploy:updatd'\nrun = 'x'\n", 2, "hooks[0].after", 'did you mean "deploy:update'),
    ("[[hooks]]\nafter = 'zzz'\nrun = 'x'\n", 2, "hooks[0].after", "known are starting, check"),
    ("[[hooks]]\nafter = 'check'\nbefore = 'check'\nrun = 'x'\n", 1, "hooks[0]", "exactly one"),
    ("[[hooks]]\nafter = 'check'\nrun = 'x'\non = 'once'\n", 4, "hooks[0].on", 'expected one of "each", "primary"'),
    ("[[build]]\nrun = 'x'\non = 'primary'\n", 3, "build[0].on", 'expected one of "each", "once", "deployer"'),
    ("[[holds]]\nsupervisor='monit'\nservice='x'\nfrom='check'\nto='after finishing'\n", 4, "holds[0].from",
     'expected "before POINT" or "after POINT"'),
    ("[[holds]]\nsupervisor='upstart'\nservice='x'\nfrom='after check'\nto='after finishing'\n", 2, "holds[0].supervisor",
     'expected one of "monit", "runit"'),
    # stages
    ("stages = 1\n", 1, "stages", "expected a table of stages"),
    ("[stages]\np = 1\n", 2, "stages.p", "expected a table; write [stages.p]"),
    ("[stages.P]\n", 1, "stages.P", "expected a name"),
    ("[stages.p]\nstages = {}\n", 2, "stages.p.stages", "a stage cannot contain stages"),
    ("[stages.p]\nhosts = 'web1'\n", 2, "stages.p.hosts", "expected a list"),
    ("[stages.p]\nhosts = ['-oProxyCommand=x']\n", 2, "stages.p.hosts[0]", "expected what ssh takes"),
    ("[stages.p]\nhosts = ['a', 'b', 'a']\n", 2, "stages.p.hosts[2]", 'host "a" is listed twice'),
    ("[stages.p]\nhosts = [{address='a', rols=['x']}]\n", 2, "stages.p.hosts[0].rols", 'did you mean "roles"?'),
    ("[stages.p]\nservices.web.soak = 1\n", 2, "stages.p.services.web.command", "missing"),
    (SERVICE + "[stages.p]\nservices.web.soak = 'x'\n", 4, "stages.p.services.web.soak", "expected a duration"),
    ("[migrate]\nrun = 'x'\n[stages.p]\nhosts = [{address='a', roles=['web']}]\n", 1, "migrate",
     'the first host with role "db", and no host of stage p has it'),
    # secrets
    ("[secrets]\nA = {file='x', env='Y'}\n", 2, "secrets.A", 'expected exactly one of "file", "env" and "command"'),
    ("[stages.p]\nsecrets = {A = {}}\n", 2, "stages.p.secrets.A", "expected exactly one of"),
    ("[secrets]\nA = 'hunter2'\n", 2, "secrets.A", "expected a table"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "path", "what"), MISTAKES, ids=[f"{m[2]}:{m[3][:30]}" for m in MISTAKES])
def test_a_mistake_is_named_with_its_place(text: str, line: int, path: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, around=AROUND, profiles=["gunicorn", "generic"])
    found = [mistake for mistake in caught.value.mistakes if mistake.path == path]
    assert found, str(caught.value)
    assert any(what in mistake.what and mistake.line == line for mistake in found), str(caught.value)
    assert f"midstream.toml:{line}: " in str(caught.value)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        'aap = "x"\n'
        "[services.web]\n"
        'comand = "a"\n'
        'listen = ["8000"]\n'
        "[services.jobs]\n"
        'command = "b {fdd}"\n'
        "[stages.production]\n"
        'services.jobs.soak = "soon"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(text, around=AROUND)
    assert [mistake.line for mistake in caught.value.mistakes] == [1, 2, 3, 4, 8]
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.what == "midstream.toml: 5 mistakes"
    assert "serving: unchanged" in str(caught.value)


def test_what_can_be_checked_is_checked_although_other_services_cannot_be_read() -> None:
    text = '[services.web]\ncomand = "a"\n[services.jobs]\ncommand = "b {fdd}"\ndepends_on = "web"\n'
    with pytest.raises(ConfigError) as caught:
        load(text, around=AROUND)
    assert [mistake.path for mistake in caught.value.mistakes] == [
        "services.web.command",
        "services.web.comand",
        "services.jobs.command",
    ]


def test_a_mistake_in_the_common_part_is_told_once_for_all_stages() -> None:
    text = 'app = "X"\n' + THREE_LINES + "[stages.a]\n[stages.b]\n"
    with pytest.raises(ConfigError) as caught:
        load(text, around=AROUND)
    assert len(caught.value.mistakes) == 1


def test_a_mistake_that_every_stage_overrides_is_one_all_the_same() -> None:
    with pytest.raises(ConfigError, match="expected a branch, tag or commit, got 5"):
        load('branch = 5\n[stages.p]\nbranch = "x"\n', around=AROUND)


def test_what_only_stages_bring_is_not_missing_at_the_top() -> None:
    text = "[services.web]\nsoak = 1\n[stages.p]\nservices.web.command = 'a'\n"
    assert load(text, around=AROUND).resolve().services["web"].command == ("a",)


def test_without_a_repository_the_remedy_is_named() -> None:
    with pytest.raises(ConfigError, match="git init"):
        load(THREE_LINES, around=Surroundings(folder="/x/shop"))


def test_both_texts_are_parsed_before_anything_is_said() -> None:
    with pytest.raises(ConfigError) as caught:
        load("a = ", "b = ", around=AROUND)
    assert [mistake.file for mistake in caught.value.mistakes] == ["midstream.toml", "midstream.toml in the revision"]


def test_a_secret_written_into_the_file_is_not_repeated_in_the_message() -> None:
    with pytest.raises(ConfigError) as caught:
        load("[secrets]\nA = 'hunter2'\n", around=AROUND)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        WITH_PORT + "roles = ['a']\n[services.b]\ncommand='b'\nroles=['b']\nlisten='tcp://127.0.0.1:80'\n"
        "[stages.p]\nhosts=[{address='x',roles=['a']},{address='y',roles=['b']}]\n",
        "[services.web]\ncommand='a'\nlisten=['tcp://127.0.0.1:0','tcp://127.0.0.1:0']\n",
        "[services.web]\ncommand='a'\nlisten=['tcp://127.0.0.1:80','tcp://[::1]:80','tcp://127.0.0.2:80']\n",
        "[services.web]\ncommand='a ${home} {{print}} {a:1} {A} {}'\n",
        "[services.web]\ncommand='{ echo ${x}; }'\nshell=true\n",
        "[env]\nFORMAT='{{message}}'\n",
        "[services.web]\ncommand='a'\nuser='www'\nlisten='tcp://0.0.0.0:80'\n",
        "[services.web]\ncommand='a {ready_fd}'\nready='fd'\n",
        "# only a comment\n",
    ],
)
def test_what_is_allowed_is_not_refused(text: str) -> None:
    load(text, around=AROUND)
