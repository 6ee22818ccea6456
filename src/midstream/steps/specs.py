"""The steps `store_spec` and `read_spec`: the configuration that a release was deployed with."""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any

from midstream.core.layout import Layout
from midstream.core.names import is_release
from midstream.core.steps import ReadSpec, StoreSpec
from midstream.errors import HostError, OperatorError
from midstream.steps.claims import claimed_release
from midstream.steps.folder import Folder
from midstream.steps.place import open_place, open_release, open_root, read_revision


def store_spec(request: StoreSpec) -> dict[str, Any]:
    """Written by temporary file and rename, mode 0600: values in it may be nobody else's business."""
    with open_place(request.deploy_to) as place:
        release = request.release or claimed_release(place, request.deploy_id)
        open_release(place.root, place.layout, release).__exit__(None, None, None)
        sync_disk(place.root)
        with place.ours.open("specs") as specs:
            data = json.dumps(request.spec, indent=1, sort_keys=True).encode()
            specs.write(f"{release}.json", data, mode=0o600)
        return {"path": place.layout.spec(release)}


def read_spec(request: ReadSpec) -> dict[str, Any]:
    if not is_release(request.release):
        raise OperatorError(f"{request.release!r} is not a release id", remedy="midstream releases lists them")
    layout = Layout(request.deploy_to)
    with open_root(request.deploy_to) as root:
        with open_release(root, layout, request.release) as folder:
            time_text = (folder.read("REVISION_TIME") or b"").decode("ascii", "replace").strip()
        spec = _read_json(root, f"{request.release}.json", layout.spec(request.release))
        return {
            "spec": spec,
            "revision": read_revision(root, request.release),
            "revision_time": int(time_text) if time_text.isdecimal() else None,
        }


def _read_json(root: Folder, name: str, path: str) -> Any:
    try:
        with root.open(".midstream/specs") as specs:
            data = specs.read(name)
    except FileNotFoundError:
        return None
    if data is None:
        return None
    try:
        return json.loads(data)
    except ValueError as error:
        raise HostError(
            f"the stored configuration {path} is damaged: {error}",
            where=path,
            remedy="deploy that revision anew; the file may be deleted",
        ) from None


def sync_disk(root: Folder) -> None:
    """Blocks until all that was written on deploy_to's disk is on it (syncfs(2)): a release that is committed must be
    whole after a power cut, and fsync of each of its files and those of its build is slower by far."""
    if ctypes.CDLL(None, use_errno=True).syncfs(root.fd) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), root.path)
