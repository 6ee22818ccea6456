"""What a configuration without mistakes becomes: defaults, stages, hosts, the two texts it belongs to."""

from __future__ import annotations

import dataclasses

import pytest
from config_samples import AROUND, DESIGN, FULL, THREE_LINES

from midstream.core.config import DEFAULT_STAGE, Surroundings, app_name, destination, load
from midstream.core.config_mistakes import ConfigError
from midstream.core.config_tables import SecretSource
from midstream.core.spec import (
    AppSpec,
    CommandStep,
    EnvSpec,
    HandoverPolicy,
    HealthSpec,
    HookSpec,
    HostSpec,
    ListenSpec,
    MigrateSpec,
    ServiceSpec,
)
from midstream.core.wire import from_wire, to_wire
from midstream.errors import OperatorError


def test_the_sample_of_the_design_means_what_it_says() -> None:
    config = load(DESIGN, around=AROUND, profiles=["celery"])
    spec = config.resolve("production", "deploy@web1")
    assert spec == AppSpec(
        app="shop",
        deploy_to="/srv/shop",
        repository="git@example.com:shop.git",
        linked_dirs=("media", "log"),
        linked_files=(".env",),
        env=EnvSpec((".venv/bin",), {"DJANGO_SETTINGS_MODULE": "shop.settings"}, secrets=("SECRET_KEY",)),
        build=(
            CommandStep(("python3", "-m", "venv", ".venv")),
            CommandStep(("pip", "install", "-r", "requirements.txt")),
            CommandStep(("python", "manage.py", "collectstatic", "--noinput")),
        ),
        migrate=MigrateSpec((CommandStep(("python", "manage.py", "migrate", "--noinput")),)),
        services={
            "web": ServiceSpec(
                "web",
                ("midstream", "serve", "shop.wsgi:application", "--workers", "4"),
                listen=(ListenSpec("tcp://127.0.0.1:8000", "web"),),
                roles=("web",),
                health=HealthSpec(http="/up", host="shop.example.com", headers={"X-Forwarded-Proto": "https"}),
                soak_s=30.0,
            )
        },
        roles=("web", "db"),
    )
    batch = config.resolve("production", "deploy@batch1")
    assert batch.services == {
        "jobs": ServiceSpec("jobs", ("celery", "-A", "shop", "worker"), profile="celery", instances=2, roles=("batch",))
    }
    assert batch.env.variables["WORKERS"] == "8"
    stage = config.stage()
    assert stage.secrets == {"SECRET_KEY": SecretSource(file="~/.shop/key")}
    assert stage.warnings == ()
    assert stage.primary("db") == HostSpec("deploy@web1", ("web", "db"))


def test_three_lines_are_enough() -> None:
    spec = load(THREE_LINES, around=AROUND).resolve()
    assert (spec.app, spec.repository, spec.branch) == ("shop", "/home/ann/shop", "main")
    assert spec.deploy_to == "/home/ann/apps/shop"
    assert spec.stage == DEFAULT_STAGE
    assert spec.services["web"].command == ("gunicorn", "shop.wsgi")


def test_every_key_together_resolves_and_crosses_the_wire() -> None:
    config = load(FULL, around=AROUND, profiles=["generic"])
    for stage in config.stages.values():
        for host in stage.hosts:
            spec = config.resolve(stage.name, host)
            assert from_wire(AppSpec, to_wire(spec)) == spec


def test_a_stage_overrides_any_key_and_only_there() -> None:
    config = load(FULL, around=AROUND)
    production, staging = config.resolve("production", "deploy@web1"), config.resolve("staging")
    assert (production.branch, staging.branch) == ("release", "main")
    assert (production.services["web"].soak_s, staging.services["web"].soak_s) == (60.0, 30.0)


