"""Recognises a Node project by its package.json. Pure."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from midstream.deploy.scaffold.draft import Draft, Line, ServiceDraft, Setting, any_answer
from midstream.deploy.scaffold.foreign import command as command_of
from midstream.deploy.scaffold.foreign import plain
from midstream.deploy.scaffold.tree import Tree

_ENTRIES = (
    "server.js",
    "app.js",
    "index.js",
    "src/server.js",
    "src/index.js",
    "dist/index.js",
    "server.mjs",
    "index.mjs",
)
_TAKES_LISTENER = re.compile(r"LISTEN_FDS|listen\(\s*\{\s*fd\b")
_TAKE = (
    "this app binds its port by itself, so the old process is stopped before the new one starts and requests fail in "
    "between. To lose none, let it take the listener: `server.listen(process.env.LISTEN_FDS ? { fd: 3 } : port)`, then "
    "run `midstream init --force` again"
)


def recognise(tree: Tree) -> Draft | None:
    """The draft of a Node app; None without a package.json that says what to start, or a file of a usual name."""
    package = _package(tree)
    if package is None:
        return None
    scripts = _table(package.get("scripts"))
    command = _start(tree, package, scripts)
    if command is None:
        return None
    web, notes = _web(tree, command)
    return Draft(
        "a Node app",
        (web,),
        path=("node_modules/.bin",),
        variables=(Setting("NODE_ENV", '"production"'),),
        build=_build(tree, package, scripts),
        migrate=_migration(tree, package),
        linked_files=(".env",) if tree.is_left_out(".env") else (),
        notes=notes,
    )


def _package(tree: Tree) -> dict[str, Any] | None:
    try:
        package = json.loads(tree.text("package.json") or "null")
    except ValueError:
        return None
    return package if isinstance(package, dict) else None


def _table(value: object) -> dict[str, str]:
    items = value.items() if isinstance(value, dict) else ()
    return {key: item for key, item in items if isinstance(item, str)}


def _start(tree: Tree, package: dict[str, Any], scripts: dict[str, str]) -> str | None:
    """The command itself rather than `npm start`: npm would stand between the agent and the server."""
    start = plain(scripts.get("start", ""))
    if start:
        return start
    main = package.get("main")
    entry = tree.first(*((main.removeprefix("./"),) if isinstance(main, str) else ()), *_ENTRIES)
    return plain(f"node {shlex.quote(entry)}") if entry else None


def _web(tree: Tree, command: str) -> tuple[ServiceDraft, tuple[str, ...]]:
    texts = [text for suffix in (".js", ".mjs", ".cjs", ".ts") for _, text in tree.under("", suffix)]
    command, shell = command_of(command)
    if any(_TAKES_LISTENER.search(text) for text in texts):
        listen = Setting(
            "listen", '"tcp://127.0.0.1:3000"', "held open from release to release; the app gets it as fd 3"
        )
        return ServiceDraft("web", command, (*shell, listen, any_answer())), ()
    port = _port(texts)
    settings = (
        *shell,
        Setting("env", f'{{ PORT = "{port}" }}', "it binds the port by itself, so ..."),
        Setting("handover", '"replace"', "... two cannot run at once: the old one is stopped first, which is noticed"),
        _health(port),
    )
    return ServiceDraft("web", command, settings), (_TAKE,)


def _port(texts: list[str]) -> int:
    if any("process.env.PORT" in text for text in texts):
        return 3000
    for text in texts:
        match = re.search(r"\.listen\(\s*(\d{2,5})\b", text)
        if match and 0 < int(match[1]) < 65536:
            return int(match[1])
    return 3000


def _health(port: int) -> Setting:
    script = (
        f"require('http').get('http://127.0.0.1:{port}/', r => process.exit(r.statusCode < 500 ? 0 : 1))"
        ".on('error', () => process.exit(1))"
    )
    return Setting("health", f'{{ command = ["node", "-e", "{script}"] }}', "any answer that is no error of the server")


def _build(tree: Tree, package: dict[str, Any], scripts: dict[str, str]) -> tuple[Line, ...]:
    lines = []
    development = "build" in scripts
    if tree.has("pnpm-lock.yaml"):
        lines.append(Line(f"pnpm install --frozen-lockfile{' --prod=false' if development else ' --prod'}"))
    elif tree.has("yarn.lock"):
        modern = tree.has(".yarnrc.yml")
        lines.append(
            Line(
                "yarn install --immutable"
                if modern
                else f"yarn install --frozen-lockfile --production={str(not development).lower()}"
            )
        )
    elif tree.has("package-lock.json") or tree.has("npm-shrinkwrap.json"):
        lines.append(Line(f"npm ci {'--include=dev' if development else '--omit=dev'}"))
    elif package.get("dependencies") or (development and package.get("devDependencies")):
        lines.append(
            Line(
                f"npm install --no-save {'--include=dev' if development else '--omit=dev'}", "no lock file: commit one"
            )
        )
    if development:
        lines.append(Line("npm run build"))
    return tuple(lines)


def _migration(tree: Tree, package: dict[str, Any]) -> Line | None:
    needed = {**_table(package.get("dependencies")), **_table(package.get("devDependencies"))}
    if "prisma" in needed and tree.has_folder("prisma/migrations"):
        return Line("prisma migrate deploy")
    if "knex" in needed and tree.first("knexfile.js", "knexfile.ts", "knexfile.mjs"):
        return Line("knex migrate:latest")
    if "sequelize-cli" in needed and tree.has_folder("migrations"):
        return Line("sequelize-cli db:migrate")
    return None
