"""Command lines that the project wrote for another program (a Procfile, npm), said in our words. Pure."""

from __future__ import annotations

import re
import shlex

from midstream.core.placeholders import escape
from midstream.deploy.scaffold.draft import Setting

_FOR_A_SHELL = re.compile(r"[$|&;<>*?`()~!]|^[A-Za-z_][A-Za-z0-9_]*=")
_SEVERAL = re.compile(r"[|&;<>()]|^[A-Za-z_][A-Za-z0-9_]*=|^exec\b")


def needs_shell(line: str) -> bool:
    """Whether the line means something else, or nothing, when it is only split into words."""
    if _FOR_A_SHELL.search(line):
        return True
    try:
        return not shlex.split(line)
    except ValueError:
        return True


def plain(line: str) -> str:
    """The line without control characters and with its braces meant as they stand."""
    return escape(re.sub(r"[\x00-\x1f\x7f]+", " ", line).strip())


def command(line: str) -> tuple[str, tuple[Setting, ...]]:
    """`line`, made `plain`, as a command and, where it needs one, the setting for a shell, which makes way for the
    program when it is a single one."""
    if not needs_shell(line):
        return line, ()
    shell = (Setting("shell", "true", "for its variables or pipes"),)
    return line if _SEVERAL.search(line) else f"exec {line}", shell
