"""The statements of Capistrano's files carried out as far as they can be: settings, servers, plugins, tasks, hooks.

Pure. One `Recipe` is what one stage amounts to: the Capfile, the task files, `config/deploy.rb`, the stage's file, in
Capistrano's order. What cannot be carried out is in `remarks`, with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from midstream.deploy.scaffold.capistrano_methods import FromEnv, Lazy, Question, Symbol, Unread, known, text_of, truth
from midstream.deploy.scaffold.capistrano_nodes import Assign, Block, Both, Call, Function, If, Node, Statement
from midstream.deploy.scaffold.capistrano_plugins import NEEDLESS
from midstream.deploy.scaffold.capistrano_syntax import statements_of
from midstream.deploy.scaffold.capistrano_values import Scope, evaluate, flattened_once, options_of

_RAILS = frozenset({"capistrano/rails", "capistrano/rails/assets", "capistrano/rails/migrations"})
_CHANGES = ("push", "concat", "append", "merge!")
_UNROLL_MAX = 50
_STATEMENTS_MAX = 5_000


@dataclass(frozen=True, slots=True, order=True)
class Place:
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that is not carried over. ruby: as written. advice: what to do. needless: there is nothing to do,
    Midstream does without."""

    place: Place
    ruby: str
    advice: str
    needless: bool = False


@dataclass(slots=True)
class Server:
    """A host. properties: what is said of it beside its user, port and roles."""

    name: str
    place: Place
    ruby: str
    user: str = ""
    port: int | None = None
    roles: list[str] = field(default_factory=list)
    properties: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """name: with its namespaces. block: None where the body was not understood."""

    name: str
    description: str
    place: Place
    ruby: str
    block: Block | None
    prerequisites: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hook:
    """`before` or `after` a task, another one. block: of a task without a name of its own."""

    when: str
    point: str
    task: str
    scope: tuple[str, ...]
    place: Place
    ruby: str


@dataclass(slots=True)
class Recipe:
    """What the files say for one stage."""

    stage: str
    scope: Scope = field(default_factory=Scope)
    where: dict[str, tuple[Place, str]] = field(default_factory=dict)
    servers: dict[tuple[str, int | None], Server] = field(default_factory=dict)
    plugins: dict[str, tuple[Place, str]] = field(default_factory=dict)
    loads: dict[str, tuple[Place, str]] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    hooks: list[Hook] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    def value(self, key: str) -> Any:
        """A setting as a deploy of this stage would see it, ENV's answers taken by their defaults."""
        value = self.scope.fetch(key)
        return value.default if isinstance(value, Question) else value


def recipe_of(stage: str, files: Iterable[tuple[str, str]], texts: Mapping[str, str] = MappingProxyType({})) -> Recipe:
    """files: (name, text), in the order in which Capistrano loads them. texts: of other files of the project. Never
    raises."""
    recipe = Recipe(stage, Scope(files=texts))
    recipe.scope.settings["stage"] = Symbol(stage)
    reader = _Reader(recipe)
    for number, (name, text) in enumerate(files):
        reader.read(name, text)
        if number == 0 and _RAILS & set(recipe.plugins):  # its defaults are set before deploy.rb is loaded
            recipe.scope.settings.setdefault("rails_env", Symbol(stage))
    return recipe


