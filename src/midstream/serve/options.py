"""From a command line, the environment and a TOML file to Settings: command line > environment > file > default.

All that is wrong is told at once, with the nearest name that there is. What must not live here: which settings there
are (`settings.py`), how a value is read (`setting_values.py`), what is done then (`program.py`). Runs in the master, at
its start and again at each upgrade, and in the zygote where that is alone; standard library only.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import midstream
from midstream.errors import OperatorError
from midstream.serve import setting_values, settings_checks
from midstream.serve.foreign_options import INSTEAD, PASSED_OVER
from midstream.serve.settings import ENVIRONMENT_PREFIX, TABLE, Group, Kind, Setting, Settings

_BY_NAME = {setting.name: setting for setting in TABLE}
# Names in a TOML file: ours, that of the attribute, gunicorn's.
_BY_KEY = {
    **{setting.gunicorn: setting for setting in TABLE if setting.gunicorn},
    **{setting.name: setting for setting in TABLE},
    **{setting.key: setting for setting in TABLE},
}
# Set by the server itself, for its own processes.
_OWN_VARIABLES = frozenset((ENVIRONMENT_PREFIX + "GENERATION", ENVIRONMENT_PREFIX + "MASTER"))

DESCRIPTION = (
    "Serve a WSGI or ASGI app from forked workers. HUP or USR2 is a verified upgrade to the code that --chdir then leads "
    "to: the old workers go when the new ones are proven, and stay when they are not. TERM and QUIT end it gracefully."
)
EXAMPLES = (
    "midstream serve shop.wsgi:application --workers 4",
    "midstream serve shop.asgi:app --bind unix:/run/shop.sock --chdir /srv/shop/current",
    "midstream serve shop.wsgi -c serve.toml --check",
    "midstream serve --ask reload --bind unix:/run/shop.sock",
    "midstream serve --ask status --json | jq .generations",
)
EXITS = {
    0: "done: ended as it was told to; the check found nothing; the upgrade serves",
    1: "it could not start, or the upgrade was refused: the old release serves",
    2: "wrong usage or configuration, or --check found something",
    3: "--ask: nothing runs there",
    70: "a bug of Midstream",
}


class Action(enum.Enum):
    SERVE = "serve"
    CHECK = "check"
    PRINT = "print the settings"
    ASK = "ask the server that runs"


@dataclass(frozen=True, slots=True)
class Invocation:
    """What was asked for. sources: name of a setting -> where its value came from; those not in it have their default.
    asked: for ASK, `reload` or `status`. notes: to be shown as warnings."""

    settings: Settings
    action: Action = Action.SERVE
    asked: str = ""
    as_json: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Found:
    """Values as they came, until all places were read."""

    values: dict[str, tuple[object, str]] = field(default_factory=dict)  # name -> (raw value, where from)
    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def start_folder(environment: Mapping[str, str]) -> str:
    """The working folder as the operator named it: $PWD keeps the symlink `current`, getcwd(2) does not."""
    said = environment.get("PWD", "")
    try:
        if said.startswith("/") and os.path.samefile(said, "."):
            return said
    except OSError:
        pass
    return os.getcwd()


def read(argv: Sequence[str], environment: Mapping[str, str], folder: str) -> Invocation:
    """argv: what stands behind `midstream serve`. folder: `start_folder()`, what relative paths are of.

    Raises OperatorError that lists all mistakes; SystemExit(0) for --help and --version, which it has then printed."""
    found = _Found()
    known = _parse(argv, found)
    _of_command_line(known, found)
    _of_environment(environment, found)
    if known.config:
        _of_file(os.path.join(folder, known.config), known.config, found)
    elif os.path.exists(os.path.join(folder, "gunicorn.conf.py")):
        found.notes.append("gunicorn.conf.py here is not run; docs/moving-from-gunicorn.md says what to write instead")
    action = _action(known)
    settings = _settings(found, folder, whole=action is not Action.ASK)
    if found.mistakes:
        raise _error(found.mistakes)
    if settings.reload and "linger_s" not in found.values:
        # Who just changed a file wants to see the new code, on the browser's old connection too.
        settings = replace(settings, linger_s=0.0)
        found.values["linger_s"] = ("0", "--reload")
    sources = {name: source for name, (_, source) in found.values.items()}
    notes = tuple(dict.fromkeys([*found.notes, *settings_checks.notes(settings)]))
    return Invocation(settings, action, known.ask or "", known.json, sources, notes)


class _Parser(argparse.ArgumentParser):
    """Its help ends as that of all other commands does."""

    def format_help(self) -> str:
        lines = [f"  {example}" for example in EXAMPLES]
        codes = [f"  {code:<4}{words}" for code, words in EXITS.items()]
        text = super().format_help().replace("usage:", "Usage:", 1)
        return "\n".join([text, _NAMES_EVERYWHERE, "", "Examples:", *lines, "", "Exit codes:", *codes, ""])


_NAMES_EVERYWHERE = """\
Each option is also a variable of the environment (MIDSTREAM_SERVE_WORKERS) and a key of the TOML file (workers = 4);
the command line counts most, the file least. TIME is seconds, or 90s, 1m30s; SIZE is bytes, or 64KB, 1GB.
All of it, the hooks and the signals: docs/serve.md."""


def parser() -> argparse.ArgumentParser:
    """All options, grouped as in the table; every value is left as text."""
    made = _Parser(
        prog="midstream serve",
        usage="midstream serve [OPTION ...] MODULE:NAME",
        description=DESCRIPTION,
        allow_abbrev=False,
        exit_on_error=False,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=_help_width()),
    )
    made.add_argument("words", nargs="*", metavar="MODULE:NAME", help=argparse.SUPPRESS)
    general = made.add_argument_group("General")
    general.add_argument("-h", "--help", action="help", help="show this and end")
    general.add_argument(
        "--version", action="version", version=f"midstream {midstream.__version__}", help="show the version and end"
    )
    general.add_argument("-c", "--config", metavar="FILE", help="TOML file with settings")
    general.add_argument(
        "--check", action="store_true", help="load the app, look at settings and machine, and end: 0 fine, 2 not"
    )
    general.add_argument("--print-config", action="store_true", help="print the settings as TOML, with their sources")
    general.add_argument(
        "--ask",
        choices=("reload", "status"),
        metavar="WHAT",
        help="reload or status: ask the server that has --bind; reload waits for the upgrade and exits 1 if it is refused",
    )
    general.add_argument("--json", action="store_true", help="with --check and --ask: answer in JSON")
    groups = {group: made.add_argument_group(group.value) for group in Group}
    for setting in TABLE:
        if setting.name != "app":
            _add_option(groups[setting.group], setting)
    for option, (takes, _) in PASSED_OVER.items():
        action = "append" if takes else "append_const"
        more: dict[str, Any] = {} if takes else {"const": ""}
        made.add_argument(option, dest="passed:" + option, action=action, help=argparse.SUPPRESS, **more)
    made.add_argument("-k", "--worker-class", dest="worker_class", help=argparse.SUPPRESS)
    return made


def _help_width() -> int:
    import shutil

    return min(110, shutil.get_terminal_size((100, 24)).columns - 2)


def _add_option(group: Any, setting: Setting) -> None:
    text = setting.help.replace("%", "%%") + _default_text(setting).replace("%", "%%")
    names = [name for name in setting.options if "_" not in name]
    if setting.kind is Kind.FLAG:
        group.add_argument(*names, dest=setting.name, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    metavar = "|".join(choice for choice in setting.choices if choice) or _METAVARS.get(setting.kind, "TEXT")
    action = "append" if setting.repeats else "store"
    group.add_argument(*names, dest=setting.name, action=action, default=None, metavar=metavar, help=text)
    hidden = [name for name in setting.options if "_" in name]
    if hidden:
        group.add_argument(*hidden, dest=setting.name, action=action, default=None, help=argparse.SUPPRESS)


_METAVARS = {
    Kind.WHOLE: "N",
    Kind.SECONDS: "TIME",
    Kind.SIZE: "SIZE",
    Kind.MODE: "MODE",
    Kind.PATH: "PATH",
    Kind.WITHIN: "PATH",
    Kind.OUTPUT: "FILE",
    Kind.BIND: "ADDRESS",
    Kind.BINDS: "ADDRESS",
    Kind.MANY_PATHS: "PATH",
    Kind.MANY_WITHIN: "PATH",
    Kind.STATUSES: "STATUS",
}


def _default_text(setting: Setting) -> str:
    shown = setting_values.show(setting, setting.default)
    return f" [{shown}]" if shown and setting.kind is not Kind.FLAG and setting.name != "chdir" else ""


def _parse(argv: Sequence[str], found: _Found) -> argparse.Namespace:
    try:
        known, extra = parser().parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise _error([_argparse_words(error)]) from None
    strange = [word for word in extra if word.startswith("-") and word != "-"]
    found.mistakes += [_strange_option(word) for word in strange]
    words = [*known.words, *(word for word in extra if not word.startswith("-"))]
    if len(words) > 1 and not strange:
        found.mistakes.append(f"one app is served, not {len(words)}: {' '.join(words)}")
    if strange:  # one of the words may be the value of such an option
        words = sorted(words, key=lambda word: ":" not in word)
    known.app = words[0] if words else None
    return known


def _argparse_words(error: argparse.ArgumentError) -> str:
    name = (error.argument_name or "").split("/")[-1]
    if "expected one argument" in error.message:
        return f"{name}: needs a value"
    return f"{name}: {error.message}"


def _strange_option(word: str) -> str:
    option = word.partition("=")[0]
    if option in INSTEAD:
        return f"{option} is not an option here: {INSTEAD[option]}"
    known = [name for setting in TABLE for name in setting.options if name.startswith("--")]
    known += ["--no-preload", "--no-reload", "--config", "--check", "--ask", "--print-config", "--help", "--version"]
    return f"there is no option {option}{_nearest(option, known)}"


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _of_command_line(known: argparse.Namespace, found: _Found) -> None:
    for setting in TABLE:
        value = getattr(known, setting.name, None)
        if value is not None:
            found.values[setting.name] = (value, _said(setting))
    for option, (_, why) in PASSED_OVER.items():
        if getattr(known, "passed:" + option, None) is not None:
            found.notes.append(f"{option} does nothing here: {why}")
    if known.worker_class:
        _worker_class(known.worker_class, found)


def _said(setting: Setting) -> str:
    if setting.name == "app":
        return "MODULE:NAME"
    return next(name for name in setting.options if name.startswith("--"))


def _worker_class(word: str, found: _Found) -> None:
    """gunicorn's -k: what it means for us is the interface and the number of threads."""
    where = f"--worker-class {word}"
    if word == "sync":
        found.values.setdefault("threads", ("1", where))
        found.notes.append(f"{where}: --threads 1, the app runs inline; without it there are 4 app threads")
    elif word in ("gthread", "gunicorn.workers.gthread.ThreadWorker"):
        found.notes.append(f"{where}: app threads are the default")
    elif "uvicorn" in word or word == "asgi":
        found.values.setdefault("interface", ("asgi", where))
    else:
        found.mistakes.append(
            f"{where}: there are app threads (--threads N) for WSGI, and ASGI apps on uvloop; no gevent, eventlet, tornado"
        )


