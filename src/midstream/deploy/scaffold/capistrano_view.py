"""A recipe as keys of `midstream.toml`: what each stage amounts to, flat, so that stages can be compared. Pure.

Every value is read by the same readers that read the file, so nothing is written that a deploy would refuse; what does
not fit becomes a remark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from midstream.core import config_forms as form
from midstream.core import config_values as read
from midstream.core.config import app_name
from midstream.core.names import is_name
from midstream.deploy.scaffold.capistrano_methods import FromEnv, Lazy, Question, Symbol, Unread, known, text_of
from midstream.deploy.scaffold.capistrano_plugins import CARRIED, NEEDLESS, PLUGIN_ADVICE, PLUGINS
from midstream.deploy.scaffold.capistrano_recipe import Place, Recipe, Remark, Server
from midstream.deploy.scaffold.capistrano_services import (
    BuildDraft,
    brought,
    builds,
    linked_by_plugins,
    migration,
    plugin_hooks,
    rails_env,
    search_path,
    services,
)
from midstream.deploy.scaffold.capistrano_tasks import Dropped, HookDraft, commands_of, hook_drafts, placed
from midstream.deploy.scaffold.draft import Draft, ServiceDraft
from midstream.deploy.scaffold.tree import Tree

_SECRET = re.compile(r"(?i)passw|secret|token|api_?key|private|credential")
_NO_ADVICE = "it is not known here; see what it does and write it as [[build]], [[hooks]] or in deploy.py"


@dataclass(frozen=True, slots=True)
class HostDraft:
    address: str
    roles: tuple[str, ...]


@dataclass(slots=True)
class View:
    """One stage. name: as in our file. plain: top-level keys. variables: of `[env]`. secrets: variable -> the
    deployer's variable."""

    name: str
    stage: str
    hosts: tuple[HostDraft, ...] = ()
    plain: dict[str, str | int | bool | tuple[str, ...]] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    builds: tuple[BuildDraft, ...] = ()
    migrate: tuple[str, str] | None = None
    services: tuple[ServiceDraft, ...] = ()
    hooks: tuple[HookDraft, ...] = ()
    remarks: list[Remark] = field(default_factory=list)

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(role for host in self.hosts for role in host.roles)


def view_of(recipe: Recipe, tree: Tree, recognised: Draft | None) -> View:
    """What `recipe` amounts to."""
    return _Viewer(recipe, tree, recognised).all()


def role_name(text: str) -> str:
    """A role of Capistrano's as a name of ours."""
    return text if is_name(text) else app_name(text)


