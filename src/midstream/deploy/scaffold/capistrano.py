"""`midstream init --from-capistrano`: Capistrano's files, read statically, as a `midstream.toml`.

Runs in the command line tool. Reads text; no Ruby is run and no host is asked. The way: tokens, statements
(`capistrano_syntax`), their effect for each stage (`capistrano_recipe`), our keys (`capistrano_view`), text
(`capistrano_text`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from midstream.core.config import Surroundings, app_name, load
from midstream.core.config_mistakes import ConfigError
from midstream.deploy.scaffold.capistrano_methods import text_of
from midstream.deploy.scaffold.capistrano_plugins import PLUGINS
from midstream.deploy.scaffold.capistrano_recipe import Place, Recipe, Remark, recipe_of
from midstream.deploy.scaffold.capistrano_text import render_views, shown_ruby
from midstream.deploy.scaffold.capistrano_view import View, view_of
from midstream.deploy.scaffold.propose import recognised_in
from midstream.deploy.scaffold.tree import TEXT_MAX_BYTES, Tree, read_tree
from midstream.errors import OperatorError

CAPFILES = ("Capfile", "capfile", "Capfile.rb", "capfile.rb")
_TASK_FOLDERS = ("lib/capistrano/", "config/deploy/tasks/", "config/deploy/recipes/", "lib/deploy/")
_TASK_ENDINGS = (".rake", ".rb", ".cap")
_VERSION_FILES = (".ruby-version", ".node-version", ".nvmrc", ".tool-versions")
_FILES_MAX = 300
_STAGES_MAX = 50


@dataclass(frozen=True, slots=True)
class Conversion:
    """text: of `midstream.toml`; it loads. remarks: what was not carried over. stages: their names."""

    text: str
    remarks: tuple[Remark, ...]
    stages: tuple[str, ...]

    def left(self) -> tuple[Remark, ...]:
        """The remarks with something to do."""
        return tuple(one for one in self.remarks if not one.needless)


def convert(folder: Path) -> Conversion:
    """The project in `folder`. Raises OperatorError when there is no Capistrano in it, or it cannot be read."""
    try:
        tree = read_tree(folder)
        files = _capistrano_files(folder, tree)
    except OSError as error:
        raise OperatorError(
            f"the folder cannot be read: {error.strerror}",
            where=str(folder),
            remedy="run it in the folder of the project, with the rights to read it",
        ) from None
    if not any(name in files for name in (*CAPFILES, "config/deploy.rb")):
        raise OperatorError(
            "there is no Capfile and no config/deploy.rb",
            where=str(folder),
            serving="unchanged: nothing was written",
            remedy="name the folder of the project, or leave out --from-capistrano: `midstream init` looks at the code",
        )
    return convert_files(files, tree)


def convert_files(files: Mapping[str, str], tree: Tree) -> Conversion:
    """The same for files already read: Capistrano's by their relative path. Pure; never raises."""
    stages, chosen = _stages(files)
    recognised = recognised_in(tree)
    texts = {name: tree.text(name) for name in _VERSION_FILES if tree.text(name)}
    recipes = [recipe_of(stage, _in_order(files, config, own), texts) for stage, config, own in stages]
    views = _distinct([view_of(recipe, tree, recognised) for recipe in recipes])
    remarks = _remarks(views, [*chosen, *_unread(recipes, files)])
    text = render_views(views, remarks)
    return _loadable(text, views, remarks, tree)


def ruby_of(remark: Remark) -> str:
    """The Ruby text of a remark as it may be shown."""
    return shown_ruby(remark)


# files


def _capistrano_files(folder: Path, tree: Tree) -> dict[str, str]:
    names = [name for name in CAPFILES if tree.has(name)][:1]
    for path in sorted(tree.files):
        task = path.startswith(_TASK_FOLDERS) and path.endswith(_TASK_ENDINGS)
        if task or (path.startswith("config/") and path.endswith((".rb", ".cap")) and "deploy" in path):
            names.append(path)
    out: dict[str, str] = {}
    for name in names[:_FILES_MAX]:
        try:
            with (folder / name).open("rb") as stream:
                out[name] = stream.read(TEXT_MAX_BYTES).decode("utf-8-sig", "replace").replace("\r\n", "\n")
        except OSError:
            continue
    return out


