"""`midstream init --from-capistrano`: what it reads is what the real `cap` reads, what it writes always loads.

The oracle is the `cap` of the machine: `doctor:variables`, `doctor:servers` and `-T` for the same files. Gems of plugins
are not there, so `require` of one finds an empty file, which sets what that plugin's own defaults set before deploy.rb.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from capistrano_samples import SAMPLES, SETUP
from hypothesis import HealthCheck, Phase, example, given, reject, settings
from hypothesis import strategies as st
from machine import Machine

from midstream.core.config import Config, Surroundings, load
from midstream.core.spec import AppSpec, HandoverPolicy
from midstream.deploy.scaffold.capistrano import Conversion, convert, convert_files
from midstream.deploy.scaffold.capistrano_methods import FromEnv, Lazy, Question, Symbol, Unread
from midstream.deploy.scaffold.capistrano_recipe import Recipe, recipe_of
from midstream.deploy.scaffold.capistrano_syntax import statements_of
from midstream.deploy.scaffold.tree import Tree
from midstream.errors import OperatorError
from midstream.profiles.servers import SERVERS

TEMPLATES = Path("/usr/lib/ruby/vendor_ruby/capistrano/templates")
AROUND = Surroundings(folder="/src/project", repository="/src/project", branch="main")
PROFILES = [profile.name for profile in SERVERS]


def written(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def converted(folder: Path, name: str) -> tuple[Conversion, Config]:
    found = convert(written(folder / name, SAMPLES[name]))
    return found, load(None, found.text, around=AROUND, profiles=PROFILES)


def spec(config: Config, stage: str = "production", host: int = 0) -> AppSpec:
    return config.resolve(stage, config.stage(stage).hosts[host])


def places(found: Conversion) -> set[str]:
    return {str(one.place) for one in found.left()}


def advice(found: Conversion, place: str) -> str:
    return "; ".join(one.advice for one in found.remarks if str(one.place) == place)


# what becomes of whole projects


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_written_loads_and_lists_all_that_is_left(name: str, tmp_path: Path) -> None:
    found, config = converted(tmp_path, name)
    assert list(config.stages) == list(found.stages)
    for one in found.remarks:
        assert f"# {one.place}:" in found.text, "each is in the file too"
        assert one.advice and one.place.line <= SAMPLES[name][one.place.file].count("\n") + 1


def test_rails_with_puma_and_sidekiq(tmp_path: Path) -> None:
    found, config = converted(tmp_path, "rails")
    stage = config.stage("production")
    assert [(host.address, host.roles) for host in stage.hosts] == [
        ("deploy@jobs1.example.com", ("app", "db", "worker")),
        ("deploy@app1.example.com", ("app", "web")),
        ("ssh://deploy@app2.example.com:2222", ("app", "web")),
    ]
    first, web = spec(config), spec(config, host=1)
    assert (web.deploy_to, web.branch, web.keep_releases) == ("/srv/blog", "main", 3)
    assert web.repository == "git@example.com:team/blog.git"
    assert web.linked_files == ("config/database.yml", "config/master.key")
    assert web.linked_dirs == (
        "log", "tmp/pids", "tmp/cache", "tmp/sockets", "public/uploads", "storage", "public/assets",
    )  # fmt: skip
    assert web.services["web"].command == ("bundle", "exec", "puma", "-C", "config/puma.rb", "-t", "5:5", "-w", "2")
    assert web.services["web"].listen[0].address == "unix://{shared}/tmp/sockets/puma.sock"
    assert web.services["web"].health and web.services["web"].health.http == "/up"
    assert set(first.services) == {"jobs"} and first.services["jobs"].handover is HandoverPolicy.DRAIN
    assert first.services["jobs"].command == ("bundle", "exec", "sidekiq", "-C", "config/sidekiq.yml")
    assert web.env.variables["RAILS_ENV"] == "production" and web.env.variables["MALLOC_ARENA_MAX"] == "2"
    assert web.env.path[:2] == ("/opt/node/bin", "/home/deploy/.rbenv/versions/3.2.2/bin")
    assert stage.secrets["SMTP_PASSWORD"].env == "SMTP_PASSWORD"
    assert first.migrate and first.migrate.run[0].run == ("bundle", "exec", "rake", "db:migrate")
    lines = [" ".join(step.run) for step in web.build]
    assert lines[-2:] == ["bundle install --jobs 4", "bundle exec rake assets:precompile"]
    assert [" ".join(step.run) for step in first.build] == lines[:-1], "assets are for the role web"
    assert "https://hooks.example.com" not in found.text, "a secret would be committed"


def test_a_stage_says_what_differs(tmp_path: Path) -> None:
    _, config = converted(tmp_path, "rails")
    staging = spec(config, "staging")
    assert (staging.branch, staging.deploy_to, staging.env.variables["RAILS_ENV"]) == (
        "develop", "/srv/blog-staging", "staging",
    )  # fmt: skip
    assert staging.services["web"].command[-2:] == ("-w", "1")
    assert staging.roles == ("app", "web", "db", "worker")


def test_what_is_taken_from_monit_is_given_back_in_every_way_of_failing(tmp_path: Path) -> None:
    """The usual pair of tasks leaves Sidekiq unwatched when a deploy fails between them."""
    tasks = "namespace :jobs do\n" + "".join(
        f"  task(:{verb}) {{ on(roles(:app)) {{ sudo :monit, '-g jobs', '{verb} all' }} }}\n"
        for verb in ("unmonitor", "monitor")
    )
    hooks = 'end\nafter "deploy:check", "jobs:unmonitor"\nafter "deploy:finishing", "jobs:monitor"\n'
    deploy_rb = 'set :application, "x"\nset :repo_url, "git@example.com:x.git"\n' + tasks + hooks
    server = 'server "a", user: "deploy", roles: %w{app}\n'
    files = {"Capfile": SAMPLES["static"]["Capfile"], "config/deploy.rb": deploy_rb}
    found = convert(written(tmp_path / "x", {**files, "config/deploy/production.rb": server}))
    off, on = spec(load(None, found.text, around=AROUND, profiles=PROFILES)).hooks
    assert off.step.run == ("sudo", "monit", "-g", "jobs", "unmonitor", "all")
    assert off.undo is not None and off.undo.run == ("sudo", "monit", "-g", "jobs", "monitor", "all")
    assert on.step.run == off.undo.run and on.undo is None


def test_hooks_that_are_commands_are_hooks_and_programs_are_named(tmp_path: Path) -> None:
    found, config = converted(tmp_path, "rails")
    hooks = [(hook.when, hook.point, hook.step.run, hook.step.roles) for hook in spec(config, host=1).hooks]
    assert ("after", "published", ("bundle", "exec", "rake", "cache:clear"), ("app",)) in hooks
    assert "deploy.py" in advice(found, "config/deploy.rb:61")
    assert "hands services over" in advice(found, "config/deploy.rb:60")


def test_stages_are_evaluated_each_with_its_own_name(tmp_path: Path) -> None:
    _, config = converted(tmp_path, "multistage")
    assert list(config.stages) == ["production", "review_app", "staging"]
    for stage, word, keep in (("production", "live", 7), ("staging", "try", 2), ("review_app", "try", 2)):
        one = spec(config, stage)
        assert (one.deploy_to, one.keep_releases) == (f"/opt/api/{stage}", keep)
        assert one.env.variables == {"NODE_ENV": word, "ROOT": "{shared}/uploads", "CODE": "{release}"}
        assert one.linked_dirs == ("node_modules", "uploads", "log", "data/a", "data/b")
        assert one.hooks[0].step.run == ("sudo", "systemctl", "restart", f"api-{stage}")
        assert config.stage(stage).hosts[0].address == f"api@{stage}.example.com"


def test_a_static_site_has_capistranos_defaults_and_no_service(tmp_path: Path) -> None:
    _, config = converted(tmp_path, "static")
    one = spec(config)
    assert (one.branch, one.deploy_to, one.keep_releases) == ("master", "/var/www/site", 10)
    assert one.services == {} and one.migrate is None


def test_custom_code_is_listed_with_its_place(tmp_path: Path) -> None:
    found, config = converted(tmp_path, "custom")
    assert places(found) >= {
        f"config/deploy.rb:{line}" for line in (6, 13, 16, 17, 18, 20, 24, 35, 50)
    } | {"Capfile:8", "Capfile:9", "config/deploy/production.rb:4", "lib/capistrano/tasks/logs.rake:3"}  # fmt: skip
    assert "hunter2" not in found.text
    one = spec(config)
    assert [host.address for host in config.stage("production").hosts] == [
        "intra@10.0.0.1", "intra@10.0.0.2", "intra@fd00::1",
    ]  # fmt: skip
    assert one.services["web"].listen[0].address == "unix:///run/intra/unicorn.sock"
    assert one.services["web"].command == ("bundle", "exec", "unicorn", "-c", "config/unicorn/production.rb")
    assert one.env.path[0] == "/usr/local/rvm/gems/ruby-2.7.8@intra/bin"
    assert one.hooks[0].step.run[-1] == "touch {shared}/cache.stamp && echo done || true" and one.hooks[0].step.shell


def test_a_host_for_everything_on_this_machine(tmp_path: Path) -> None:
    _, config = converted(tmp_path, "php")
    one = spec(config)
    assert config.stage("production").hosts[0].address == "" and one.repo_tree == "app"
    assert one.linked_dirs == ("var", "web/files") and one.linked_files == (".env",)
    assert [step.run[0] for step in one.build] == ["yarn", "composer"]
    assert one.hooks[0].step.run[:2] == ("passenger-config", "restart-app")


def test_a_migration_is_left_out_where_no_host_has_its_role() -> None:
    files = {
        "Capfile": SETUP + 'require "capistrano/rails/migrations"\n',
        "config/deploy.rb": 'set :application, "a"\nset :repo_url, "x@y:z"\n',
        "config/deploy/production.rb": 'server "h", roles: %w[app db]\n',
        "config/deploy/edge.rb": 'server "e", roles: %w[app]\n',
    }
    config = load(None, convert_files(files, Tree("a", frozenset(), {})).text, around=AROUND)
    assert config.resolve("production").migrate is not None and config.resolve("edge").migrate is None


def test_what_cannot_be_read_from_one_file_is_no_end_of_the_others() -> None:
    files = {
        "Capfile": SETUP,
        "config/deploy.rb": 'set :a, (((\nset :application, "b"\n',
        "config/deploy/production.rb": "end end",
    }
    found = convert_files(files, Tree("a", frozenset(), {}))
    assert load(None, found.text, around=AROUND).resolve().app in ("a", "b")
    assert "config/deploy/production.rb:1" in places(found)


def test_settings_that_refer_to_each_other_come_to_an_end() -> None:
    text = (
        'set :a, -> { "#{fetch(:b)}x" }\nset :b, -> { "#{fetch(:a)}y" }\nset :deploy_to, -> { "/srv/#{fetch(:a)}" }\n'
    )
    text += "".join(f'set :s{n + 1}, "#{{fetch(:s{n})}}#{{fetch(:s{n})}}ab"\n' for n in range(60))
    found = convert_files({"config/deploy.rb": text}, Tree("a", frozenset(), {}))
    assert load(None, found.text, around=AROUND)
    assert len(found.text) < 200_000


# the command


def test_the_command_writes_the_file_and_prints_the_list(tmp_path: Path) -> None:
    folder = written(tmp_path / "custom", SAMPLES["custom"])
    host = Machine(tmp_path)
    done = host.cli("init", "--from-capistrano", str(folder))
    assert done.code == 0, done.text
    assert "config/deploy.rb:18: SSHKit.config" in done.err and "hunter2" not in done.text
    assert load(None, (folder / "midstream.toml").read_text(), around=AROUND)
    again = host.cli("init", "--from-capistrano", str(folder))
    assert again.code == 2 and "--force" in again.text
    listed = json.loads(host.cli("init", "--from-capistrano", "--print", "--json", str(folder)).out)
    assert {"file": "config/deploy.rb", "line": 13}.items() <= next(
        one for one in listed["not_carried_over"] if "db_password" in one["ruby"]
    ).items()


def test_a_folder_without_capistrano_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no Capfile"):
        convert(tmp_path)


def test_check_accepts_what_was_written(machine: Machine, tmp_path: Path) -> None:
    folder = written(tmp_path / "site", SAMPLES["static"])
    stage = folder / "config/deploy/production.rb"
    stage.write_text(f'server "localhost", roles: [:web]\nset :deploy_to, "{tmp_path}/srv"\nset :branch, "main"\n')
    (folder / "config/deploy.rb").write_text(f'set :application, "site"\nset :repo_url, "{folder}"\n')
    assert machine.cli("init", "--from-capistrano", cwd=folder).code == 0
    for words in (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-q", "-m", "first")):
        subprocess.run(["git", *words], cwd=folder, env=machine.env, check=True)
    done = machine.cli("check", cwd=folder)
    assert done.code == 0, done.text


# the oracle


class CapFailed(Exception):
    """The real program does not take these files."""


def run_cap(folder: Path, *args: str) -> str:
    """What the real program prints, with empty plugins on its load path."""
    stubs = folder / ".stubs"
    for name in _required(folder):
        if not (Path("/usr/lib/ruby/vendor_ruby") / f"{name}.rb").exists():
            written(stubs, {f"{name}.rb": _stub(name)})
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", "RUBYLIB": str(stubs)}
    environ["SMTP_PASSWORD"] = "x"  # a sample takes it from there
    done = subprocess.run(["cap", *args], cwd=folder, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CapFailed(done.stdout + done.stderr)
    return done.stdout


def _required(folder: Path) -> list[str]:
    return re.findall(r"""^require ["']([^"']+)["']""", (folder / "Capfile").read_text(), re.MULTILINE)


def _stub(name: str) -> str:
    text = "namespace :load do\n  task :defaults do\n"
    text += "    set :rails_env, fetch(:stage)\n" if name == "capistrano/rails" else ""
    text += "  end\nend\n"
    if name == "capistrano/puma":
        text += 'require "capistrano/plugin"\nmodule Capistrano; class Puma < Plugin; end; end\n'
    if name == "capistrano/sidekiq":
        text += (
            'require "capistrano/plugin"\nmodule Capistrano; class Sidekiq < Plugin; class Systemd < Plugin; end; end; end\n'
            "namespace(:sidekiq) { task :restart }\n"
        )
    if name == "capistrano3/unicorn":
        text += "namespace(:unicorn) { task :restart }\n"
    return text


def inspected(value: Any) -> str:
    """As Ruby's `inspect` writes it."""
    if isinstance(value, Symbol):
        return f":{value}" if re.fullmatch(r"[A-Za-z_]\w*[?!]?", value) else f":{_quoted(value)}"
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(map(inspected, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{inspected(key)}=>{inspected(one)}' for key, one in value.items())}}}"
    return str(value)


def _quoted(text: str) -> str:
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\", "\x1b": "\\e", "\a": "\\a", "\b": "\\b"}
    named |= {"\f": "\\f", "\v": "\\v"}
    out = "".join(named.get(char, char if char.isprintable() else f"\\x{ord(char):02X}") for char in text)
    return f'"{re.sub(r"#(?=[{$@])", lambda _: chr(92) + "#", out)}"'


def is_known(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(is_known, value))
    if isinstance(value, dict):
        return all(map(is_known, value.values()))
    return not isinstance(value, Unread | FromEnv | Question | Lazy)


def as_read(folder: Path, stage: str) -> Recipe:
    tasks = (
        sorted(str(path.relative_to(folder)) for path in (folder / "lib").rglob("*.rake"))
        if (folder / "lib").exists()
        else []
    )
    names = ["Capfile", *tasks, "config/deploy.rb", f"config/deploy/{stage}.rb"]
    texts = {".ruby-version": (folder / ".ruby-version").read_text()} if (folder / ".ruby-version").exists() else {}
    return recipe_of(stage, [(name, (folder / name).read_text()) for name in names], texts)


def same_variables(folder: Path, stage: str) -> int:
    """Compares every setting that is known; returns how many there were."""
    recipe = as_read(folder, stage)
    lines = re.findall(r"^    (:\S+?)\s+(\S.*)$", run_cap(folder, stage, "doctor:variables"), re.MULTILINE)
    paths = [(key, re.sub(r"#<Pathname:(.*?)>", r'"\1"', text)) for key, text in lines]
    real = {key: text for key, text in paths if not text.startswith("is not a recognized")}
    compared = 0
    for key in recipe.where:
        if key == "scm":  # Capistrano takes it away when it has found its plugin
            continue
        value = recipe.scope.fetch(key)
        if isinstance(value, Question):
            assert real[f":{key}"] == "<ask>"
        elif is_known(value):
            assert (key, inspected(value)) == (key, real.get(f":{key}"))
            compared += 1
    return compared


STAGES = [
    (name, Path(file).stem) for name, files in SAMPLES.items() for file in files if file.startswith("config/deploy/")
]


@pytest.mark.server("cap")
@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_settings_are_what_cap_says_that_they_are(name: str, stage: str, tmp_path: Path) -> None:
    folder = written(tmp_path, SAMPLES[name])
    assert same_variables(folder, stage) >= 3


@pytest.mark.server("cap")
@pytest.mark.parametrize(("name", "stage"), [one for one in STAGES if one[0] != "rails"])
def test_servers_and_roles_are_what_cap_says_that_they_are(name: str, stage: str, tmp_path: Path) -> None:
    folder = written(tmp_path, SAMPLES[name])
    shown = run_cap(folder, stage, "doctor:servers")
    real = re.findall(r"^    (\S+)\s+\[(.*?)\]", shown, re.MULTILINE)
    recipe = as_read(folder, stage)
    ours = [
        (f"{one.user}@{one.name.strip('[]')}" if one.user else one.name, ", ".join(f":{role}" for role in one.roles))
        for one in recipe.servers.values()
    ]
    assert ours == real


@pytest.mark.server("cap")
@pytest.mark.parametrize("name", SAMPLES)
def test_tasks_are_those_that_cap_lists(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path, SAMPLES[name])
    stage = next(stage for sample, stage in STAGES if sample == name)
    empty = {file: "" for file in SAMPLES[name] if file.startswith("config/deploy")}
    bare = written(tmp_path / "bare", {"Capfile": SAMPLES[name]["Capfile"], **empty})

    def listed(where: Path) -> set[str]:
        return set(re.findall(r"^cap (\S+)", run_cap(where, stage, "-AT"), re.MULTILINE))

    recipe = as_read(folder, stage)
    assert set(recipe.tasks) | listed(bare) == listed(folder)
    described = dict(re.findall(r"^cap (\S+)\s+# (.*)$", run_cap(folder, stage, "-T"), re.MULTILINE))
    for task in recipe.tasks.values():
        if task.description:
            assert described[task.name].startswith(task.description.split("\n")[0][:20].strip())


@pytest.mark.server("cap")
def test_the_files_of_cap_install_are_read_as_they_are(tmp_path: Path) -> None:
    """`cap install` writes its templates; with the lines that are comments there turned on, too."""
    boot = tmp_path / "boot"
    boot.write_text('include Capistrano::DSL\nrequire "capistrano/install"\n')
    subprocess.run(["cap", "-f", str(boot), "install"], cwd=tmp_path, check=True, capture_output=True)
    found = convert(tmp_path)
    assert found.remarks == () and found.stages == ("production", "staging")
    one = load(None, found.text, around=AROUND).resolve("production")
    assert (one.app, one.repository, one.deploy_to) == (
        "my_app_name",
        "git@example.com:me/my_repo.git",
        "/var/www/my_app_name",
    )
    deploy = tmp_path / "config/deploy.rb"
    deploy.write_text(re.sub(r"^# (?=set |append |ask )", "", deploy.read_text(), flags=re.MULTILINE))
    production = tmp_path / "config/deploy/production.rb"
    production.write_text(
        re.sub(r"^# (?=server \"(?!example.com\",$)|role )", "", production.read_text(), flags=re.MULTILINE)
    )
    assert same_variables(tmp_path, "production") >= 9
    stage = load(None, convert(tmp_path).text, around=AROUND).stage("production")
    assert [(host.address, host.roles) for host in stage.hosts] == [
        ("deploy@example.com", ("app", "db", "web")),
        ("deploy@db.example.com", ("db",)),
        ("user1@primary.com", ("web",)),
        ("user2@additional.com", ("web",)),
    ]


# everything else that may be in such a file

_WORDS = st.sampled_from(["log", "a b", "x/y", "it's", 'say "hi"', "$HOME", "#{x}", "ü", "", "\\n", "-", "%w"])
_SCALARS = st.one_of(
    _WORDS.map(lambda text: "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"),
    _WORDS.map(lambda text: json.dumps(text, ensure_ascii=False).replace("#{", "\\#{")),
    st.integers(-9999, 99999).map(str),
    st.sampled_from(
        [":sym", ':"quoted sym"', "true", "false", "nil", "1_000", "%q(a (b) c)", "%Q[x]", "'a' 'b'", ":x?"]
    ),
)
_KEYS = st.sampled_from(["alpha", "beta", "gamma"])


def _collections(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(st.sampled_from(["a: ", '"b" => ', ":c => ", '"d e": ']), inner), max_size=3)
    items = st.lists(inner, max_size=3)
    return st.one_of(
        items.map(lambda found: f"[{', '.join(found)}]"),
        items.map(lambda found: "[\n  " + ",\n  ".join(found) + ("," if found else "") + "\n]"),
        pairs.map(lambda found: "{ " + ", ".join(key + value for key, value in found) + " }"),
        st.lists(st.sampled_from(["log", "tmp/x", "a-b"]), max_size=3).map(lambda found: f"%w{{{' '.join(found)}}}"),
        st.lists(st.sampled_from(["app", "db"]), max_size=3).map(lambda found: f"%i[{' '.join(found)}]"),
        inner.map(lambda found: f"-> {{ {found} }}"),
        inner.map(lambda found: f"-> do\n  {found}\nend"),
        st.tuples(inner, inner).map(lambda two: f"({two[0]} || {two[1]})"),
        st.tuples(inner, inner).map(lambda two: f"(fetch(:stage) == :production ? {two[0]} : {two[1]})"),
        _KEYS.map(lambda key: f"fetch(:{key})"),
        st.tuples(_KEYS, inner).map(lambda two: f"fetch(:{two[0]}, {two[1]})"),
        st.tuples(_KEYS, _WORDS).map(lambda two: f'"#{{fetch(:application)}}-{two[0]} #{{deploy_to}}"'),
    )


_VALUES = st.recursive(_SCALARS, _collections, max_leaves=6)
_STATEMENTS = st.one_of(
    st.tuples(_KEYS, _VALUES).map(lambda two: f"set :{two[0]}, {two[1]}"),
    st.tuples(_KEYS, _VALUES).map(lambda two: f"set(:{two[0]}, {two[1]}) # comment"),
    st.tuples(_KEYS, _VALUES).map(lambda two: f"set_if_empty :{two[0]}, {two[1]}"),
    st.tuples(_KEYS, _VALUES).map(lambda two: f"set :{two[0]}, {two[1]} if fetch(:stage) == :production"),
    st.tuples(_KEYS, _VALUES).map(lambda two: f"unless fetch(:stage) == :production\n  set :{two[0]}, {two[1]}\nend"),
    st.tuples(st.sampled_from(["p", "q"]), _SCALARS).map(lambda two: f"append :{two[0]}, {two[1]}, 'z'"),
    _KEYS.map(lambda key: f"delete :{key}"),
)


@pytest.mark.server("cap")
@settings(
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
@given(st.lists(_STATEMENTS, min_size=5, max_size=25))
@example(["set_if_empty :beta, { a: 'x', \"b\" => 'y', a: 'z' }"])
def test_any_settings_are_what_cap_says_that_they_are(statements: list[str]) -> None:
    import tempfile

    deploy = 'set :application, "shop"\n' + "\n".join(statements) + "\n"
    with tempfile.TemporaryDirectory() as name:
        folder = written(
            Path(name),
            {"Capfile": SETUP, "config/deploy.rb": deploy, "config/deploy/production.rb": "set :gamma, 1 unless 2\n"},
        )
        try:
            same_variables(folder, "production")
        except CapFailed:
            reject()  # settings that fetch each other
        except AssertionError as error:
            raise AssertionError(f"{error}\n{deploy}") from None


_ODDITIES = r"""
    set : append :linked_dirs , server role " ' #{ } { ( ) [ ] do end if unless -> => | || && . :: \ / %w %( <<~A A ;
    ENV fetch( :stage namespace :deploy task desc after before "deploy:published" on roles(:app) execute within nil :x 1
    release_path 0x 1e9 =begin =end __END__ begin rescue case when def class ` @a $b ? ! ~ # * ** & ask https://x ../../etc
    /srv/ ü deploy@host:22 repo_url deploy_to branch default_env puma_bind
"""
_PIECES = st.sampled_from([*_ODDITIES.split(), "\n", "\n\n", "\r", " ", "\t", "\0", "\x7f", "\u2028", "\u0085"])
_ODD = st.one_of(
    st.text(max_size=200),
    st.lists(_PIECES, max_size=60).map(" ".join),
    st.lists(_STATEMENTS, max_size=5).map("\n".join),
)
_DEPLOY_FILES = st.sampled_from([files["config/deploy.rb"] for files in SAMPLES.values()])
_VALID_OR_ODD = st.one_of(_ODD, st.tuples(_ODD, _DEPLOY_FILES).map("\n".join))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(_ODD, _VALID_OR_ODD, _ODD, st.text(max_size=30))
def test_whatever_is_in_the_files_a_file_that_loads_is_written(
    capfile: str, deploy: str, stage: str, name: str
) -> None:
    files = {
        "Capfile": capfile,
        "config/deploy.rb": deploy,
        "config/deploy/production.rb": stage,
        "config/deploy/St@ge 2.rb": deploy,
    }
    found = convert_files(files, Tree(name, frozenset({"config.ru", "Gemfile"}), {"Gemfile": 'gem "puma"'}))
    config = load(None, found.text, around=AROUND, profiles=PROFILES)
    assert len(config.stages) == 2
    found.text.encode()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_PIECES, max_size=80).map("".join))
def test_every_statement_has_a_line_of_the_text(text: str) -> None:
    for statement in statements_of(text):
        assert 1 <= statement.line <= text.count("\n") + 1


_LONG = ("(" * 100_000, '"#{' * 50_000, "[" * 3000 + "]" * 3000, "a do\n" * 20_000, "'" * 99_999, "x.y" * 60_000)


@pytest.mark.parametrize("text", _LONG, ids=range(len(_LONG)))
def test_deep_and_long_text_comes_to_an_end(text: str) -> None:
    found = convert_files({"config/deploy.rb": text}, Tree("a", frozenset(), {}))
    assert load(None, found.text, around=AROUND)


def test_a_file_cut_anywhere_is_read_as_far_as_it_goes() -> None:
    text = SAMPLES["rails"]["config/deploy.rb"]
    for end in range(0, len(text), 37):
        found = convert_files({**SAMPLES["rails"], "config/deploy.rb": text[:end]}, Tree("a", frozenset(), {}))
        assert load(None, found.text, around=AROUND)
