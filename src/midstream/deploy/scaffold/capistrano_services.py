"""What plugins start and build, in our words: services, build steps, the migration, PATH. Pure.

The defaults are the plugins' own (`load:defaults`); a setting of the team's takes their place.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from midstream.core.placeholders import escape
from midstream.deploy.scaffold.capistrano_methods import known, text_of
from midstream.deploy.scaffold.capistrano_plugins import PLUGINS
from midstream.deploy.scaffold.capistrano_recipe import Recipe
from midstream.deploy.scaffold.capistrano_tasks import HookDraft, placed
from midstream.deploy.scaffold.draft import DRAIN, Draft, ServiceDraft, Setting, any_answer
from midstream.deploy.scaffold.toml_text import quoted
from midstream.deploy.scaffold.tree import Tree

_WORD = re.compile(r"[A-Za-z0-9._@:/,+=-]+\Z")
_SOCKET_MAX = 107


@dataclass(frozen=True, slots=True)
class BuildDraft:
    """One `[[build]]`: commands, and the roles of the hosts they run on."""

    run: tuple[str, ...]
    roles: tuple[str, ...] = ()
    comment: str = ""


def brought(recipe: Recipe) -> frozenset[str]:
    """What the plugins bring, by the words of `PLUGINS`."""
    found = {PLUGINS.get(name, "") for name in recipe.plugins} - {""}
    if "rails" in found:
        found |= {"bundler", "assets", "migrations"}
    if found & {"assets", "migrations"}:
        found.add("bundler")
    return frozenset(found)


def text_setting(recipe: Recipe, key: str, default: str = "") -> str:
    """A setting as one line of text; `default` where there is none or it is not known."""
    value = recipe.value(key)
    if value is None or not known(value) or isinstance(value, list | dict | bool):
        return default
    return re.sub(r"[\x00-\x1f\x7f]+", " ", text_of(value)).strip() or default


def words_setting(recipe: Recipe, key: str) -> tuple[str, ...]:
    """A setting that is a list, or one value, or text with blanks."""
    value = recipe.value(key)
    if value is None or not known(value) or isinstance(value, bool | dict):
        return ()
    items = value if isinstance(value, list) else re.split(r"[\s,]+", text_of(value))
    return tuple(re.sub(r"[\x00-\x1f\x7f]+", " ", text_of(item)) for item in items if text_of(item).strip())


def whole_setting(recipe: Recipe, key: str, default: int) -> int:
    value = recipe.value(key)
    return value if type(value) is int and 0 < value <= 100 else default


def rails_env(recipe: Recipe) -> str:
    """What Rails is told that it is; "" where nothing says that there is a Rails or Rack app."""
    given = text_setting(recipe, "rails_env") or text_setting(recipe, "rack_env")
    is_ruby = brought(recipe) & {"rails", "assets", "migrations", "puma", "unicorn", "sidekiq"}
    return given or (recipe.stage if is_ruby else "")


# build


def builds(recipe: Recipe) -> tuple[BuildDraft, ...]:
    found = brought(recipe)
    out = [BuildDraft(tuple(_bundler(recipe)), comment="capistrano/bundler")] if "bundler" in found else []
    for plugin, line, flags in (
        ("npm", "npm install", "--production --silent --no-progress"),
        ("yarn", "yarn install", "--production --silent --no-progress"),
        ("composer", "composer install", "--no-dev --prefer-dist --no-interaction --quiet --optimize-autoloader"),
    ):
        if plugin in found:
            key = "composer_install_flags" if plugin == "composer" else f"{plugin}_flags"
            value = words_setting(recipe, key)
            folder = text_setting(recipe, "composer_working_dir" if plugin == "composer" else f"{plugin}_target_path")
            command = " ".join([line, *(value or [flags])])
            out.append(BuildDraft((_inside(recipe, folder, command),), _roles(recipe, f"{plugin}_roles"), plugin))
    if "assets" in found:
        roles = words_setting(recipe, "assets_roles") or ("web",)
        out.append(BuildDraft(("bundle exec rake assets:precompile",), roles, "capistrano/rails/assets"))
    return tuple(out)


def _bundler(recipe: Recipe) -> Iterator[str]:
    path = text_setting(recipe, "bundle_path")
    yield f"bundle config set --local path {placed(recipe, path) if _WORD.match(path) else '{shared}/bundle'}"
    without = words_setting(recipe, "bundle_without") or ("development", "test")
    yield f"bundle config set --local without {shlex.quote(':'.join(without))}"
    yield "bundle config set --local deployment true"
    gemfile = text_setting(recipe, "bundle_gemfile")
    yield f"bundle install --jobs {whole_setting(recipe, 'bundle_jobs', 4)}" + (
        f" --gemfile {shlex.quote(placed(recipe, gemfile))}" if _WORD.match(gemfile) else ""
    )


def _inside(recipe: Recipe, folder: str, command: str) -> str:
    """`command` in a folder of the release. Only tools with an option for it are asked to go elsewhere."""
    command = escape(command)
    place = placed(recipe, folder).removeprefix("{release}").strip("/")
    if not place or not _WORD.match(place):
        return command
    option = {"npm": "--prefix", "yarn": "--cwd", "composer": "--working-dir"}[command.split()[0]]
    return f"{command} {option} {place}"


def _roles(recipe: Recipe, key: str) -> tuple[str, ...]:
    return tuple(role for role in words_setting(recipe, key) if role != "all")


def migration(recipe: Recipe) -> tuple[str, str] | None:
    """The command and the role."""
    if "migrations" not in brought(recipe):
        return None
    task = text_setting(recipe, "migration_command", "db:migrate")
    return f"bundle exec rake {escape(task)}", text_setting(recipe, "migration_role", "db")


def search_path(recipe: Recipe, home: str) -> tuple[str, ...]:
    """Folders for PATH: those of the version tools. home: of the user on the hosts."""
    found, out = brought(recipe), []
    system = {key: text_setting(recipe, f"{key}_type") == "system" for key in ("rbenv", "rvm")}
    if "rbenv" in found:
        root = text_setting(recipe, "rbenv_custom_path") or text_setting(recipe, "rbenv_path")
        root = _at_home(root, home) or ("/usr/local/rbenv" if system["rbenv"] else f"{home}/.rbenv")
        version = text_setting(recipe, "rbenv_ruby")
        out += [f"{root}/versions/{version}/bin"] if _WORD.match(version) else []
        out += [f"{root}/shims", f"{root}/bin"]
    if "rvm" in found:
        root = _at_home(text_setting(recipe, "rvm_custom_path"), home)
        root = root or ("/usr/local/rvm" if system["rvm"] else f"{home}/.rvm")
        version = text_setting(recipe, "rvm_ruby_version") or text_setting(recipe, "rvm_ruby_string", "default")
        plain = version.partition("@")[0]
        if _WORD.match(version) and plain != "default":
            out += [f"{root}/gems/{version}/bin", f"{root}/gems/{plain}@global/bin", f"{root}/rubies/{plain}/bin"]
        else:
            out += [f"{root}/rubies/default/bin"]
    for plugin, key, folder in (
        ("chruby", "chruby_ruby", "/opt/rubies/{}/bin"),
        ("nvm", "nvm_node", home + "/.nvm/versions/node/{}/bin"),
        ("nodenv", "nodenv_node", home + "/.nodenv/versions/{}/bin"),
    ):
        version = text_setting(recipe, key)
        out += [folder.format(version)] if plugin in found and _WORD.match(version) else []
    if "asdf" in found:
        out += [f"{home}/.asdf/shims", f"{home}/.asdf/bin"]
    return tuple(out)


def _at_home(path: str, home: str) -> str:
    plain = re.sub(r"^(?:~|\$HOME)(?=/|$)", home, path).rstrip("/")
    return plain if _WORD.match(plain) and plain.startswith("/") else ""


# services


def services(recipe: Recipe, tree: Tree, recognised: Draft | None, held: frozenset[str]) -> tuple[ServiceDraft, ...]:
    """held: the roles that hosts of the stage have."""
    found = brought(recipe)
    out: list[ServiceDraft] = []
    web_roles = _first_held(held, ("web", "app"))
    if "puma" in found:
        out.append(_puma(recipe, tree, recognised, words_setting(recipe, "puma_role") or web_roles))
    elif "unicorn" in found:
        roles = words_setting(recipe, "unicorn_roles") or _first_held(held, ("app", "web"))
        out.append(_unicorn(recipe, tree, recognised, roles))
    if "sidekiq" in found:
        out.append(_sidekiq(recipe, held))
    if "resque" in found:
        out += _resque(recipe, held)
    if "delayed_job" in found:
        out.append(_delayed_job(recipe, held))
    for service in recognised.services if recognised else ():
        if service.name == "web" and ("passenger" in found or any(one.name == "web" for one in out)):
            continue
        if service.name == "jobs" and found & {"sidekiq", "resque", "delayed_job"}:
            continue
        roles = web_roles if service.name == "web" else _first_held(held, ("worker", "workers", "batch", "jobs", "app"))
        comment = service.comment or "Found in the project; Capistrano's files do not say how it is started."
        out.append(ServiceDraft(service.name, service.command, (*service.settings, *_role(roles)), comment))
    return tuple(out)


def _role(roles: tuple[str, ...]) -> tuple[Setting, ...]:
    plain = [role for role in roles if role != "all"]
    return (Setting("roles", f"[{', '.join(quoted(role) for role in plain)}]"),) if plain else ()


def _first_held(held: frozenset[str], roles: tuple[str, ...]) -> tuple[str, ...]:
    found = next((role for role in roles if role in held), "")
    return (found,) if found else ()


def _health(recognised: Draft | None) -> Setting:
    found = (
        (one for service in recognised.services if service.name == "web" for one in service.settings)
        if recognised
        else ()
    )
    return next((one for one in found if one.key == "health"), any_answer())


def _puma(recipe: Recipe, tree: Tree, recognised: Draft | None, roles: tuple[str, ...]) -> ServiceDraft:
    command = "bundle exec puma"
    config = placed(recipe, text_setting(recipe, "puma_conf"))
    inside = config.removeprefix("{release}/")
    if config.startswith("{shared}/") and _WORD.match(config.replace("{shared}", "")):
        command += f" -C {config}"
    elif config.startswith("{release}/") and _WORD.match(inside):
        command += f" -C {inside}"
    elif tree.has("config/puma.rb"):
        command += " -C config/puma.rb"
    threads = text_setting(recipe, "puma_threads")
    pair = words_setting(recipe, "puma_threads")
    if len(pair) == 2 or _WORD.match(threads):
        command += f" -t {':'.join(pair) if len(pair) == 2 else threads}" if _WORD.match(":".join(pair)) else ""
    workers = recipe.value("puma_workers")
    command += f" -w {workers}" if type(workers) is int and 0 < workers < 1000 else ""
    given = words_setting(recipe, "puma_bind")
    binds = [_listen(recipe, bind) for bind in given or ("unix://{shared}/tmp/sockets/puma.sock",)]
    binds = [bind for bind in binds if bind] or ['"tcp://127.0.0.1:9292"']
    where = "where Puma listened under Capistrano" if given else "capistrano3-puma's own place; nginx asks there"
    listen = Setting("listen", binds[0] if len(binds) == 1 else f"[{', '.join(dict.fromkeys(binds))}]", where)
    return ServiceDraft("web", command, (listen, _health(recognised), *_role(roles)), "capistrano3-puma")


def _listen(recipe: Recipe, bind: str) -> str:
    """`puma_bind` as a TOML string of ours; "" where it does not fit."""
    bind = bind if bind.startswith("unix://{shared}") else placed(recipe, bind)
    bind = bind.partition("?")[0]
    if tcp := re.match(r"tcp://([0-9.]+|localhost|\[[0-9a-fA-F:]+\]):([0-9]{1,5})\Z", bind):
        return quoted(bind) if int(tcp[2]) < 65536 else ""
    unix = re.match(r"unix:(?://)?(\{shared\}|\{deploy_to\})?(/[A-Za-z0-9._/-]+)\Z", bind)
    base = text_of(recipe.value("deploy_to"))
    if not unix or len(base) + len(unix[2]) + len("/shared") > _SOCKET_MAX:
        return ""
    return quoted(f"unix://{unix[1] or ''}{unix[2]}")


def _unicorn(recipe: Recipe, tree: Tree, recognised: Draft | None, roles: tuple[str, ...]) -> ServiceDraft:
    config = placed(recipe, text_setting(recipe, "unicorn_config_path")).removeprefix("{release}/")
    candidates = (config, f"config/unicorn/{recipe.stage}.rb", "config/unicorn/production.rb", "config/unicorn.rb")
    path = next((one for one in candidates if one and tree.has(one)), config or "config/unicorn.rb")
    plain = path.replace("{shared}", "").replace("{deploy_to}", "")
    command = "bundle exec unicorn" + (f" -c {path}" if _WORD.match(plain) else "")
    socket = re.search(r"^\s*listen\s*\(?\s*[\"'](/[A-Za-z0-9._/-]+)[\"']", tree.text(path), re.MULTILINE)
    port = re.search(r"^\s*listen\s*\(?\s*[\"']?(?:[0-9.]+:)?([0-9]{2,5})\b", tree.text(path), re.MULTILINE)
    if socket and (found := _listen(recipe, f"unix://{socket[1]}")):
        listen = Setting("listen", found, "as in the Unicorn configuration")
    else:
        number = int(port[1]) if port and int(port[1]) < 65536 else 8080
        listen = Setting("listen", f'"tcp://127.0.0.1:{number}"', "see `listen` in the Unicorn configuration")
    return ServiceDraft("web", command, (listen, _health(recognised), *_role(roles)), "capistrano3-unicorn")


def _sidekiq(recipe: Recipe, held: frozenset[str]) -> ServiceDraft:
    command = "bundle exec sidekiq"
    config = placed(recipe, text_setting(recipe, "sidekiq_config")).removeprefix("{release}/")
    command += f" -C {config}" if _WORD.match(config.replace("{shared}", "")) else ""
    concurrency = text_setting(recipe, "sidekiq_concurrency")
    command += f" -c {concurrency}" if concurrency.isascii() and concurrency.isdecimal() else ""
    for queue in words_setting(recipe, "sidekiq_queue"):
        command += f" -q {queue}" if _WORD.match(queue) else ""
    timeout = whole_setting(recipe, "sidekiq_timeout", 25)
    command += f" -t {timeout}" if timeout != 25 else ""
    roles = words_setting(recipe, "sidekiq_roles") or words_setting(recipe, "sidekiq_role")
    settings = (
        DRAIN,
        Setting("drain_timeout", f'"{timeout + 5}s"', "5 s above sidekiq's own time-out"),
        *_instances(whole_setting(recipe, "sidekiq_processes", 1)),
        *_role(roles or _first_held(held, ("worker", "workers", "sidekiq", "app"))),
    )
    return ServiceDraft("jobs", command, settings, "capistrano-sidekiq")


def _instances(count: int) -> tuple[Setting, ...]:
    return (Setting("instances", str(count)),) if count > 1 else ()


def _resque(recipe: Recipe, held: frozenset[str]) -> Iterator[ServiceDraft]:
    workers = recipe.value("workers")
    counts: dict[object, object] = workers if isinstance(workers, dict) and known(workers) else {"*": 1}
    nested = [value for value in counts.values() if isinstance(value, dict)]
    if nested:  # { role => { queue => count } }
        counts = {queue: count for value in nested for queue, count in value.items()}
    for index, (queue, count) in enumerate([*counts.items()][:20]):
        queues = re.sub(r"[^A-Za-z0-9_,*-]", "", text_of(queue)) or "*"
        settings = (
            Setting("env", f"{{ QUEUE = {quoted(queues)} }}"),
            DRAIN,
            Setting("stop_signal", '"QUIT"', "finishes its job"),
            Setting("drain_timeout", '"10m"', "longer than the longest job"),
            *_instances(count if type(count) is int and 0 < count <= 100 else 1),
            *_role(_first_held(held, ("resque_worker", "worker", "workers", "app"))),
        )
        yield ServiceDraft(
            "jobs" if index == 0 else f"jobs{index + 1}", "bundle exec rake resque:work", settings, "capistrano-resque"
        )


def _delayed_job(recipe: Recipe, held: frozenset[str]) -> ServiceDraft:
    queues = ",".join(words_setting(recipe, "delayed_job_queues"))
    env = (Setting("env", f"{{ QUEUES = {quoted(queues)} }}"),) if queues and _WORD.match(queues) else ()
    settings = (
        *env,
        DRAIN,
        Setting("drain_timeout", '"10m"', "longer than the longest job"),
        *_instances(whole_setting(recipe, "delayed_job_workers", 1)),
        *_role(words_setting(recipe, "delayed_job_roles") or _first_held(held, ("worker", "workers", "app"))),
    )
    return ServiceDraft("jobs", "bundle exec rake jobs:work", settings, "capistrano-delayed-job")


def plugin_hooks(recipe: Recipe, app: str) -> tuple[HookDraft, ...]:
    """What plugins do at a point of the deploy."""
    found, out = brought(recipe), []
    if "passenger" in found:
        out.append(
            HookDraft(
                "after",
                "published",
                ("passenger-config restart-app {deploy_to} --ignore-app-not-running",),
                roles=_roles(recipe, "passenger_roles"),
                comment="capistrano/passenger: Passenger serves from `current` and is told; see the list below",
            )
        )
    if "whenever" in found:
        identifier = text_setting(recipe, "whenever_identifier", app)
        name = escape(identifier) if _WORD.match(identifier) else app
        roles = words_setting(recipe, "whenever_roles") or ("db",)
        line = f"bundle exec whenever --update-crontab {name} --set environment={rails_env(recipe) or 'production'}"
        out.append(HookDraft("after", "updated", (line,), roles=roles, comment="whenever/capistrano"))
    return tuple(out)


def linked_by_plugins(recipe: Recipe) -> tuple[str, ...]:
    """Folders that plugins link without being asked."""
    if "assets" not in brought(recipe):
        return ()
    prefix = text_setting(recipe, "assets_prefix", "assets").strip("/")
    return (posixpath.join("public", prefix),)