class _Viewer:
    def __init__(self, recipe: Recipe, tree: Tree, recognised: Draft | None) -> None:
        self.recipe = recipe
        self.tree = tree
        self.recognised = recognised
        self.view = View(app_name(recipe.stage), recipe.stage, remarks=list(recipe.remarks))

    def all(self) -> View:
        view = self.view
        view.hosts = tuple(self.hosts())
        self.top()
        self.linked()
        self.environment()
        view.builds = tuple(self.own_builds())
        view.migrate = self.migration()
        view.services = tuple(self.own_services())
        view.hooks = (*self.own_hooks(plugin_hooks(self.recipe, self.app())), *self.own_hooks(self.hooks()))
        self.ssh(self.recipe.value("ssh_options"), "*", *self.where("ssh_options"))
        self.leftovers()
        return view

    # remarks

    def where(self, key: str) -> tuple[Place, str]:
        return self.recipe.where.get(key, (Place("config/deploy.rb", 1), f"set :{key}"))

    def remark(self, place: Place, ruby: str, advice: str, needless: bool = False) -> None:
        self.view.remarks.append(Remark(place, ruby, advice, needless))

    def about(self, key: str, advice: str, needless: bool = False) -> None:
        self.remark(*self.where(key), advice, needless)

    def fits(self, reader: Callable[[Any], Any], value: Any) -> bool:
        try:
            reader(value)
        except ValueError:
            return False
        return True

    # the top

    def app(self) -> str:
        value = self.recipe.value("application")
        return app_name(str(value)) if isinstance(value, str) else app_name(self.tree.name)

    def top(self) -> None:
        self.view.plain["app"] = self.app()
        self.take("repository", "repo_url", read.repository)
        self.take("branch", "branch", read.branch)
        self.take("deploy_to", "deploy_to", form.deploy_to)
        self.take("repo_tree", "repo_tree", form.inside)
        keep = self.recipe.value("keep_releases")
        keep = int(keep) if isinstance(keep, str) and keep.isdecimal() and len(keep) < 5 else keep
        if type(keep) is int and 1 <= keep <= 1000:
            self.view.plain["keep_releases"] = keep
        elif "keep_releases" in self.recipe.scope.settings and not isinstance(keep, Unread):
            self.about("keep_releases", "expected a number from 1 to 1000; the default, 5, counts")
        if "submodules" in brought(self.recipe) or self.recipe.value("git_enable_submodules") is True:
            self.view.plain["submodules"] = True

    def take(self, key: str, setting: str, reader: Callable[[Any], Any]) -> None:
        value = self.recipe.value(setting)
        if isinstance(value, Symbol):
            value = str(value)
        if isinstance(value, str) and self.fits(reader, value):
            self.view.plain[key] = value.rstrip("/") if key == "deploy_to" else value
        elif value is not None and not isinstance(value, Unread):  # Unread was remarked upon where it was set
            why = f"the variable {value.name} decides it" if isinstance(value, FromEnv) else "the value does not fit"
            self.about(setting, f"{why}; write `{key}` into midstream.toml yourself")

    def linked(self) -> None:
        taken: list[str] = []
        for key, extra in (("linked_dirs", linked_by_plugins(self.recipe)), ("linked_files", ())):
            value = self.recipe.value(key)
            items = value if isinstance(value, list) else [] if value is None else [value]
            paths = list(self.linked_paths(key, [*items, *extra], taken))
            if paths:
                self.view.plain[key] = tuple(paths)

    def linked_paths(self, key: str, items: Iterable[Any], taken: list[str]) -> Iterator[str]:
        for item in items:
            plain = known(item) and isinstance(item, str) and not item.startswith("/")
            path = "/".join(part for part in item.split("/") if part not in ("", ".")) if plain else ""
            if path in taken:
                continue
            if not path or not self.fits(form.inside, path):
                if known(item):
                    self.about(key, f"{text_of(item)!r} is no path inside the release")
            elif any(path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in taken):
                self.about(key, f"{path} lies inside another linked path, or has one inside; only the first is linked")
            else:
                taken.append(path)
                yield path

    # the environment

    def environment(self) -> None:
        view = self.view
        stage = rails_env(self.recipe)
        if stage:
            view.variables["RAILS_ENV" if self.is_rails() else "RACK_ENV"] = stage
        value = self.recipe.value("default_env")
        for key, one in value.items() if isinstance(value, dict) else ():
            self.variable(str(key).upper() if isinstance(key, Symbol) else str(key), one)
        user = view.hosts[0].address.rpartition("@")[0].removeprefix("ssh://") if view.hosts else ""
        home = "/root" if user == "root" else f"/home/{user or 'deploy'}"
        folders = dict.fromkeys((*view.path, *search_path(self.recipe, home)))
        view.path = tuple(folder for folder in folders if self.fits(form.search_entry, folder))

    def is_rails(self) -> bool:
        return self.tree.has("config/application.rb") or bool(
            brought(self.recipe) & {"rails", "assets", "migrations"} or self.recipe.value("rails_env")
        )

    def variable(self, name: str, value: Any) -> None:
        if isinstance(value, FromEnv) and self.fits(read.variable, name) and self.fits(read.variable, value.name):
            self.view.secrets[name] = value.name
            return
        if not known(value) or isinstance(value, list | dict) or not self.fits(read.variable, name):
            self.about("default_env", f"the variable {name} is not carried over; write it into [env] yourself")
            return
        text = placed(self.recipe, text_of(value))
        if name == "PATH":
            self.search_path(text)
        elif re.search(r"(?<!\\)[$`]", text) or not self.fits(read.variable_value, text):
            self.about("default_env", f"no shell fills in {name}; write its value into [env] yourself")
        else:
            self.view.variables[name] = text
            if _SECRET.search(name):
                self.about("default_env", f"{name} looks like a secret: move it from [env] to `secrets` of the stage")

    def search_path(self, text: str) -> None:
        folders = [part for part in text.split(":") if part not in ("", "$PATH", "${PATH}")]
        good = [part for part in folders if "$" not in part and "~" not in part and self.fits(form.search_entry, part)]
        self.view.path = tuple(part.removeprefix("{release}/") for part in good)
        if len(good) < len(folders):
            self.about("default_env", "a part of PATH is not carried over: no shell fills in variables and `~`")

    # hosts

    def hosts(self) -> Iterator[HostDraft]:
        servers = [one for one in self.recipe.servers.values() if self.is_target(one)]
        ordered = sorted(servers, key=lambda one: one.properties.get("primary") is not True)
        if ordered != servers:
            self.remark(
                ordered[0].place, ordered[0].ruby, "the host is listed first: the first host of a role is its primary",
                needless=True,
            )  # fmt: skip
        seen: set[str] = set()
        for one in ordered:
            address = self.address(one)
            if not address or (local := "" if address == "localhost" else address) in seen:
                if not address:
                    self.remark(one.place, one.ruby, "not an address of ssh; write it into `hosts` of the stage")
                continue
            seen.add(local)
            self.host_properties(one)
            roles = tuple(dict.fromkeys(role_name(role) for role in one.roles if role != "all"))
            yield HostDraft(address, roles)

    def is_target(self, server: Server) -> bool:
        if server.properties.get("no_release") is not True:
            return True
        self.remark(server.place, server.ruby, "no release goes to this host, so Midstream has nothing to do with it")
        return False

    def address(self, server: Server) -> str:
        options = server.properties.get("ssh_options")
        both = self.recipe.value("ssh_options")
        merged = {**(both if isinstance(both, dict) else {}), **(options if isinstance(options, dict) else {})}
        user = text_of(merged.get("user")) if isinstance(merged.get("user"), str) else server.user
        port = server.port or (merged["port"] if type(merged.get("port")) is int else None)
        name = server.name.strip("[]")  # of IPv6, which has brackets only where a port follows
        if name in ("localhost", "127.0.0.1", "") and not port:
            return "localhost" if name else ""
        before = f"{user}@" if user else ""
        with_port = f"ssh://{before}{f'[{name}]' if ':' in name else name}:{port}"
        address = with_port if port and port != 22 else f"{before}{name}"
        return address if self.fits(read.address, address) else ""

    def host_properties(self, server: Server) -> None:
        others = [key for key in server.properties if key not in ("primary", "no_release", "ssh_options")]
        if others:
            what = ", ".join(others)
            advice = f"properties of your own ({what}): give the host `env`, or use them in deploy.py"
            self.remark(server.place, server.ruby, advice)
        self.ssh(server.properties.get("ssh_options"), server.name, server.place, server.ruby)

    def ssh(self, options: Any, host: str, place: Place, ruby: str) -> None:
        if not isinstance(options, dict):
            return
        lines = [line for key, value in options.items() for line in ssh_config(str(key), value)]
        if lines:
            self.remark(
                place, ruby, f"ssh is the system's own: in ~/.ssh/config `Host {host}`, then {'; '.join(lines)}"
            )

    # what is run

    @staticmethod
    def named(roles: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(role_name(role) for role in roles))

    def own_builds(self) -> Iterator[BuildDraft]:
        for one in builds(self.recipe):
            roles = self.named(one.roles)
            # nobody has the role (assets are for :web, and there is only :app): it then runs everywhere
            yield BuildDraft(one.run, roles if set(roles) & self.view.roles else (), one.comment)

    def migration(self) -> tuple[str, str] | None:
        found = migration(self.recipe)
        if found is None:
            return None
        command, role = found[0], role_name(found[1])
        if self.view.hosts and role not in self.view.roles and self.view.roles:
            self.about(
                "migration_role", f"no host of {self.view.stage} has the role {role}, so nothing is migrated there"
            )
            return None
        return command, role

    def own_services(self) -> Iterator[ServiceDraft]:
        for one in services(self.recipe, self.tree, self.recognised, self.view.roles):
            if self.fits(form.command, one.command):
                yield one

    def hooks(self) -> Iterator[HookDraft]:
        for hook in self.recipe.hooks:
            found = hook_drafts(self.recipe, hook)
            if isinstance(found, Dropped):
                self.remark(hook.place, hook.ruby, found.why, found.needless)
            else:
                yield from found

    def own_hooks(self, hooks: Iterable[HookDraft]) -> Iterator[HookDraft]:
        for one in hooks:
            if not one.shell and not all(self.fits(form.command, line) for line in one.run):
                one = replace(one, shell=True)
            own = tuple(pair for pair in one.env if self.view.variables.get(pair[0]) != pair[1])
            yield replace(one, roles=self.named(one.roles), env=own)

    # the rest

    def leftovers(self) -> None:
        for key, value in list(self.recipe.scope.settings.items()):
            if key not in self.recipe.where:
                continue
            if key in NEEDLESS:
                self.about(key, NEEDLESS[key], needless=True)
            elif isinstance(value, Unread):
                if not any(one.place == self.where(key)[0] for one in self.recipe.remarks):
                    self.about(key, f"{value.why}; write {key} into midstream.toml yourself")
            elif key not in CARRIED and not isinstance(value, Question):
                advice = "a setting of your own: put it into [env] where a command needs it, or into deploy.py"
                self.about(key, advice)
            elif isinstance(value, Lazy):
                self.lazy(key)
        for key in ("puma_workers", "sidekiq_processes"):
            if isinstance(self.recipe.value(key), FromEnv):
                self.about(key, "the environment decides it: write it into the service's command")
        self.plugins()
        self.tasks()

    def lazy(self, key: str) -> None:
        value = self.recipe.value(key)
        if isinstance(value, Unread):
            self.about(key, f"{value.why}; write {key} into midstream.toml yourself")

    def plugins(self) -> None:
        for name, (place, ruby) in self.recipe.plugins.items():
            meaning = PLUGINS.get(name, "")
            if meaning in PLUGIN_ADVICE:
                self.remark(place, ruby, PLUGIN_ADVICE[meaning])
            elif meaning == "passenger":
                self.remark(
                    place,
                    ruby,
                    "Passenger goes on serving from `current`; only a server that takes a socket (Puma, Unicorn) as "
                    "[services.web] is handed over without a break and proven first",
                )
            elif not meaning:
                self.remark(place, ruby, _NO_ADVICE)

    def tasks(self) -> None:
        hooked = {one.task.rpartition(":")[2] for one in self.recipe.hooks}
        invoked = " ".join(task.ruby for task in self.recipe.tasks.values())
        for task in self.recipe.tasks.values():
            short = task.name.rpartition(":")[2]
            if short in hooked or re.search(rf"invoke!?[ (]+[:\"']+(?:[\w:]+:)?{re.escape(short)}\b", invoked):
                continue
            way = "`midstream exec` runs its commands" if commands_of(self.recipe, task) else "it is Ruby code"
            what = f" ({task.description})" if task.description else ""
            self.remark(
                task.place, task.ruby, f"task {task.name}{what}: {way}; as a task of its own write it in deploy.py"
            )


