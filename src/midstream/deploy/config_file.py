"""`midstream.toml` on disk, and the values of secrets: what `core/config.py` must not touch.

Runs in the deployer and the command line tool. Here: finding and reading the file, looking up what its defaults
are made from, reading secrets. Not here: any decision about what the text means.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from midstream.core import config
from midstream.core.config import Config, Destination, Surroundings
from midstream.core.config_tables import SecretSource
from midstream.errors import OperatorError

FILE_NAME = "midstream.toml"
SECRET_COMMAND_TIMEOUT_S = 60.0
SECRET_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProjectFile:
    """One `midstream.toml` of a working copy, read. name: what messages call it. path: absolute."""

    name: str
    path: Path
    text: str
    around: Surroundings

    @property
    def folder(self) -> Path:
        return self.path.parent

    def destination(self, stage: str | None = None) -> Destination:
        """Which repository and branch the stage is made from, and where its file is in there. Raises ConfigError for
        mistakes in what the working copy is asked for; others do not matter yet."""
        return config.destination(self.text, stage, file=self.name, around=self.around)

    def load(
        self, revision_text: str | bytes | None = None, *, revision: str = "", profiles: Collection[str] = ()
    ) -> Config:
        """The configuration. revision_text: the file as the revision `revision` has it, None where it has none.
        Without `revision` the working copy's text counts for all. Raises ConfigError with all mistakes."""
        if isinstance(revision_text, bytes):
            revision_text = _decoded(revision_text, f"{self.name} in {revision or 'the revision'}")
        return config.load(
            revision_text if revision else self.text,
            self.text,
            file=self.name,
            revision=revision,
            around=self.around,
            profiles=profiles,
        )


def open_project(file: str | os.PathLike[str] | None = None, *, folder: Path | None = None) -> ProjectFile:
    """Read `file`, or `midstream.toml` in `folder` (default: the working directory). Runs git twice.

    Raises OperatorError when there is no such file or it cannot be read.
    """
    folder = folder or Path.cwd()
    name = os.fspath(file) if file is not None else FILE_NAME
    path = (folder / Path(name).expanduser()).absolute()
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise OperatorError(
            f"there is no {name}",
            where=str(folder),
            remedy="run `midstream init` to have one written, or name the file with -c FILE",
        ) from None
    except OSError as error:
        raise OperatorError(
            f"{name} cannot be read: {error.strerror}",
            where=str(path),
            remedy="look at its permissions, or name another one: -c FILE",
        ) from None
    return ProjectFile(name, path, _decoded(data, name), surroundings_of(path.parent))


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise OperatorError(f"{name}:{line}: not UTF-8", remedy="save the file as UTF-8") from None


def surroundings_of(folder: Path, environ: Mapping[str, str] = os.environ) -> Surroundings:
    """What defaults are made from: the git repository around `folder`, the user's home, where apps are put here."""
    found = (_git(folder, "rev-parse", "--show-toplevel") or "").rstrip("\n")
    top = Path(found) if found else None
    home = environ.get("HOME", "") or str(Path.home())
    data = environ.get("XDG_DATA_HOME", "")
    if not data.startswith("/"):  # the XDG specification: relative ones are ignored
        data = f"{home}/.local/share"
    return Surroundings(
        folder=str(folder),
        repository=str(top) if top else "",
        repo_tree="" if top is None or folder.resolve() == top else folder.resolve().relative_to(top).as_posix(),
        branch=_default_branch(top) if top else "",
        apps_folder="/srv" if os.geteuid() == 0 else f"{data}/midstream/apps",
        home=home,
    )


def _default_branch(top: Path) -> str:
    """`master` where there is that and no `main`; else "", which leaves it to the configuration."""
    branches = _git(top, "for-each-ref", "--format=%(refname:short)", "refs/heads/main", "refs/heads/master") or ""
    return "master" if branches.split() == ["master"] else ""


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None where it fails, or there is no git or no repository."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None


def read_secrets(
    sources: Mapping[str, SecretSource], folder: Path, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The values of a stage's secrets (`Stage.secrets`), by the name of their variable.

    folder: where relative files begin and commands run. Blocks for as long as the commands take, each at most
    SECRET_COMMAND_TIMEOUT_S. One newline at the end is dropped. Raises one OperatorError that names every secret which
    could not be had; no value and no output is ever part of a message.
    """
    values: dict[str, str] = {}
    problems: list[str] = []
    for name, source in sources.items():
        try:
            values[name] = _checked(_read(source, folder, environ))
        except _Unreadable as problem:
            problems.append(f"{name}: {problem}")
    if problems:
        raise OperatorError(
            "a secret cannot be read" if len(problems) == 1 else f"{len(problems)} secrets cannot be read",
            where="on the machine you deploy from",
            detail="\n".join(problems),
            serving="unchanged: nothing was done yet",
            remedy="correct `secrets` in the project file, or provide what it names",
        )
    return values


class _Unreadable(Exception):
    """Why a secret cannot be had, without its value."""


def _read(source: SecretSource, folder: Path, environ: Mapping[str, str]) -> bytes:
    if source.env:
        if source.env not in environ:
            raise _Unreadable(f"the variable {source.env} is not set")
        return environ[source.env].encode("utf-8", "surrogateescape")
    if source.file:
        return _file_content(folder / Path(source.file).expanduser())
    return _output_of(source.command, folder, environ)


def _file_content(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(SECRET_MAX_BYTES + 1)
    except OSError as error:
        raise _Unreadable(f"{path}: {error.strerror}") from None
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _output_of(argv: tuple[str, ...], folder: Path, environ: Mapping[str, str]) -> bytes:
    # the error output goes to the terminal: a password manager may ask there, and it might repeat the secret
    try:
        done = subprocess.run(
            argv, cwd=folder, env=dict(environ), stdout=subprocess.PIPE, timeout=SECRET_COMMAND_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise _Unreadable(f"`{argv[0]}` did not end within {SECRET_COMMAND_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise _Unreadable(f"`{argv[0]}` cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        raise _Unreadable(f"`{argv[0]}` ended with {done.returncode}")
    return done.stdout.removesuffix(b"\n").removesuffix(b"\r")


def _checked(data: bytes) -> str:
    if not data:
        raise _Unreadable("it is empty")
    if len(data) > SECRET_MAX_BYTES:
        raise _Unreadable(f"it has more than {SECRET_MAX_BYTES} bytes")
    if b"\0" in data:
        raise _Unreadable("it has a NUL byte, which no variable can hold")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _Unreadable("it is not UTF-8") from None
