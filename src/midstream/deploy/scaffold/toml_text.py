"""A draft as the text of a `midstream.toml`. No decision about what is in it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from midstream.deploy.scaffold.draft import Draft, Line, ServiceDraft, Setting

_WIDTH = 100


def quoted(text: str) -> str:
    """A TOML string: a literal one where that reads better."""
    if '"' in text and "'" not in text and "\n" not in text:
        return f"'{text}'"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def listed(items: Iterable[str]) -> str:
    """A TOML list of strings, on one line where it fits."""
    quoted_items = [quoted(item) for item in items]
    line = f"[{', '.join(quoted_items)}]"
    return line if len(line) <= _WIDTH - 20 else "[\n" + "".join(f"  {item},\n" for item in quoted_items) + "]"


def render(draft: Draft, app: str, branch: str = "") -> str:
    """The whole file. app: the app's name. branch: the one checked out; "" is not known."""
    parts = [
        comment_lines(
            f"{draft.what[0].upper()}{draft.what[1:]}, as `midstream init` found it. Correct what it could not know; "
            "every key is described in docs/configuration.md. `midstream check` reads this file and tells every "
            "mistake, `midstream deploy` deploys the last commit to this machine."
        ),
        _top(draft, app, branch),
        _env(draft),
        _build(draft),
        _migrate(draft),
        *(service_text(service) for service in draft.services),
        _stages(app, draft),
    ]
    return "\n".join(part for part in parts if part)


def comment_lines(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, _WIDTH - 2, break_on_hyphens=False))


def setting_line(setting: Setting) -> str:
    comment = f"  # {setting.comment}" if setting.comment else ""
    line = f"{'# ' if setting.off else ''}{setting.key} = {setting.value}{comment}"
    if not comment or len(line) <= _WIDTH + 10 or "\n" in setting.value:
        return line + "\n"
    return comment_lines(setting.comment) + setting_line(Setting(setting.key, setting.value, off=setting.off))


def _top(draft: Draft, app: str, branch: str) -> str:
    out = "".join(comment_lines(f"NOTE: {note}") for note in draft.notes)
    out += "\n" if draft.notes else ""
    out += f"app = {quoted(app)}\n"
    what = "what is deployed when the command names nothing"
    out += setting_line(Setting("branch", quoted(branch or "main"), what, off=branch in ("", "main")))
    out += setting_line(Setting("deploy_to", quoted(f"/srv/{app}"), "the app's folder on its hosts", off=True))
    if draft.linked_dirs:
        out += f"linked_dirs = {listed(draft.linked_dirs)}  # kept in shared/, the same for every release\n"
    if draft.linked_files:
        out += f"linked_files = {listed(draft.linked_files)}  # likewise; must exist in shared/ before a deploy\n"
    if draft.console:
        out += setting_line(Setting("console", quoted(draft.console), "the app's own shell, for `midstream console`"))
    return out + "".join(setting_line(setting) for setting in draft.settings)


def _env(draft: Draft) -> str:
    if not draft.path and not draft.variables:
        return ""
    out = "[env]\n"
    if draft.path:
        out += f"path = {listed(draft.path)}  # put in front of PATH, inside the release\n"
    return out + "".join(setting_line(setting) for setting in draft.variables)


def _build(draft: Draft) -> str:
    if not draft.build:
        return ""
    out = "# Run in the new release, before anything is switched.\n[[build]]\nrun = [\n"
    for line in draft.build:
        out += f"  {quoted(line.command)},{f'  # {line.comment}' if line.comment else ''}\n"
    out += "]\n"
    if draft.build_env:
        pairs = ", ".join(f"{name} = {quoted(value)}" for name, value in draft.build_env)
        out += f"env = {{ {pairs} }}\n"
    return out


def _migrate(draft: Draft) -> str:
    line: Line | None = draft.migrate
    if line is None:
        return ""
    comment = line.comment or "once in each deploy, on the first host with role db; never undone"
    return f"[migrate]\nrun = {quoted(line.command)}  # {comment}\n"


def service_text(service: ServiceDraft) -> str:
    out = comment_lines(service.comment) if service.comment else ""
    out += f"[services.{service.name}]\ncommand = {quoted(service.command)}\n"
    return out + "".join(setting_line(setting) for setting in service.settings)


def _stages(app: str, draft: Draft) -> str:
    roles = '"web", "db"' if draft.migrate else '"web"'
    return (
        "# Without stages the app runs on this machine. On others:\n"
        "# [stages.production]\n"
        f'# hosts = [{{ address = "deploy@{app}.example.com", roles = [{roles}] }}]\n'
        '# secrets = { SECRET_KEY = { file = "~/.keys/' + app + '" } }  # read here, sent to the hosts, never printed\n'
    )
