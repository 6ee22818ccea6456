"""What an agent refuses of built files, whoever sends them: other trees, damaged or other archives, the wrong moment."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from strangers import GuardedMachine, OwnedProject, Person, guarded_machine, needs_root, new_owned_project

from midstream.errors import MidstreamError
from midstream.linux.archive import Label, pack

pytestmark = needs_root
FILES = ("public/assets",)
MADE: list[str] = []  # the releases that were made here, the newest last
Write = Callable[..., Any]


@pytest.fixture(scope="module")
def machine() -> Iterator[GuardedMachine]:
    with guarded_machine() as started:
        yield started


@pytest.fixture(scope="module")
def shop(machine: GuardedMachine) -> OwnedProject:
    project = new_owned_project(Person("nobody", machine))
    assert project.deploy().code == 0
    return project


@pytest.fixture
def write(shop: OwnedProject) -> Iterator[Write]:
    """`write(data, files=…, tree=…)` into the release of a deploy that is being made."""
    request = shop.update_request()
    with contextlib.closing(shop.person.connect()) as client:
        opened = shop.open(client, shop.spec(), f"carry-{os.urandom(4).hex()}")
        common = {"deploy_id": opened_id(client, shop), "token": opened["token"]}

        def write(data: bytes, *, made: bool = True, method: str = "write", **change: Any) -> Any:
            if made:
                answer = client.call("deploy.update", **common, **request, until="deploy:assets", build=[])
                MADE.append(answer["release"])
            about = {"number": 1, "files": list(FILES), "tree": request["tree"], "offset": 0, "last": True}
            about |= {"data": base64.b64encode(data).decode(), "sha256": hashlib.sha256(data).hexdigest(), "size": 1000}
            return client.call(f"deploy.artifact.{method}", **common, **(about | change))

        try:
            yield write
        finally:
            with contextlib.suppress(MidstreamError):
                client.call("deploy.revert", **common, reason="over")
            client.call("deploy.finish", **common)
    assert list((shop.machine.state / "incoming").iterdir()) == []
    assert shop.machine.settled()


def opened_id(client: Any, shop: OwnedProject) -> str:
    return str(client.call("deploy.status", app=shop.app)["deploy"]["id"])


def archive(shop: OwnedProject, tmp_path: Path, content: str = "1", tree: str = "") -> bytes:
    (tmp_path / "public/assets").mkdir(parents=True, exist_ok=True)
    (tmp_path / "public/assets/app.js").write_text(content)
    out = io.BytesIO()
    pack(str(tmp_path), Label(tree or shop.update_request()["tree"], FILES), out)
    return out.getvalue()


def in_release(shop: OwnedProject, path: str) -> list[Path]:
    """There, in the release that is being made, or nowhere."""
    found = shop.deploy_to / "releases" / MADE[-1] / path
    return [found] if os.path.lexists(found) else []


def test_good_files_arrive_as_the_apps_user_and_once_more_is_nothing(
    shop: OwnedProject, write: Write, tmp_path: Path
) -> None:
    data = archive(shop, tmp_path)
    assert write(data)["files"] == 1
    (found,) = in_release(shop, "public/assets/app.js")
    assert found.read_text() == "1" and found.stat().st_uid == shop.person.uid
    assert write(data)["files"] == 0


def test_other_files_of_the_same_build_are_refused(shop: OwnedProject, write: Write, tmp_path: Path) -> None:
    write(archive(shop, tmp_path))
    with pytest.raises(MidstreamError, match="other files of the same build"):
        write(archive(shop, tmp_path, "2"))
    (found,) = in_release(shop, "public/assets/app.js")
    assert found.read_text() == "1"


@pytest.mark.parametrize("what", ["sha256", "tree", "label", "path", "link", "noise", "outside"])
def test_whatever_does_not_fit_leaves_nothing(shop: OwnedProject, write: Write, tmp_path: Path, what: str) -> None:
    good = archive(shop, tmp_path)
    changed: dict[str, Any] = {}
    if what == "sha256":
        changed = {"sha256": "0" * 64}
    elif what == "tree":
        changed = {"tree": "0" * 40}
    elif what == "label":
        good = archive(shop, tmp_path, tree="0" * 40)
    elif what == "path":
        changed = {"files": ["../../../x"]}
    elif what == "link":
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            info = tarfile.TarInfo("public/assets")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
            tar.addfile(info)
        good = out.getvalue()
    elif what == "noise":
        good = os.urandom(5000)
    else:
        changed = {"files": ["server.py"]}
    with pytest.raises(MidstreamError):
        write(good, **changed)
    assert in_release(shop, "public") == []
    assert list((shop.deploy_to / ".midstream/tmp").iterdir()) == []


def test_before_there_is_a_release_nothing_is_taken_or_given(shop: OwnedProject, write: Write, tmp_path: Path) -> None:
    for method in ("write", "read"):
        with pytest.raises(MidstreamError, match="being made"):
            write(archive(shop, tmp_path), made=False, method=method)


def test_reading_what_was_not_built_names_it(shop: OwnedProject, write: Write) -> None:
    with pytest.raises(MidstreamError, match="did not make public/assets"):
        write(b"", method="read")


def test_a_link_in_the_release_is_not_written_through(shop: OwnedProject, write: Write, tmp_path: Path) -> None:
    write(archive(shop, tmp_path))
    (found,) = in_release(shop, "public")
    found.rename(found.parent / "elsewhere")
    (shop.deploy_to / "shared/up").mkdir(parents=True, exist_ok=True)
    os.symlink(shop.deploy_to / "shared/up", found)
    with pytest.raises(MidstreamError, match="is a link"):
        write(archive(shop, tmp_path), number=2)
    assert list((shop.deploy_to / "shared/up").iterdir()) == []
