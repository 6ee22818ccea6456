"""Recognises Django, and WSGI and ASGI apps of any framework, in a Python project. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from midstream.deploy.scaffold import python_source as source
from midstream.deploy.scaffold.django import recognise_django
from midstream.deploy.scaffold.draft import Draft, Line, ServiceDraft, Setting, answer_of, any_answer
from midstream.deploy.scaffold.python_packages import packages_of
from midstream.deploy.scaffold.python_web import NO_LIST, asgi_server, dotenv_of, listen, server_command
from midstream.deploy.scaffold.python_workers import workers_of
from midstream.deploy.scaffold.tree import Tree

# framework class -> (name, whether it is ASGI, the package it comes from)
FRAMEWORKS = {
    "Flask": ("Flask", False, "flask"),
    "Bottle": ("Bottle", False, "bottle"),
    "Dash": ("Dash", False, "dash"),
    "make_wsgi_app": ("Pyramid", False, "pyramid"),
    "FastAPI": ("FastAPI", True, "fastapi"),
    "Starlette": ("Starlette", True, "starlette"),
    "Quart": ("Quart", True, "quart"),
    "Litestar": ("Litestar", True, "litestar"),
    "BlackSheep": ("BlackSheep", True, "blacksheep"),
    "Application": ("BlackSheep", True, "blacksheep"),
}
_LIKELY_FILES = ("wsgi", "asgi", "app", "application", "main", "server", "api", "run", "__init__")
_FACTORIES = ("create_app", "make_app", "app_factory", "get_app")
_NOT_THE_APP = re.compile(
    r"(^|/)(tests?|docs?|examples?|migrations|alembic|scripts)/|(^|/)(test_[^/]*|conftest|setup)\.py$"
)


@dataclass(frozen=True, slots=True)
class App:
    """A WSGI or ASGI callable. module: dotted; attribute: `app`, or what makes it when `factory`. path: of the file.
    folder: where the module's path begins ("" or "src")."""

    framework: str
    package: str
    asgi: bool
    module: str
    attribute: str
    factory: bool
    path: str
    folder: str


def recognise(tree: Tree) -> Draft | None:
    """The draft of a Python web app; None when there is none."""
    django = recognise_django(tree)
    if django is not None:
        return django
    app = find_app(tree)
    return _draft(tree, app) if app is not None else None


def find_app(tree: Tree) -> App | None:
    """The app that a server would be started with: in a file named for it before others, near the top before deep."""
    candidates = [path for path, _ in tree.under("", ".py") if not _NOT_THE_APP.search(path)]
    candidates.sort(key=_rank)
    found = [app for path in candidates if (app := _app_in(tree, path)) is not None]
    return next((app for app in found if not app.factory), found[0] if found else None)


def _rank(path: str) -> tuple[int, int, str]:
    stem = path.rpartition("/")[2].removesuffix(".py")
    likely = _LIKELY_FILES.index(stem) if stem in _LIKELY_FILES else len(_LIKELY_FILES)
    return (path.removeprefix("src/").count("/"), likely, path)


def _app_in(tree: Tree, path: str) -> App | None:
    text = tree.text(path)
    module = source.parse(text)
    for name, value in module.assigned.items():
        kind = source.called(value)
        framework = FRAMEWORKS.get(kind)
        if framework and _imports(text, framework[2]):
            attribute = f"{name}.server" if kind == "Dash" else name
            return _app(framework, path, attribute, factory=False)
        if kind in _FACTORIES and name in ("app", "application"):
            return _app(_framework_of(tree), path, name, factory=False)
    for name, function in module.functions.items():
        arguments = [argument.arg for argument in function.args.args]
        if len(arguments) == 2 and arguments[1] == "start_response":
            return _app(("WSGI", False, ""), path, name, factory=False)
        if arguments == ["scope", "receive", "send"]:
            return _app(("ASGI", True, ""), path, name, factory=False)
        if name in _FACTORIES and source.needs_no_arguments(function):
            framework = next((one for one in FRAMEWORKS.values() if _imports(text, one[2])), None)
            if framework:
                return _app(framework, path, name, factory=True)
    return None


def _imports(text: str, package: str) -> bool:
    return re.search(rf"^\s*(from|import)\s+{re.escape(package)}\b", text, re.MULTILINE) is not None


def _framework_of(tree: Tree) -> tuple[str, bool, str]:
    for _, text in tree.under("", ".py"):
        for framework in FRAMEWORKS.values():
            if _imports(text, framework[2]):
                return framework
    return ("WSGI", False, "")


def _app(framework: tuple[str, bool, str], path: str, attribute: str, *, factory: bool) -> App:
    folder = "src" if path.startswith("src/") else ""
    parts = path.removeprefix("src/").removesuffix(".py").split("/")
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    name, asgi, package = framework
    return App(name, package, asgi, ".".join(parts), attribute, factory, path, folder)


def _draft(tree: Tree, app: App) -> Draft:
    packages = packages_of(tree)
    cwd = (Setting("cwd", f'"{app.folder}"', "where its modules begin"),) if app.folder else ()
    text = tree.text(app.path)
    server = asgi_server(packages.names) if app.asgi else "gunicorn"
    command = server_command(tree, server, app.module, app.attribute, factory=app.factory)
    web = ServiceDraft(
        "web", command, (listen(server), *cwd, answer_of(_route(text)) if _route(text) else any_answer())
    )
    missing = (server,) if packages.listed or not app.package else (app.package, server)
    linked_files, settings = dotenv_of(tree)
    return Draft(
        f"a {app.framework} app",
        (web, *workers_of(tree, packages.names, app.folder, cwd, django=False)),
        path=(".venv/bin",),
        build=packages.build(*missing),
        build_env=packages.env,
        migrate=_migration(tree, app, packages.names),
        console=f"flask --app {app.module}:{app.attribute} shell" if app.framework == "Flask" else "",
        linked_dirs=("instance",) if _uses_instance(tree, text, packages.names) and not app.folder else (),
        linked_files=linked_files,
        settings=settings,
        notes=() if packages.listed else (NO_LIST,),
    )


def _uses_instance(tree: Tree, text: str, names: frozenset[str]) -> bool:
    """Whether Flask's instance folder holds data; Flask-SQLAlchemy puts relative SQLite files there."""
    if "instance_path" in text or "instance_relative_config" in text:
        return True
    return "flask-sqlalchemy" in names and any("sqlite:///" in other for _, other in tree.under("", ".py"))


def _route(text: str) -> str:
    """A path that says whether the app is well, when it has one of a usual name."""
    match = re.search(
        r"""[(\s]["'](/(?:up|health|healthz|health_?check|livez|readyz|ping|status|_health)/?)["']""", text
    )
    return match[1] if match else ""


def _migration(tree: Tree, app: App, names: frozenset[str]) -> Line | None:
    registered = any("Migrate(" in text or "migrate.init_app(" in text for _, text in tree.under("", ".py"))
    if "flask-migrate" in names and registered and tree.has("migrations/env.py"):
        call = f"{app.module}:{app.attribute}"
        return Line(f"flask --app {call} db upgrade")
    if tree.has("alembic.ini"):
        return Line("alembic upgrade head")
    return None
