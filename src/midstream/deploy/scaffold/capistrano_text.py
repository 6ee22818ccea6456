"""Views of all stages as the text of one `midstream.toml`, with what was not carried over as comments at its end. Pure.

What the stages have in common stands at the top, what differs in the stage. Of two values the one of `production`, or
else of the first stage, is the common one.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from midstream.deploy.scaffold.capistrano_recipe import Remark
from midstream.deploy.scaffold.capistrano_services import BuildDraft
from midstream.deploy.scaffold.capistrano_tasks import HookDraft
from midstream.deploy.scaffold.capistrano_view import View
from midstream.deploy.scaffold.draft import ServiceDraft, Setting
from midstream.deploy.scaffold.toml_text import comment_lines, listed, quoted, service_text, setting_line

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_RUBY_LINES = 12
_SECRET_TEXT = re.compile(r"(?i)\b(set|ask)\b\s*\(?\s*:\w*(?:passw|secret|token|api_?key|credential)\w*")
_SECRET_VALUE = re.compile(
    r"""(?i)((?:passw\w*|secret\w*|token|webhook|api_?key)["']?\s*(?:=>|:)\s*)(["'])(?:(?!\2).)+\2"""
)
_COMMENTS = {
    "branch": "what is deployed when the command names nothing",
    "deploy_to": "the same folder as Capistrano's: both may deploy to it in turns",
    "linked_dirs": "kept in shared/, the same for every release",
    "linked_files": "likewise; must exist in shared/ before a deploy",
}
_ORDER = (
    "app",
    "repository",
    "branch",
    "deploy_to",
    "repo_tree",
    "submodules",
    "keep_releases",
    "linked_dirs",
    "linked_files",
)


def render_views(views: Sequence[View], remarks: Sequence[Remark]) -> str:
    """The whole file. views: at least one. remarks: in the order in which they are listed."""
    base = next((view for view in views if view.stage == "production"), views[0])
    flat = {view.name: _flat(view) for view in views}
    common = {key: value for key, value in flat[base.name].items() if all(key in other for other in flat.values())}
    parts = [
        comment_lines(
            "Written by `midstream init --from-capistrano`. Read it, correct it, commit it. `midstream check` reads it and "
            "tells every mistake; docs/moving-from-capistrano.md says how to take turns with Capistrano and how to go "
            "back. What could not be carried over is listed at the end."
        ),
        "".join(_top_line(key, common[key]) for key in _ORDER if key in common),
        _env(common),
        *(_build(one) for one in common.get("build", ())),
        _migrate(common.get("migrate")),
        *(_service(one, common) for one in base.services),
        *(_hook(one) for one in common.get("hooks", ())),
        *(_stage(view, flat[view.name], common) for view in views),
        _list_of(remarks),
    ]
    return "\n".join(part for part in parts if part)


def _flat(view: View) -> dict[str, Any]:
    """Key path -> value, for everything that may differ between stages."""
    out: dict[str, Any] = dict(view.plain)
    if view.path:
        out["env.path"] = view.path
    out |= {f"env.{name}": value for name, value in view.variables.items()}
    for service in view.services:
        out[f"services.{service.name}.command"] = service.command
        out |= {f"services.{service.name}.{one.key}": one for one in service.settings}
    if view.builds:
        out["build"] = view.builds
    if view.migrate:
        out["migrate"] = view.migrate
    if view.hooks:
        out["hooks"] = view.hooks
    return out


def _value(value: Any) -> str:
    """As TOML writes it, on one line."""
    if isinstance(value, Setting):
        return value.value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return quoted(_CONTROL.sub(" ", value))
    if isinstance(value, BuildDraft):
        return _inline({"run": list(value.run)} | ({"roles": list(value.roles)} if value.roles else {}))
    if isinstance(value, HookDraft):
        return _inline(_hook_keys(value))
    if isinstance(value, Mapping):
        return _inline(value)
    return f"[{', '.join(_value(one) for one in value)}]"


def _inline(table: Mapping[str, Any]) -> str:
    return f"{{ {', '.join(f'{key} = {_value(value)}' for key, value in table.items())} }}"


def _top_line(key: str, value: Any) -> str:
    text = listed(_CONTROL.sub(" ", item) for item in value) if isinstance(value, tuple) else _value(value)
    return setting_line(Setting(key, text, _COMMENTS.get(key, "")))


def _env(common: Mapping[str, Any]) -> str:
    lines = []
    if "env.path" in common:
        lines.append(setting_line(Setting("path", _value(common["env.path"]), "put in front of PATH")))
    for key, value in common.items():
        if key.startswith("env.") and key != "env.path":
            lines.append(f"{key.removeprefix('env.')} = {_value(value)}\n")
    return "[env]\n" + "".join(lines) if lines else ""


def _build(one: BuildDraft) -> str:
    comment = f"# {_CONTROL.sub(' ', one.comment)}\n" if one.comment else ""
    run = "".join(f"  {_value(line)},\n" for line in one.run)
    return f"{comment}[[build]]\nrun = [\n{run}]\n" + (f"roles = {_value(one.roles)}\n" if one.roles else "")


def _migrate(found: tuple[str, str] | None) -> str:
    if found is None:
        return ""
    role = f"role = {_value(found[1])}\n" if found[1] != "db" else ""
    return f"[migrate]\nrun = {_value(found[0])}  # once in each deploy, on the first host of the role; never undone\n{role}"


def _service(service: ServiceDraft, common: Mapping[str, Any]) -> str:
    """A service of the common part. A setting that not all stages have is written in those that have it."""
    if f"services.{service.name}.command" not in common:
        return ""
    kept = tuple(one for one in service.settings if f"services.{service.name}.{one.key}" in common)
    return service_text(ServiceDraft(service.name, _CONTROL.sub(" ", service.command), kept, service.comment))


def _hook_keys(hook: HookDraft) -> dict[str, Any]:
    keys: dict[str, Any] = {hook.when: hook.point, "run": list(hook.run) if len(hook.run) > 1 else hook.run[0]}
    if hook.undo:
        keys["undo"] = hook.undo
    if hook.shell:
        keys["shell"] = True
    if hook.roles:
        keys["roles"] = list(hook.roles)
    if hook.primary:
        keys["on"] = "primary"
    if hook.env:
        keys["env"] = dict(hook.env)
    return keys


def _hook(hook: HookDraft) -> str:
    lines = "".join(f"{key} = {_value(value)}\n" for key, value in _hook_keys(hook).items())
    return comment_lines(_CONTROL.sub(" ", hook.comment)) + f"[[hooks]]\n{lines}"


def _stage(view: View, flat: Mapping[str, Any], common: Mapping[str, Any]) -> str:
    out = f"[stages.{view.name}]\n"
    if view.hosts:
        hosts = (
            _inline({"address": host.address} | ({"roles": list(host.roles)} if host.roles else {}))
            for host in view.hosts
        )
        out += "hosts = [\n" + "".join(f"  {host},\n" for host in hosts) + "]\n"
    else:
        out += '# hosts = [{ address = "deploy@example.com", roles = ["web"] }]  # none found: this machine\n'
    for key, value in flat.items():
        if key in common and _value(common[key]) == _value(value):
            continue
        if key == "migrate":
            value = {"run": value[0], "role": value[1]}
        out += f"{key} = {_value(value)}\n"
    if view.secrets:
        pairs = ", ".join(f"{name} = {{ env = {quoted(source)} }}" for name, source in view.secrets.items())
        out += f"secrets = {{ {pairs} }}  # read from these variables where you run the command\n"
    return out


# what was not carried over


def shown_ruby(remark: Remark) -> str:
    """The Ruby text, shortened; of a setting that looks like a secret only its name, as the file is committed."""
    if found := _SECRET_TEXT.search(remark.ruby):
        return f"{_CONTROL.sub(' ', remark.ruby[: found.end()])}, …"
    ruby = _SECRET_VALUE.sub(r"\1…", remark.ruby.strip())
    first, newline, rest = ruby.partition("\n")
    lines = (first + newline + textwrap.dedent(rest)).split("\n")
    more = [f"… {len(lines) - _RUBY_LINES} more lines"] if len(lines) > _RUBY_LINES else []
    cleaned = (_CONTROL.sub(" ", line.rstrip())[:200] for line in lines[:_RUBY_LINES])
    return "\n".join([*cleaned, *more])


def _list_of(remarks: Iterable[Remark]) -> str:
    needed = [one for one in remarks if not one.needless]
    needless = [one for one in remarks if one.needless]
    out = ""
    if needed:
        out += comment_lines(f"NOT CARRIED OVER: {len(needed)}, each with its place, the Ruby text, and what to do.")
        out += "".join(_remark(one) for one in needed)
    if needless:
        out += ("#\n" if out else "") + comment_lines(f"NOT NEEDED ANY MORE: {len(needless)}")
        out += "".join(_remark(one) for one in needless)
    return out


def _remark(one: Remark) -> str:
    ruby = "".join(f"#     {line}\n" for line in shown_ruby(one).split("\n"))
    return f"#\n# {_CONTROL.sub(' ', str(one.place))}:\n{ruby}" + _advice(one)


def _advice(one: Remark) -> str:
    """With the lines after the first as far to the right as the first."""
    text = _CONTROL.sub(" ", one.advice)
    wrapped = textwrap.wrap(text, 92, initial_indent="#   -> ", subsequent_indent="#      ", break_on_hyphens=False)
    return "".join(f"{line}\n" for line in wrapped)
