"""Recognises Rails and other Rack apps, and the workers beside them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from midstream.deploy.scaffold.draft import DRAIN, Draft, Line, ServiceDraft, Setting, answer_of, any_answer
from midstream.deploy.scaffold.tree import Tree

_GEM = re.compile(r"""^\s*gem\s*\(?\s*["']([A-Za-z0-9_-]+)["']""", re.MULTILINE)
_LOCKED = re.compile(r"^ {4}([A-Za-z0-9_-]+) \(", re.MULTILINE)
_SHARED_DIRS = ("log", "storage", "tmp/cache", "tmp/pids", "public/uploads", "public/system")
_SHARED_FILES = ("config/master.key", "config/credentials/production.key", "config/database.yml", ".env")


def recognise(tree: Tree) -> Draft | None:
    """The draft of a Rails or Rack app; None without a Gemfile and a config.ru."""
    if not tree.has("Gemfile") or not tree.has("config.ru"):
        return None
    gems = frozenset(_GEM.findall(tree.text("Gemfile"))) | frozenset(_LOCKED.findall(tree.text("Gemfile.lock")))
    rails = tree.has("config/application.rb")
    server = "unicorn" if "unicorn" in gems and "puma" not in gems else "puma"
    variables = (
        Setting("RAILS_ENV" if rails else "RACK_ENV", '"production"'),
        *((Setting("RAILS_LOG_TO_STDOUT", '"1"', "the agent keeps what it prints"),) if rails else ()),
    )
    return Draft(
        "a Rails app" if rails else "a Rack app",
        (_web(tree, server, rails), *_workers(gems)),
        variables=variables,
        build=tuple(_build(tree, gems, rails)),
        build_env=(("SECRET_KEY_BASE_DUMMY", "1"),) if rails else (),
        migrate=Line("bundle exec rails db:migrate") if rails and tree.has_folder("db/migrate") else None,
        console="bundle exec rails console" if rails else "",
        linked_dirs=tuple(_linked_dirs(tree, rails)),
        linked_files=tuple(path for path in _SHARED_FILES if tree.is_left_out(path)),
        notes=tuple(_notes(tree, gems, server)),
    )


def _web(tree: Tree, server: str, rails: bool) -> ServiceDraft:
    config = f"config/{server}.rb"
    option = f" {'-C' if server == 'puma' else '-c'} {config}" if tree.has(config) else ""
    listen = Setting("listen", '"tcp://127.0.0.1:3000"', f"held open from release to release; {server} gets it")
    return ServiceDraft("web", f"bundle exec {server}{option}", (listen, _health(tree, rails)))


def _health(tree: Tree, rails: bool) -> Setting:
    production = _uncommented(tree.text("config/environments/production.rb"))
    https = re.search(r"config\.force_ssl\s*=\s*true", production) is not None
    allowed = re.search(r"""config\.hosts\s*(?:<<|=\s*\[)\s*["']([A-Za-z0-9.-]+)["']""", production)
    host = allowed[1].lstrip(".") if allowed else ""
    routes = _uncommented(tree.text("config/routes.rb"))
    own = re.search(r"""get\s+["']/?(up|health|healthz|ping|status)["']""", routes if rails else tree.text("config.ru"))
    return answer_of(f"/{own[1]}", host, https) if own else any_answer(host, https)


def _uncommented(text: str) -> str:
    return re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)


def _build(tree: Tree, gems: frozenset[str], rails: bool) -> Iterator[Line]:
    yield Line("bundle config set --local path {shared}/bundle", "gems stay where old releases find them")
    yield Line("bundle config set --local without development:test")
    if tree.has("Gemfile.lock"):
        yield Line("bundle config set --local deployment true")
    yield Line("bundle install --jobs 4")
    if rails and (tree.has_folder("app/assets") or gems & {"sprockets-rails", "propshaft"}):
        yield Line("bundle exec rails assets:precompile")


def _linked_dirs(tree: Tree, rails: bool) -> Iterator[str]:
    ignored = tree.text(".gitignore")
    for path in _SHARED_DIRS if rails else ():
        if path in ("log", "tmp/cache", "tmp/pids") or tree.has_folder(path) or f"/{path}" in ignored:
            yield path


def _workers(gems: frozenset[str]) -> Iterator[ServiceDraft]:
    if "sidekiq" in gems:
        limit = Setting(
            "drain_timeout", '"30s"', "5 s above sidekiq's own time-out, after which jobs go back to the queue"
        )
        yield ServiceDraft("jobs", "bundle exec sidekiq", (DRAIN, limit))
    elif "resque" in gems:
        limit = Setting("drain_timeout", '"10m"', "longer than the longest job")
        settings = (
            Setting("env", '{ QUEUE = "*" }'),
            DRAIN,
            Setting("stop_signal", '"QUIT"', "finishes its job"),
            limit,
        )
        yield ServiceDraft("jobs", "bundle exec rake resque:work", settings)
    elif "good_job" in gems:
        yield ServiceDraft("jobs", "bundle exec good_job start", (DRAIN, Setting("drain_timeout", '"10m"')))
    elif "solid_queue" in gems:
        yield ServiceDraft("jobs", "bundle exec rake solid_queue:start", (DRAIN, Setting("drain_timeout", '"10m"')))


def _notes(tree: Tree, gems: frozenset[str], server: str) -> Iterator[str]:
    if server not in gems:
        yield f'no server was found among the gems: add `gem "{server}"` to the Gemfile'
    if not tree.has("Gemfile.lock"):
        yield "there is no Gemfile.lock: commit one, so that every release has the same gems"
    if tree.has("config/database.yml") and "sqlite3" in tree.text("config/database.yml"):
        yield "the database may be a SQLite file inside the release: put it in a linked folder such as storage/"