def ssh_config(key: str, value: Any) -> Iterator[str]:
    """An option of net-ssh as a line of ssh_config; none for what is taken into the address."""
    text = " ".join(text_of(one) for one in value) if isinstance(value, list) else text_of(value)
    if not known(value) or isinstance(value, dict):
        yield f"what `{key}` said"
    elif key == "keys":
        yield from (f"IdentityFile {text_of(one)}" for one in (value if isinstance(value, list) else [value]))
    elif key == "forward_agent":
        yield from ["ForwardAgent yes, if a build needs it (no deploy does)"] if value is True else []
    elif key in ("verify_host_key", "paranoid", "user_known_hosts_file", "global_known_hosts_file"):
        if text in ("never", "false"):
            yield "nothing for host keys: they are always checked, so connect once by hand, or ssh-keyscan"
    elif key == "auth_methods":
        yield f"PreferredAuthentications {text.replace(' ', ',')}"
    elif key == "password":
        yield "a key in place of the password"
    elif key in _SSH_CONFIG:
        yield f"{_SSH_CONFIG[key]} {'yes' if value is True else 'no' if value is False else text}"
    elif key not in ("user", "port"):
        yield f"what `{key}` said"


_SSH_CONFIG = {
    "keys_only": "IdentitiesOnly",
    "timeout": "ConnectTimeout",
    "keepalive_interval": "ServerAliveInterval",
    "compression": "Compression",
    "host_name": "HostName",
    "bind_address": "BindAddress",
}