def test_a_service_runs_on_hosts_that_have_one_of_its_roles() -> None:
    config = load(FULL, around=AROUND)
    assert set(config.resolve("production", "deploy@web1").services) == {"web", "jobs"}
    assert set(config.resolve("production", "deploy@batch1").services) == {"jobs"}
    assert set(config.resolve("staging").services) == {"web", "jobs"}, "a host without roles has all of them"


def test_what_a_host_does_not_run_is_not_waited_for_there() -> None:
    config = load(FULL, around=AROUND)
    assert config.resolve("production", "deploy@web1").services["jobs"].depends_on == ("web",)
    assert config.resolve("production", "deploy@batch1").services["jobs"].depends_on == ()


def test_builds_and_hooks_are_left_out_on_hosts_without_their_role() -> None:
    config = load(FULL, around=AROUND)
    assert [step.name for step in config.resolve("production", "deploy@web1").build] == ["all", "all", ""]
    assert [step.name for step in config.resolve("production", "deploy@batch1").build] == [""]
    assert [hook.point for hook in config.resolve("production", "deploy@batch1").hooks] == ["handover"]


def test_a_stage_without_hosts_is_this_machine_with_all_roles() -> None:
    config = load(THREE_LINES + 'roles = ["web"]\n[migrate]\nrun = "m"\n[stages.local]\n', around=AROUND)
    assert config.stage().hosts == (HostSpec("", ("db", "web")),)
    assert config.resolve("local", "localhost").roles == ("db", "web")


def test_a_variable_of_a_host_wins_over_the_same_of_a_service() -> None:
    service = "[services.web.env]\nA = 1\nB = 2\n"
    hosts = '[stages.p]\nhosts = [{address = "one", env = {A = "host", C = "host"}}]\n'
    spec = load(THREE_LINES + service + hosts, around=AROUND).resolve()
    assert spec.env.variables == {"A": "host", "C": "host"}
    assert spec.services["web"].env.variables == {"A": "host", "B": "2"}


def test_a_secret_takes_the_place_of_a_variable() -> None:
    text = THREE_LINES + '[env]\nKEY = "dev"\n[secrets]\nKEY = {env = "KEY"}\n'
    text += '[stages.p]\nhosts = [{address = "one", env = {KEY = "host"}}]\n'
    env = load(text, around=AROUND).resolve().env
    assert env.secrets == ("KEY",)
    assert "KEY" not in env.variables


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ('build = "make all"\n', '[[build]]\nrun = "make all"\n'),
        ('build = ["make", "make docs"]\n', '[[build]]\nrun = ["make", "make docs"]\n'),
        ('migrate = "bin/m --now"\n', '[migrate]\nrun = "bin/m --now"\n'),
        ('services.jobs = {command = "a b"}\n', '[services.jobs]\ncommand = ["a", "b"]\n'),
        ('services.w = {command="a", listen="tcp://127.0.0.1:1"}', '[services.w]\ncommand="a"\n'
         'listen=[{address="tcp://127.0.0.1:1"}]\n'),
        ('services.w = {command="a", listen="tcp://127.0.0.1:1", health="/up"}\n', '[services.w]\ncommand="a"\n'
         'listen=["tcp://localhost:1"]\nhealth={http="/up"}\n'),
    ],
)  # fmt: skip
def test_short_forms_mean_the_long_ones(short: str, long: str) -> None:
    assert load(short, around=AROUND).resolve() == load(long, around=AROUND).resolve()


def test_with_shell_a_command_is_kept_as_one_line() -> None:
    text = '[services.web]\ncommand = "exec a | b $X"\nshell = true\n[[build]]\nrun = ["a && b", "c"]\nshell = true\n'
    spec = load(text, around=AROUND).resolve()
    assert spec.services["web"].command == ("exec a | b $X",)
    assert [step.run for step in spec.build] == [("a && b",), ("c",)]


def test_a_hook_of_several_commands_is_undone_once() -> None:
    text = '[[hooks]]\nafter = "deploy:updated"\nrun = ["a", "b"]\nundo = "c"\n'
    assert load(text, around=AROUND).resolve().hooks == (
        HookSpec("after", "updated", CommandStep(("a",)), CommandStep(("c",))),
        HookSpec("after", "updated", CommandStep(("b",)), number=1),
    )


