"""Which release, which folder and which interpreter the next generation runs. The master, at each start and upgrade.

What lives here: the look at the file system, once for each generation, and the environment that follows from it. What must
not: starting it. Everything that leads through a symlink such as `current` is resolved here, once: a process that kept
the unresolved path would import the next release's modules as soon as the symlink moves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from midstream.errors import AppError
from midstream.serve.notify import without_variables
from midstream.serve.settings import Settings

VIRTUALENVS = (".venv", "venv")


@dataclass(frozen=True, slots=True)
class Source:
    """folder: resolved. python: absolute. virtualenv: the folder of the one that was found below `folder`, or "". link: as
    `release_link`."""

    folder: str
    python: str
    virtualenv: str
    release: str
    link: str = ""


def resolve(settings: Settings, former: Source | None = None) -> Source:
    """What there is now. former: what serves; a release without a virtualenv after one with it has failed, for it would
    run on other packages than it was made for. Raises AppError that names the remedy."""
    link = release_link(settings.chdir)
    top = os.path.realpath(link or settings.chdir)  # once: it may be moved at this moment
    folder = os.path.realpath(os.path.join(top, os.path.relpath(settings.chdir, link))) if link else top
    if not os.path.isdir(folder):
        raise AppError(
            f"there is no folder {settings.chdir}" + (f" ({folder})" if folder != settings.chdir else ""),
            remedy="let --chdir name the folder of the release, or the symlink to it",
        )
    python, virtualenv = _interpreter(settings, folder, former)
    return Source(folder, python, virtualenv, os.path.basename(top), link)


def release_link(chdir: str) -> str:
    """The symlink that deploys move, "" where there is none: the last in the path (`current` in /srv/shop/current/backend)
    that leads to a folder of another name. One that keeps the name has only moved a folder elsewhere, as /var/run to /run;
    it counts where the path ends with it and there is no other."""
    if os.pardir in chdir.split(os.sep):
        return ""  # what `..` is behind a symlink is the kernel's to say
    whole = path = os.path.abspath(chdir)
    while path != os.sep:
        if os.path.islink(path) and os.path.basename(os.path.realpath(path)) != os.path.basename(path):
            return path
        path = os.path.dirname(path)
    return whole if os.path.islink(whole) else ""


def _interpreter(settings: Settings, folder: str, former: Source | None) -> tuple[str, str]:
    if settings.python:
        path = os.path.join(folder, settings.python)
        # Not the program itself: a virtualenv is found by where its link to the real one lies (PEP 405).
        python = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        _require(python, f"--python {settings.python}")
        home = os.path.dirname(os.path.dirname(python))
        return python, home if os.path.exists(os.path.join(home, "pyvenv.cfg")) else ""
    for name in VIRTUALENVS:
        home = os.path.join(folder, name)
        if os.path.isdir(home):
            python = os.path.join(os.path.realpath(home), "bin", "python")
            _require(python, f"the virtualenv {home}")
            return python, os.path.realpath(home)
    if former is not None and former.virtualenv:
        raise AppError(
            f"{folder} has no virtualenv, and what serves now has one: {former.virtualenv}",
            remedy="make it (python3 -m venv .venv; .venv/bin/pip install 'midstream[serve]' …), or name --python",
        )
    return sys.executable, ""


def _require(python: str, what: str) -> None:
    if not os.access(python, os.X_OK):
        broken = os.path.lexists(python) and not os.path.exists(python)
        raise AppError(
            f"{what}: {python} {'leads nowhere' if broken else 'is no program that can be run'}",
            remedy="make the virtualenv of this release anew, with 'midstream[serve]' in it",
        )


def environment(base: Mapping[str, str], settings: Settings, source: Source) -> dict[str, str]:
    """Of the zygote. A virtualenv that we were started from is exchanged for the release's own."""
    env = dict(base)
    without_variables(env)
    env.pop("PYTHONHOME", None)
    old = env.pop("VIRTUAL_ENV", "")
    path = env.get("PATH", os.defpath).split(os.pathsep)
    if old:
        path = [entry for entry in path if entry != os.path.join(old, "bin")]
    if source.virtualenv:
        env["VIRTUAL_ENV"] = source.virtualenv
        path = [os.path.join(source.virtualenv, "bin"), *path]
    env["PATH"] = os.pathsep.join(path)
    for item in settings.env:
        name, _, value = item.partition("=")
        env[name] = value
    env["MIDSTREAM_RELEASE"] = source.release
    return env