def _stages(files: Mapping[str, str]) -> tuple[list[tuple[str, str, str]], list[Remark]]:
    """Each stage with the file for all stages and its own."""
    capfile = next((name for name in CAPFILES if name in files), "")
    first = recipe_of("production", [(capfile, files[capfile])] if capfile else [])
    config = text_of(first.value("deploy_config_path")) or "config/deploy.rb"
    folder = (text_of(first.value("stage_config_path")) or "config/deploy").rstrip("/") + "/"
    found = sorted(name for name in files if name.startswith(folder) and name.endswith(".rb"))
    found = [name for name in found if "/" not in name.removeprefix(folder)]
    stages = [(name.removeprefix(folder).removesuffix(".rb"), config, name) for name in found[:_STAGES_MAX]]
    remarks = [
        Remark(Place(name, 1), "", f"only the first {_STAGES_MAX} stages are read") for name in found[_STAGES_MAX:][:1]
    ]
    return stages or [("production", config, "")], remarks


def _in_order(files: Mapping[str, str], config: str, stage_file: str) -> list[tuple[str, str]]:
    """As Capistrano loads them: the Capfile with the task files it imports, then deploy.rb, then the stage's."""
    capfile = next((name for name in CAPFILES if name in files), "")
    tasks = sorted(name for name in files if name.startswith(_TASK_FOLDERS) and name not in (config, stage_file))
    return [(name, files[name]) for name in (capfile, *tasks, config, stage_file) if name in files]


def _unread(recipes: Sequence[Recipe], files: Mapping[str, str]) -> list[Remark]:
    """Files that are loaded and were not read."""
    out = []
    for recipe in recipes[:1]:
        for name, (place, ruby) in recipe.loads.items():
            known = name in PLUGINS or any(f"{name}{ending}" in files for ending in ("", *_TASK_ENDINGS))
            if not known:
                out.append(Remark(place, ruby, f"{name} was not read; write by hand what it sets"))
    return out


def _distinct(views: list[View]) -> list[View]:
    """Views with names that differ, for stages whose names become the same."""
    seen: set[str] = set()
    for view in views:
        name, number = view.name, 2
        while view.name in seen:
            view.name = f"{name[:44]}-{number}"
            number += 1
        seen.add(view.name)
    return views


def _remarks(views: Sequence[View], more: Sequence[Remark]) -> tuple[Remark, ...]:
    """Those of all stages, each once, in the order of the files. deploy.rb is read for each stage."""
    first: dict[tuple[Place, str], Remark] = {}
    for view in views:
        for remark in view.remarks:
            first.setdefault((remark.place, remark.advice), remark)
    for remark in more:
        first.setdefault((remark.place, remark.advice), remark)
    return tuple(sorted(first.values(), key=lambda one: (one.place, one.advice)))


# the promise that it loads


def _loadable(text: str, views: list[View], remarks: tuple[Remark, ...], tree: Tree) -> Conversion:
    """The last guard: what was read key by key may still not fit together. Parts that do not are taken out and said,
    the larger ones last."""
    stages = tuple(view.name for view in views)
    problem = ""
    for part in (None, "hooks", "services", "builds", "migrate", "variables", "hosts"):
        if part is not None:
            remarks = (*remarks, Remark(Place("midstream.toml", 1), part, f"`{part}` did not fit together: {problem}"))
            for view in views:
                setattr(view, part, getattr(View(view.name, view.stage), part))
            text = render_views(views, remarks)
        problem = _problem(text, tree)
        if not problem:
            return Conversion(text, remarks, stages)
    bare = f'app = "{app_name(tree.name)}"\n' + "".join(f"# {line}\n" for line in text.split("\n"))
    return Conversion(bare, remarks, stages)


def _problem(text: str, tree: Tree) -> str:
    """Why the text does not load; "" when it does."""
    folder = f"/{app_name(tree.name)}"
    around = Surroundings(folder=folder, repository=folder)
    try:
        load(None, text, around=around)
    except (ConfigError, OperatorError) as error:
        return str(error.detail or error).split("\n")[0]
    return ""