def _of_environment(environment: Mapping[str, str], found: _Found) -> None:
    known = {setting.variable for setting in TABLE}
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known | _OWN_VARIABLES:
            found.notes.append(f"{name} in the environment is no setting{_nearest(name, known)}")
    for setting in TABLE:
        for name in (setting.variable, *setting.environment):
            if setting.name not in found.values and environment.get(name, "") != "":
                found.values[setting.name] = (environment[name], name)
    port = environment.get("PORT", "")
    if "bind" not in found.values and port.isdecimal():
        found.values["bind"] = (f"0.0.0.0:{port}", "PORT")


def _of_file(path: str, said: str, found: _Found) -> None:
    if path.endswith(".py"):
        found.mistakes.append(
            f"{said}: Python files are not run; write the settings as TOML (docs/moving-from-gunicorn.md)"
        )
        return
    try:
        with open(path, "rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        found.mistakes.append(f"--config {said}: {error.strerror}")
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found.mistakes.append(f"{said}: this is not TOML: {error}")
        return
    named: dict[str, str] = {}
    for key, value in _keys(data):
        setting = _BY_KEY.get(key.replace(".", "_").replace("-", "_"))
        if setting is None:
            found.mistakes.append(f"{said}: there is no key {key}{_nearest(key, [one.key for one in TABLE])}")
        elif setting.name in named:
            found.mistakes.append(f"{said}: {key} and {named[setting.name]} are the same setting")
        else:
            named[setting.name] = key
            found.values.setdefault(setting.name, (value, f"{said}: {key}"))


def _keys(data: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    """A table is a prefix, as in `[health] path = "/up"`, unless it is itself a value, as in `[env]`."""
    for key, value in data.items():
        if isinstance(value, dict) and key not in _BY_KEY:
            for inner, item in value.items():
                yield f"{key}.{inner}", item
        else:
            yield key, value


def _settings(found: _Found, folder: str, *, whole: bool) -> Settings:
    """whole: an app is needed, and what does not go together is a mistake."""
    values: dict[str, Any] = {"chdir": folder}
    for name, (raw, source) in found.values.items():
        try:
            values[name] = setting_values.read(_BY_NAME[name], raw, folder)
        except ValueError as error:
            found.mistakes.append(f"{source}: {error}")
    settings = Settings(**values)
    if whole:
        for name, what in settings_checks.mistakes(settings):
            source = found.values[name][1] if name in found.values else _said(_BY_NAME[name])
            found.mistakes.append(f"{source}: {what}")
    return settings


def _action(known: argparse.Namespace) -> Action:
    if known.ask:
        return Action.ASK
    if known.check:
        return Action.CHECK
    return Action.PRINT if known.print_config else Action.SERVE


def _error(mistakes: Sequence[str]) -> OperatorError:
    remedy = "midstream serve --help lists the options, docs/serve.md explains them"
    if len(mistakes) == 1:
        return OperatorError(mistakes[0], where="midstream serve", remedy=remedy)
    return OperatorError(
        f"{len(mistakes)} mistakes", where="midstream serve", detail="\n".join(mistakes), remedy=remedy
    )


def as_toml(invocation: Invocation) -> str:
    """The settings as a TOML file that reads back as the same; those with their default are comments."""
    lines = []
    for setting in TABLE:
        value = getattr(invocation.settings, setting.name)
        source = invocation.sources.get(setting.name, "")
        line = f"{setting.key} = {_toml_value(setting, value)}"
        lines.append(f"{line}  # {source}" if source else f"# {line}")
    return "\n".join(lines) + "\n"


def _toml_value(setting: Setting, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(setting, item) for item in value) + "]"
    if setting.kind in (Kind.WHOLE, Kind.STATUSES):
        return str(value)
    text = setting_values.show(setting, value) if not isinstance(value, str) else value
    quoted = "".join(
        char if char.isprintable() and char not in '"\\' else f"\\u{ord(char):04x}" if ord(char) < 0x10000 else char
        for char in text
    )
    return f'"{quoted}"'
