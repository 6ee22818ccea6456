"""The generated part of docs/serve.md: all settings and limits of `midstream serve`, drawn from their tables.

`python -m midstream.cli.serve_page` writes it into the page; a test holds the page against it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from midstream.serve.limits import LIMITS
from midstream.serve.setting_values import show
from midstream.serve.settings import TABLE, Group, Kind, Setting

BEGIN = "<!-- settings: written by python -m midstream.cli.serve_page -->\n"
END = "<!-- settings: end -->\n"

_KINDS = {
    Kind.TEXT: "text",
    Kind.WHOLE: "number",
    Kind.SECONDS: "time",
    Kind.SIZE: "size",
    Kind.FLAG: "on or off",
    Kind.MODE: "octal mode",
    Kind.PATH: "path",
    Kind.WITHIN: "path in the release",
    Kind.OUTPUT: "file",
    Kind.BIND: "address",
    Kind.BINDS: "addresses",
    Kind.MANY: "texts",
    Kind.MANY_PATHS: "paths",
    Kind.MANY_WITHIN: "paths in the release",
    Kind.STATUSES: "statuses",
}


def settings_section() -> str:
    """All settings, a table for each group."""
    lines = []
    for group in Group:
        lines += [f"\n### {group.value}\n", "| option | TOML | value | default | |", "|---|---|---|---|---|"]
        lines += [_row(setting) for setting in TABLE if setting.group is group]
    return "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    options = [
        f"`--{'[no-]' if setting.kind is Kind.FLAG else ''}{name[2:]}`" for name in setting.options if name[1] == "-"
    ]
    options = [f"`{name}`" for name in setting.options if name[1] != "-"] + options
    said = "MODULE:NAME" if setting.name == "app" else ", ".join(options)
    kind = " ".join(f"`{choice}`" for choice in setting.choices if choice) or _KINDS[setting.kind]
    default = show(setting, setting.default) if setting.name != "chdir" else "here"
    keys = f"`{setting.key}`" + (f", `{setting.gunicorn}`" if setting.gunicorn else "")
    text = setting.help + "".join(f"; also `{name}` in the environment" for name in setting.environment)
    return "| " + " | ".join([said, keys, kind, f"`{default}`" if default else "", text.replace("|", "\\|")]) + " |"


def limits_section() -> str:
    """What follows when a request exceeds one."""
    by_name = {setting.name: setting for setting in TABLE}
    lines = ["| limit | default | answer | |", "|---|---|---|---|"]
    for limit in LIMITS.values():
        setting = by_name[limit.setting]
        option = next(name for name in setting.options if name.startswith("--"))
        answer = str(limit.status) if limit.status else "none"
        lines.append(f"| `{option}` | `{show(setting, setting.default)}` | {answer} | {limit.exceeded} |")
    return "\n".join(lines) + "\n"


def filled(page: str) -> str:
    """The page with its generated part as it ought to be. Raises ValueError for a page without the marks."""
    head, _, rest = page.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError("the page has lost its marks")
    return f"{head}{BEGIN}{settings_section()}\n### What follows when a limit is exceeded\n\n{limits_section()}\n{END}{tail}"


def main() -> int:
    path = Path("docs/serve.md")
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
