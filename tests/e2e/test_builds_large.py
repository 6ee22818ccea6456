"""A build that made more than the agent's disk has room for: refused with a remedy, and the disk is not filled."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, new_machine, new_project

from midstream.core.spec import AppSpec, CommandStep, Source
from midstream.core.wire import to_wire
from midstream.deploy.sync_client import connect
from midstream.errors import AppError

MIB = 1 << 20


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Its state is on a disk of 24 MiB."""
    disk = Path(tempfile.mkdtemp(prefix="msd-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)], capture_output=True).returncode:
        disk.rmdir()
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        with new_machine() as started:
            started.stop()
            shutil.rmtree(started.state)
            started.state.symlink_to(disk)
            started.start()
            yield started
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
        disk.rmdir()


def test_an_archive_that_does_not_fit_is_refused(machine: Machine) -> None:
    project = new_project(machine)
    head, tree = project.git("rev-parse", "HEAD"), project.git("rev-parse", "HEAD^{tree}")
    noise = f"import os; open('noise', 'wb').write(os.urandom({40 * MIB}))"
    build = (CommandStep((sys.executable, "-c", noise)),)
    spec = AppSpec("shop", str(project.deploy_to), str(project.folder), source=Source.FETCH, build=build)
    request = {"revision": head, "tree": tree, "revision_time": 1.0, "branch": "main", "release": "20260101000000"}
    with contextlib.closing(connect(str(machine.socket))) as client:
        token = client.call("deploy.open", deploy_id="d1", spec=to_wire(spec), kind="deploy", user="ann")["token"]
        common = {"deploy_id": "d1", "token": token}
        client.call("deploy.update", **common, **request, spec=to_wire(spec), until="deploy:assets", build=[0])
        about = {"number": 0, "files": ["noise"], "tree": tree, "offset": 0, "size": MIB}
        with pytest.raises(AppError, match=r"larger, packed, than the \d+ MiB") as refused:
            client.call("deploy.artifact.read", **common, **about)
        assert "[[build]]" in refused.value.remedy and "noise" in refused.value.where
        disk = os.statvfs(machine.state)
        assert disk.f_bavail * disk.f_frsize > 0, "the agent's own database has room to go on"
        client.call("deploy.finish", **common, outcome="failed")
    disk = os.statvfs(machine.state)
    assert disk.f_bavail * disk.f_frsize > 16 * MIB, "what was packed is gone"