def test_a_stage_may_change_the_kind_of_a_check_and_add_to_its_short_form() -> None:
    text = THREE_LINES + 'health = "/up"\n[stages.a]\nservices.web.health.timeout = "1s"\n'
    text += "[stages.b]\nservices.web.health = {tcp = true}\n"
    config = load(text, around=AROUND)
    assert config.resolve("a").services["web"].health == HealthSpec(http="/up", timeout_s=1.0)
    assert config.resolve("b").services["web"].health == HealthSpec(tcp=True)


def test_listeners_are_named_as_the_spec_says() -> None:
    text = '[services.web]\ncommand = "a"\nlisten = ["tcp://127.0.0.1:1", "tcp://[::1]:2", '
    text += '{address="unix:///x", name="u"}]\n'
    names = [one.name for one in load(text, around=AROUND).resolve().services["web"].listen]
    assert names == ["web", "listen1", "u"]


# the revision and the working copy


def test_services_come_from_the_revision_and_hosts_from_the_working_copy() -> None:
    revision = THREE_LINES.replace("gunicorn", "old-server") + '[stages.production]\nhosts = ["gone"]\n'
    working = THREE_LINES + 'linked_dirs = []\n[stages.production]\nhosts = ["deploy@new"]\nservices.web.soak = "5s"\n'
    working = working.replace("linked_dirs = []\n", "")
    config = load(revision, working, around=AROUND)
    spec = config.resolve()
    assert [host.address for host in config.stage().hosts] == ["deploy@new"]
    assert spec.services["web"].command[0] == "old-server"
    assert spec.services["web"].soak_s == 5.0, "overrides belong to the stage"


def test_where_it_goes_is_never_taken_from_the_revision() -> None:
    revision = 'app = "old"\ndeploy_to = "/srv/old"\nkeep_releases = 9\n' + THREE_LINES
    working = 'app = "new"\nkeep_releases = 2\n' + THREE_LINES
    spec = load(revision, working, around=AROUND).resolve()
    assert (spec.app, spec.deploy_to, spec.keep_releases) == ("new", "/home/ann/apps/new", 9)


def test_a_half_written_service_in_the_working_copy_does_not_stop_a_good_revision() -> None:
    working = '[services.web]\ncomand = 1\n[stages.p]\nbranch = "hotfix"\n'
    assert destination(working, around=AROUND).branch == "hotfix"
    assert load(THREE_LINES, working, around=AROUND).resolve().branch == "hotfix"


def test_a_revision_without_a_file_uses_the_working_copy_and_says_so() -> None:
    config = load(None, THREE_LINES, revision="abc123", around=AROUND)
    assert config.resolve().services["web"].command == ("gunicorn", "shop.wsgi")
    assert config.notes == ("revision abc123 has no midstream.toml: the working copy's counts",)


def test_mistakes_name_the_text_they_are_in() -> None:
    revision = '[services.web]\ncommand = "a"\nsoak = "no"\n'
    working = '[stages.p]\nservices.web.surge = "no"\n'
    with pytest.raises(ConfigError) as caught:
        load(revision, working, revision="abc123", around=AROUND)
    assert [(one.file, one.line, one.path) for one in caught.value.mistakes] == [
        ("midstream.toml", 2, "stages.p.services.web.surge"),
        ("midstream.toml in abc123", 3, "services.web.soak"),
    ]


def test_a_mistake_in_where_it_goes_is_blamed_on_the_working_copy() -> None:
    with pytest.raises(ConfigError) as caught:
        load("# a line\n" + THREE_LINES, 'branch = "-x"\n' + THREE_LINES, revision="abc123", around=AROUND)
    assert [(one.file, one.line, one.path) for one in caught.value.mistakes] == [("midstream.toml", 1, "branch")]


