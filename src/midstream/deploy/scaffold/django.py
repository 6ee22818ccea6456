"""Recognises a Django project by its manage.py and reads its settings without running them. Pure."""

from __future__ import annotations

import ast
import copy
import dataclasses
import re
from dataclasses import dataclass

from midstream.deploy.scaffold import python_source as source
from midstream.deploy.scaffold.draft import Draft, Line, ServiceDraft, Setting, answer_of, any_answer
from midstream.deploy.scaffold.python_packages import Packages, packages_of
from midstream.deploy.scaffold.python_web import NO_LIST, asgi_server, dotenv_of, listen, server_command
from midstream.deploy.scaffold.python_workers import workers_of
from midstream.deploy.scaffold.tree import Tree

_SETTINGS = re.compile(r"DJANGO_SETTINGS_MODULE[\"']\s*,\s*[\"']([A-Za-z0-9_.]+)[\"']")
_GENERATED = re.compile(r"using Django (\d+\.\d+(?:\.\d+)?)")
_PRODUCTION = ("production", "prod", "live", "deploy")
_WELL = re.compile(
    r"""path\(\s*r?["']\^?((?:up|health|healthz|health_?check|livez|readyz|ping|status|_health|ht)/?)\$?["']"""
)
_IN_ASGI = frozenset({"channels", "daphne", "django-channels"})


@dataclass(frozen=True, slots=True)
class Project:
    """folder: of manage.py, "" at the top. settings: the module. assigned: what its files assign, later files winning.
    text: of all of them."""

    folder: str
    settings: str
    assigned: dict[str, ast.expr]
    text: str

    def place(self, path: str) -> str:
        return f"{self.folder}/{path}" if self.folder else path

    def string(self, name: str) -> str:
        value = source.literal(self.assigned[name]) if name in self.assigned else None
        return value if isinstance(value, str) else ""

    def is_flag(self, name: str, value: bool) -> bool:
        """Whether the setting is written as just True, or just False."""
        return name in self.assigned and source.literal(self.assigned[name]) is value


def recognise_django(tree: Tree) -> Draft | None:
    """The draft of a Django project; None without a manage.py at the top or one folder below."""
    project = _project(tree)
    if project is None:
        return None
    packages = packages_of(tree)
    asgi = bool(_IN_ASGI & packages.names) and "ASGI_APPLICATION" in project.assigned
    server = asgi_server(packages.names) if asgi else "gunicorn"
    cwd = (Setting("cwd", f'"{project.folder}"', "where manage.py is"),) if project.folder else ()
    module, attribute = _entry(tree, project, asgi)
    command = server_command(tree, server, module, attribute)
    web = ServiceDraft("web", command, (listen(server), *cwd, _health(tree, project)))
    linked_files, settings = dotenv_of(tree)
    database = _sqlite(project)
    return Draft(
        "a Django project",
        (web, *workers_of(tree, packages.names, project.folder, cwd, django=True)),
        path=(".venv/bin",),
        variables=(Setting("DJANGO_SETTINGS_MODULE", f'"{project.settings}"'),),
        build=_build(tree, project, packages, server, database),
        build_env=packages.env,
        migrate=Line(f"python {project.place('manage.py')} migrate --noinput"),
        console=f"python {project.place('manage.py')} shell",
        linked_dirs=_media(project),
        linked_files=linked_files,
        settings=settings,
        notes=(*(() if packages.listed else (NO_LIST,)), *_notes(tree, project, database)),
    )


def _project(tree: Tree) -> Project | None:
    manage = next(iter((*tree.matching("manage.py"), *tree.matching("*/manage.py"))), None)
    if manage is None or "django" not in tree.text(manage).lower():
        return None
    folder = manage.rpartition("/")[0]
    named = _SETTINGS.search(tree.text(manage))
    if named is None:
        return None
    settings = named[1]
    package = f"{folder}/" * bool(folder) + settings.replace(".", "/")
    for name in _PRODUCTION:
        if tree.has(f"{package}/{name}.py"):
            settings = f"{settings}.{name}"
        elif (
            "." in settings
            and tree.has(f"{package.rpartition('/')[0]}/{name}.py")
            and "settings" in package.split("/")[:-1]
        ):
            settings = f"{settings.rpartition('.')[0]}.{name}"
        else:
            continue
        break
    texts = _texts(tree, folder, settings)
    assigned: dict[str, ast.expr] = {}
    for text in texts:
        assigned |= source.parse(text).assigned
    return Project(folder, settings, assigned, "\n".join(texts))


def _texts(tree: Tree, folder: str, settings: str) -> list[str]:
    """The texts of the settings, what they are built on first: `base.py` before `production.py`."""
    prefix = f"{folder}/" if folder else ""
    path = prefix + settings.replace(".", "/")
    if tree.has(f"{path}.py"):
        package = path.rpartition("/")[0]
        bases = [f"{package}/{name}.py" for name in ("__init__", "base", "common", "defaults")]
        bases = bases if "settings" in package.split("/") else []
        return [tree.text(one) for one in (*bases, f"{path}.py") if tree.text(one)]
    return [
        tree.text(f"{path}/{name}.py")
        for name in ("base", "common", "defaults", "__init__")
        if tree.has(f"{path}/{name}.py")
    ]


