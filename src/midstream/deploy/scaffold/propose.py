"""From a folder to a proposal: which of the recognisers speaks, and what none of them can know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from midstream.core.config import app_name
from midstream.deploy.scaffold import node, procfile, python, ruby
from midstream.deploy.scaffold.draft import Draft, Proposal, ServiceDraft, Setting
from midstream.deploy.scaffold.toml_text import render
from midstream.deploy.scaffold.tree import Tree, read_tree
from midstream.errors import OperatorError

# the first that knows the project speaks; a Django project with a package.json for its assets is Django
_RECOGNISERS: tuple[Callable[[Tree], Draft | None], ...] = (python.recognise, ruby.recognise, node.recognise)


def propose(folder: Path) -> Proposal:
    """A `midstream.toml` for the project in `folder`. Reads files and asks git which it has; runs nothing else.

    Raises OperatorError when the folder cannot be read.
    """
    try:
        tree = read_tree(folder)
    except OSError as error:
        raise OperatorError(
            f"the folder cannot be read: {error.strerror}",
            where=str(folder),
            remedy="run it in the folder of the project, with the rights to read it",
        ) from None
    return propose_for(tree)


def propose_for(tree: Tree) -> Proposal:
    """The same for files already read. Pure."""
    draft = recognised_in(tree) or _unknown()
    notes = [*draft.notes, *_notes_on(tree, draft, app_name(tree.name))]
    return Proposal(render(draft, app_name(tree.name), tree.branch), tuple(notes))


def recognised_in(tree: Tree) -> Draft | None:
    """What the project's own files tell; None where no recogniser knows it and there is no Procfile. Pure."""
    draft = next((found for recognise in _RECOGNISERS if (found := recognise(tree)) is not None), None)
    return procfile.with_processes(tree, draft) or draft


def _notes_on(tree: Tree, draft: Draft, app: str) -> list[str]:
    notes = []
    if tree.tracked is None:
        notes.append("git has no files of this folder yet: what is deployed is a commit, so `git add` and commit first")
    for path in draft.linked_files:
        notes.append(
            f"{path} is not in git and every release is linked to one on the host: before the first deploy, "
            f"`install -D -m 600 {path} DEPLOY_TO/shared/{path}` (/srv/{app} for root, unless `deploy_to` is set)"
        )
    return notes


def _unknown() -> Draft:
    """No recogniser knew it: a file that is valid and says where the operator has to write."""
    service = ServiceDraft(
        "web",
        "./start",
        (
            Setting("listen", '"tcp://127.0.0.1:8000"', "the program gets it as LISTEN_FDS, or as {fd} in the command"),
            Setting("health", '"/"', "must be answered before the old release is let go"),
        ),
        "Write here what starts the app, in the foreground.",
    )
    return Draft(
        "a project of a kind that is not known",
        (service,),
        notes=("no framework was recognised: write the command that starts the app into [services.web]",),
    )