class _Reader:
    """Carries statements out, one after the other."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.scope = recipe.scope
        self.file = ""
        self.namespaces: tuple[str, ...] = ()
        self.description = ""
        self.left = _STATEMENTS_MAX

    def read(self, name: str, text: str) -> None:
        self.file, self.namespaces, self.description = name, (), ""
        self.scope.names = {}
        self.all(statements_of(text))

    def all(self, statements: tuple[Statement, ...]) -> None:
        for statement in statements:
            self.left -= 1
            if self.left < 0:
                return
            self.one(statement)

    def one(self, statement: Statement) -> None:
        node = statement.node
        if isinstance(node, Call) and node.receiver is None and node.name in _VERBS:
            _VERBS[node.name](self, node, statement)
        elif isinstance(node, If):
            self.branch(node, statement)
        elif isinstance(node, Assign):
            self.assign(node, statement)
        elif isinstance(node, Call | Both) and self.is_push(node):
            self.push(node, statement)
        elif isinstance(node, Call) and node.name == "each" and node.receiver is not None and node.block:
            self.each(node, node.block, statement)
        elif not _is_harmless(node):
            self.remark(statement, _advice_for(statement))

    def place(self, statement: Statement) -> Place:
        return Place(self.file, statement.line)

    def remark(self, statement: Statement, advice: str, needless: bool = False) -> None:
        self.recipe.remarks.append(Remark(self.place(statement), statement.text, advice, needless))

    # settings

    def store(self, key: str, value: Any, statement: Statement) -> None:
        self.scope.settings[key] = value
        self.recipe.where[key] = (self.place(statement), statement.text)
        if isinstance(value, Unread) and key not in NEEDLESS:
            self.remark(statement, f"{value.why}; write the value into midstream.toml yourself")

    def key_of(self, call: Call) -> str | None:
        key = evaluate(call.args[0], self.scope) if call.args else None
        return str(key) if isinstance(key, str) else None

    def set(self, call: Call, statement: Statement) -> None:
        key = self.key_of(call)
        if key is None:
            self.remark(statement, "which setting it is, is not known; write it into midstream.toml yourself")
            return
        if call.name == "set_if_empty" and key in self.scope.settings:
            return
        seen = len(self.scope.environment)
        self.store(key, self.value_of(call), statement)
        for name, value in self.scope.environment[seen:]:
            self.ask_environment(key, name, value, statement)

    def value_of(self, call: Call) -> Any:
        if call.block is not None:
            return Lazy(Function(call.block))
        if len(call.args) > 1:
            return evaluate(call.args[1], self.scope)
        return options_of(call.options, self.scope) if call.options else None

    def ask_environment(self, key: str, name: str, value: Any, statement: Statement) -> None:
        if not known(value) or key in NEEDLESS:
            return
        way = "use `midstream deploy --branch` in its place" if key == "branch" else "write another value by hand"
        self.remark(statement, f"the variable {name} could change it; {text_of(value)!r} is carried over: {way}")

    def ask(self, call: Call, statement: Statement) -> None:
        key = self.key_of(call)
        if key is None:
            self.remark(statement, "what is asked for is not known")
            return
        default = evaluate(call.args[1], self.scope) if len(call.args) > 1 else None
        self.scope.settings[key] = Question(default)
        self.recipe.where[key] = (self.place(statement), statement.text)
        if key == "branch":
            advice = "nothing is asked in a deploy: `midstream deploy --branch REV` names another branch"
        else:
            advice = f"nothing is asked in a deploy: give {key} as a secret, or ask for it in deploy.py"
        self.remark(statement, advice)

    def append(self, call: Call, statement: Statement) -> None:
        key = self.key_of(call)
        if key is None:
            self.remark(statement, "which setting it is, is not known")
            return
        self.change(key, flattened_once(call.args[1:], self.scope), statement, remove=call.name == "remove")

    def change(self, key: str, items: list[Any], statement: Statement, *, remove: bool = False) -> None:
        before = self.scope.fetch(key)
        if isinstance(before, Unread | FromEnv | Question):
            self.remark(statement, "what it is added to is not known; write the whole list into midstream.toml")
            return
        now = before if isinstance(before, list) else [] if before is None else [before]
        unknown = [item for item in items if not known(item)]
        if unknown:
            why = unknown[0].why if isinstance(unknown[0], Unread) else "the environment decides it"
            self.remark(statement, f"{why}; add it to midstream.toml yourself")
        good = [item for item in items if known(item)]
        self.scope.settings[key] = [item for item in now if item not in good] if remove else [*now, *good]
        self.recipe.where.setdefault(key, (self.place(statement), statement.text))

    def is_push(self, node: Call | Both) -> bool:
        """`fetch(:linked_dirs) << "x"`, `fetch(:linked_dirs).push "x"`."""
        target = node.left if isinstance(node, Both) else node.receiver
        changes = node.operator == "<<" if isinstance(node, Both) else node.name in _CHANGES
        return changes and isinstance(target, Call) and target.receiver is None and target.name == "fetch"

    def push(self, node: Call | Both, statement: Statement) -> None:
        target = node.left if isinstance(node, Both) else node.receiver
        key = self.key_of(target) if isinstance(target, Call) else None
        items = [evaluate(node.right, self.scope)] if isinstance(node, Both) else flattened_once(node.args, self.scope)
        if isinstance(node, Call) and node.name == "concat":
            items = [item for one in items for item in (one if isinstance(one, list) else [one])]
        if key is None:
            self.remark(statement, "which setting it is, is not known")
        elif isinstance(node, Call) and node.name == "merge!":
            self.merge(key, node, statement)
        else:
            self.change(key, items, statement)

    def merge(self, key: str, node: Call, statement: Statement) -> None:
        """`fetch(:default_env).merge!(key: value)`."""
        before = self.scope.fetch(key)
        found = options_of(node.options, self.scope)
        for value in flattened_once(node.args, self.scope):
            found |= value if isinstance(value, dict) else {}
        if before is not None and not isinstance(before, dict):
            self.remark(statement, "what it is merged into is not known")
            return
        self.scope.settings[key] = {**(before or {}), **found}
        self.recipe.where.setdefault(key, (self.place(statement), statement.text))

    def delete(self, call: Call, statement: Statement) -> None:
        key = self.key_of(call)
        if key is not None:
            self.scope.settings.pop(key, None)
            self.recipe.where.pop(key, None)

    def assign(self, node: Assign, statement: Statement) -> None:
        target = node.target
        if isinstance(target, Call) and target.receiver is None and not target.args and not target.options:
            if node.operator == "=" or target.name not in self.scope.names:
                self.scope.names[target.name] = evaluate(node.value, self.scope)
            else:
                self.scope.names[target.name] = Unread("it is Ruby code")
            return
        self.remark(statement, _advice_for(statement))

    # conditions and loops

    def branch(self, node: If, statement: Statement) -> None:
        for test, body in node.branches:
            found = True if test is None else truth(evaluate(test, self.scope))
            if found is None:
                self.remark(statement, "its condition is known only when a deploy runs; nothing of it is carried over")
                return
            if found:
                self.all(body)
                return

    def each(self, call: Call, block: Block, statement: Statement) -> None:
        if all(_is_import(one.node) for one in block.body):
            return  # task files: they were read
        items = evaluate(call.receiver, self.scope) if call.receiver is not None else None
        if not isinstance(items, list) or len(items) > _UNROLL_MAX or len(block.names) != 1 or not known(items):
            self.remark(statement, "it is Ruby code; write by hand what it makes")
            return
        for item in items:
            self.scope.names[block.names[0]] = item
            self.all(block.body)

    # servers

    def server(self, call: Call, statement: Statement) -> None:
        name = evaluate(call.args[0], self.scope) if call.args else None
        properties = self.properties(call, 1)
        if not isinstance(name, str):
            why = f"the variable {name.name} names the host" if isinstance(name, FromEnv) else "the host is not known"
            self.remark(statement, f"{why}; write it into `hosts` of the stage")
            return
        self.add_host(str(name), properties, statement)

    def role(self, call: Call, statement: Statement) -> None:
        values = flattened_once(call.args, self.scope)
        hosts = values[1] if len(values) > 1 else None
        hosts = hosts if isinstance(hosts, list) else [hosts]
        if not values or not isinstance(values[0], str) or not all(isinstance(host, str) for host in hosts):
            self.remark(statement, "the role or its hosts are not known; write them into `hosts` of the stage")
            return
        for host in hosts:
            self.add_host(str(host), {"roles": [str(values[0])], **self.properties(call, 2)}, statement)

    def properties(self, call: Call, after: int) -> dict[str, Any]:
        found = options_of(call.options, self.scope)
        for value in flattened_once(call.args[after:], self.scope):
            found |= value if isinstance(value, dict) else {}
        return {str(key): value for key, value in found.items()}

    def add_host(self, text: str, properties: dict[str, Any], statement: Statement) -> None:
        user, name, port = _host_parts(text)
        given = properties.pop("port", None)
        port = given if type(given) is int else int(given) if isinstance(given, str) and given.isdecimal() else port
        found = self.recipe.servers.setdefault(
            (name, port), Server(name, self.place(statement), statement.text, port=port)
        )
        user = text_of(properties.pop("user", user)) if known(properties.get("user", "")) else user
        found.user = user or found.user
        roles = properties.pop("roles", properties.pop("role", []))
        for role in roles if isinstance(roles, list) else [roles]:
            if isinstance(role, str) and str(role) not in found.roles:
                found.roles.append(str(role))
        found.properties |= properties

    # plugins

    def require(self, call: Call, statement: Statement) -> None:
        name = self.key_of(call)
        if name is not None:
            self.recipe.plugins.setdefault(name, (self.place(statement), statement.text))

    def install_plugin(self, call: Call, statement: Statement) -> None:
        path = _constant_path(call.args[0]) if call.args else ""
        if path:
            self.recipe.plugins.setdefault(path, (self.place(statement), statement.text))
        else:
            self.remark(statement, "which plugin it is, is not known")

    # tasks

    def namespace(self, call: Call, statement: Statement) -> None:
        name = self.key_of(call)
        if name is None or call.block is None:
            self.remark(statement, _advice_for(statement))
            return
        before = self.namespaces
        self.namespaces = (*before, name)
        self.all(call.block.body)
        self.namespaces = before

    def desc(self, call: Call, statement: Statement) -> None:
        self.description = self.key_of(call) or ""

    def task(self, call: Call, statement: Statement) -> None:
        options = options_of(call.options, self.scope)
        name = self.key_of(call) or next((str(key) for key in options if isinstance(key, str)), None)
        if name is None:
            self.remark(statement, "the name of the task is not known; write it in deploy.py")
            return
        wanted = [value for value in options.values() for value in (value if isinstance(value, list) else [value])]
        full = ":".join((*self.namespaces, name))
        needs = tuple(str(one) for one in wanted if isinstance(one, str))
        task = Task(full, self.description, self.place(statement), statement.text, call.block, needs)
        self.description = ""
        self.recipe.tasks[full] = task

    def hook(self, call: Call, statement: Statement) -> None:
        values = flattened_once(call.args, self.scope)
        options = [str(key) for key in options_of(call.options, self.scope) if isinstance(key, str)]
        names = [str(value) for value in values if isinstance(value, str)] + options
        if len(names) < (1 if call.block else 2):
            self.remark(statement, "what it runs, or when, is not known; write a [[hooks]] table")
            return
        point, *tasks = names
        task = tasks[0] if tasks else f"{call.name}_{point}"
        place = self.place(statement)
        if call.block is not None:
            task = ":".join((*self.namespaces, task)) if call.name == "after" or self.namespaces else task
            self.recipe.tasks[task] = Task(task, "", place, statement.text, call.block)
        self.recipe.hooks.append(Hook(call.name, point, task, self.namespaces, place, statement.text))

    def load(self, call: Call, statement: Statement) -> None:
        name = self.key_of(call)
        if name is not None:
            self.recipe.loads.setdefault(name, (self.place(statement), statement.text))

    def pass_over(self, call: Call, statement: Statement) -> None:
        pass


def _host_parts(text: str) -> tuple[str, str, int | None]:
    """user, name, port of `user@host:port`."""
    user, _, rest = text.strip().rpartition("@")
    name, colon, port = rest.rpartition(":")
    if colon and port.isdecimal() and len(port) < 6 and (":" not in name or name.endswith("]")):
        return user, name, int(port)
    return user, rest, None


def _constant_path(node: Node | None) -> str:
    """`Capistrano::Puma::Systemd` as text."""
    if not isinstance(node, Call) or node.args or node.options or node.block:
        return ""
    if node.receiver is None:
        return node.name if node.name[:1].isupper() else ""
    before = _constant_path(node.receiver)
    return f"{before}::{node.name}" if before else ""


def _is_import(node: Node | None) -> bool:
    return isinstance(node, Call) and node.receiver is None and node.name in ("import", "load", "require")


def _is_harmless(node: Node | None) -> bool:
    """Output, and comments' cousins: nothing is lost with them."""
    return isinstance(node, Call) and node.receiver is None and node.name in ("puts", "p", "warn", "info")