def _entry(tree: Tree, project: Project, asgi: bool) -> tuple[str, str]:
    """Module and attribute of the app, from the settings, else from the file beside them."""
    named = project.string("ASGI_APPLICATION" if asgi else "WSGI_APPLICATION")
    if "." in named and all(part.isidentifier() for part in named.split(".")):
        module, _, attribute = named.rpartition(".")
        return module, attribute
    kind = "asgi" if asgi else "wsgi"
    prefix = f"{project.folder}/" if project.folder else ""
    for path in (*tree.matching(f"{prefix}*/{kind}.py"), *tree.matching(f"{prefix}{kind}.py")):
        return path.removeprefix(prefix).removesuffix(".py").replace("/", "."), "application"
    return f"{project.settings.split('.')[0]}.{kind}", "application"


def _build(tree: Tree, project: Project, packages: Packages, server: str, database: str) -> tuple[Line, ...]:
    generated = _GENERATED.search(project.text)
    django = f"Django~={generated[1]}" if generated else "Django"
    lines = list(packages.build(server) if packages.listed else packages.build(f"'{django}'", server))
    if database:
        lines.append(
            Line(f"ln -sfn {{shared}}/{database.rpartition('/')[2]} {database}", "the data stay when releases change")
        )
    if "STATIC_ROOT" in project.assigned:
        lines.append(Line(f"python {project.place('manage.py')} collectstatic --noinput"))
    return tuple(lines)


def _inside(project: Project, expression: ast.expr) -> str:
    """The path inside the project that an expression such as `BASE_DIR / "a" / "b"` means; "" where it is elsewhere."""
    known = _Defaults().visit(copy.deepcopy(expression))
    parts = [part for text in source.strings(known) for part in text.split("/")]
    if not parts or parts[0] == "" or ".." in parts or any(not re.fullmatch(r"[\w.-]*", part) for part in parts):
        return ""
    named = [part for part in parts if part not in ("", ".")]
    return project.place("/".join(named)) if named else ""  # "." is the project itself, which is no folder in it


class _Defaults(ast.NodeTransformer):
    """Puts what counts where a variable is not set in the place of asking for it; an absolute path where that is not known."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if source.called(node) not in ("get", "getenv", "config", "env", "str", "path"):
            return node
        given = [key.value for key in node.keywords if key.arg == "default"] + node.args[1:2]
        return given[0] if given else node if source.called(node) == "str" else self._elsewhere(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return self._elsewhere(node)

    def _elsewhere(self, node: ast.expr) -> ast.AST:
        return ast.copy_location(ast.Constant("/"), node)


def _media(project: Project) -> tuple[str, ...]:
    place = _inside(project, project.assigned["MEDIA_ROOT"]) if "MEDIA_ROOT" in project.assigned else ""
    return (place,) if place else ()


def _sqlite(project: Project) -> str:
    """The path of a SQLite database inside the project; "" where the database is none or elsewhere."""
    databases = project.assigned.get("DATABASES")
    if not isinstance(databases, ast.Dict):
        return ""
    for database in databases.values:
        if not isinstance(database, ast.Dict):
            continue
        settings = {
            key.value: value
            for key, value in zip(database.keys, database.values, strict=True)
            if isinstance(key, ast.Constant)
        }
        engine, name = settings.get("ENGINE"), settings.get("NAME")
        if engine is not None and name is not None and any("sqlite3" in text for text in source.strings(engine)):
            return _inside(project, name)
    return ""


def _health(tree: Tree, project: Project) -> Setting:
    urls = project.string("ROOT_URLCONF").replace(".", "/")
    match = _WELL.search(tree.text(project.place(f"{urls}.py")))
    host, allowed = _host(project)
    https = _behind_https(project)
    if not allowed:
        check = any_answer(host, https, (400,))
        known = f"400: the Host is not allowed; add host = one of ALLOWED_HOSTS and take 400 out. {check.comment}"
        return dataclasses.replace(check, comment=known)
    return answer_of(f"/{match[1]}", host, https) if match else any_answer(host, https)


def _host(project: Project) -> tuple[str, bool]:
    """A Host header that the settings allow ("" for the listener's own address), and whether one is known at all."""
    hosts = source.literal(project.assigned["ALLOWED_HOSTS"]) if "ALLOWED_HOSTS" in project.assigned else []
    if not isinstance(hosts, list | tuple) or not all(isinstance(one, str) for one in hosts):
        return "", False
    if "*" in hosts or "127.0.0.1" in hosts:
        return "", True
    if not hosts:
        return "", project.is_flag("DEBUG", True)  # Django allows localhost then, and nothing otherwise
    host = hosts[0].removeprefix("*").removeprefix(".").rstrip(".")
    return (host, True) if re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", host) else ("", False)


def _behind_https(project: Project) -> bool:
    """Whether plain requests would be redirected to https unless a proxy says that they came by it."""
    redirects = "SECURE_SSL_REDIRECT" in project.assigned and not project.is_flag("SECURE_SSL_REDIRECT", False)
    header = project.assigned.get("SECURE_PROXY_SSL_HEADER")
    return redirects and header is not None and "HTTP_X_FORWARDED_PROTO" in source.strings(header)


def _notes(tree: Tree, project: Project, database: str) -> tuple[str, ...]:
    notes = []
    if database:
        notes.append(
            f"the database is the SQLite file {database}: releases are linked to one in shared/, which starts empty"
        )
    if project.is_flag("DEBUG", True):
        notes.append(f"{project.settings} has DEBUG = True: fine to try it out, not for others to see")
    if "STATIC_URL" in project.assigned and "STATIC_ROOT" not in project.assigned:
        notes.append("STATIC_ROOT is not set, so static files are not collected; with DEBUG = False nobody serves them")
    return tuple(notes)