def test_the_file_is_looked_for_where_it_lies_in_the_repository() -> None:
    around = dataclasses.replace(AROUND, folder="/home/ann/all/shop", repository="/home/ann/all", repo_tree="shop")
    found = destination(THREE_LINES, around=around)
    assert (found.repository, found.config_path) == ("/home/ann/all", "shop/midstream.toml")
    assert load(THREE_LINES, around=around).resolve().repo_tree == "shop"
    given = destination('repository = "x@y:z.git"\n' + THREE_LINES, around=around)
    assert (given.repository, given.config_path) == ("x@y:z.git", "midstream.toml")


# places


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (".", "/home/ann/shop"),
        ("../shop.git", "/home/ann/shop.git"),
        ("./x/../y", "/home/ann/shop/y"),
        ("~/git/shop", "/home/ann/git/shop"),
        ("/srv/git/shop", "/srv/git/shop"),
        ("git@example.com:shop.git", "git@example.com:shop.git"),
        ("host:shop.git", "host:shop.git"),
        ("https://example.com/shop.git", "https://example.com/shop.git"),
        ("file:///srv/git", "file:///srv/git"),
    ],
)
def test_a_repository_is_a_url_or_a_path_from_the_file(written: str, meant: str) -> None:
    assert load(f'repository = "{written}"\n' + THREE_LINES, around=AROUND).resolve().repository == meant


def test_the_default_folder_depends_on_the_host() -> None:
    text = THREE_LINES + '[stages.here]\n[stages.there]\nhosts = ["deploy@web1"]\n'
    config = load(text, around=AROUND)
    assert config.resolve("here").deploy_to == "/home/ann/apps/shop"
    assert config.resolve("there").deploy_to == "/srv/shop"


def test_home_is_known_here_and_refused_elsewhere() -> None:
    text = 'deploy_to = "~/shop/"\n' + THREE_LINES
    assert load(text, around=AROUND).resolve().deploy_to == "/home/ann/shop"
    with pytest.raises(ConfigError, match=r"deploy_to: \"~\" is not known on web1"):
        load(text + '[stages.p]\nhosts = ["web1"]\n', around=AROUND)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("shop", "shop"),
        ("My Shop!", "my-shop"),
        ("2shop_3", "shop_3"),
        ("店", "app"),
        ("x" * 60, "x" * 48),
        ("", "app"),
    ],
)
def test_an_app_is_named_after_its_folder(folder: str, name: str) -> None:
    assert app_name(folder) == name
    around = Surroundings(folder=f"/home/{folder}", repository="/r")
    assert load("", around=around).resolve().app == (name if folder else "home")


# choosing


def test_a_stage_must_be_named_where_there_are_several() -> None:
    config = load(FULL, around=AROUND)
    with pytest.raises(OperatorError, match="which stage"):
        config.resolve()
    with pytest.raises(OperatorError) as caught:
        config.stage("producton")
    assert 'did you mean "production"?' in str(caught.value)


def test_a_host_must_be_one_of_the_stage() -> None:
    config = load(FULL, around=AROUND)
    with pytest.raises(OperatorError, match='no host "web9"'):
        config.resolve("production", "web9")
    with pytest.raises(OperatorError, match="which host"):
        config.resolve("production")


def test_policies_are_the_words_of_the_design() -> None:
    for policy in HandoverPolicy:
        text = THREE_LINES + f'handover = "{policy.value}"\n'
        assert load(text, around=AROUND).resolve().services["web"].handover is policy


# warnings


def test_roles_that_do_not_meet_are_said_and_stop_nothing() -> None:
    text = THREE_LINES + 'roles = ["wbe"]\n[stages.p]\nhosts = [{address = "one", roles = ["web"]}]\n'
    assert load(text, around=AROUND).stage().warnings == (
        'role "wbe" is asked for, and no host of stage p has it',
        "service web runs on no host of stage p",
        'role "web" of a host is asked for by nothing; did you mean "wbe"?',
    )