def _advice_for(statement: Statement) -> str:
    text = statement.text
    if "command_map" in text:
        return "write the commands in full in midstream.toml (`bundle exec …`)"
    if text.startswith("Rake::Task"):
        return "built-in steps are not switched off one by one; leave the step out of midstream.toml"
    if text.startswith(("SSHKit", "Airbrussh")):
        return "it configures Capistrano itself; Midstream has no such part"
    if text.startswith(("def ", "class ", "module ")):
        return "Ruby code; write in Python in deploy.py what is still needed"
    return "it is not understood; write by hand what is still needed, as keys, [[hooks]] or in deploy.py"


_VERBS: Mapping[str, Callable[[_Reader, Call, Statement], None]] = {
    "set": _Reader.set,
    "set_if_empty": _Reader.set,
    "append": _Reader.append,
    "remove": _Reader.append,
    "delete": _Reader.delete,
    "ask": _Reader.ask,
    "server": _Reader.server,
    "role": _Reader.role,
    "require": _Reader.require,
    "require_relative": _Reader.load,
    "install_plugin": _Reader.install_plugin,
    "namespace": _Reader.namespace,
    "desc": _Reader.desc,
    "task": _Reader.task,
    "before": _Reader.hook,
    "after": _Reader.hook,
    "lock": _Reader.pass_over,
    "import": _Reader.load,
    "load": _Reader.load,
}
