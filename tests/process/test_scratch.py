"""Folders of a deployer that was killed: gone with the next deploy; those in use, and other people's, are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from midstream.deploy.scratch import Scratch, sweep

_HOLDER = """
import sys
from midstream.deploy.scratch import Scratch
scratch = Scratch("midstream-packs-")
open(scratch.path + "/0.pack", "w").close()
print(scratch.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


@pytest.fixture
def holder(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """Another deployer, and the folder that it has."""
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    with child:
        yield child
        child.kill()


def test_one_that_was_killed_is_swept_by_the_next_and_one_that_lives_is_not(
    temporary: Path, holder: subprocess.Popen[str]
) -> None:
    assert holder.stdout is not None
    held = Path(holder.stdout.readline().strip())
    mine = Scratch("midstream-builds-")
    assert (held / "0.pack").exists(), "its deployer lives"
    assert sweep() == 0 and os.path.isdir(mine.path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (held / "0.pack").exists()
    other = Scratch("midstream-packs-")
    assert not held.exists()
    mine.close()
    mine.close()
    other.close()
    assert list(temporary.iterdir()) == []


def test_what_is_not_ours_stays(temporary: Path) -> None:
    (temporary / "elsewhere").mkdir()
    (temporary / "elsewhere" / "kept").touch()
    (temporary / "midstream-packs-link").symlink_to(temporary / "elsewhere")
    (temporary / "midstream-packs-file").touch()
    (temporary / "midstream-other").mkdir()
    if os.geteuid() == 0:
        (temporary / "midstream-packs-theirs").mkdir()
        os.chown(temporary / "midstream-packs-theirs", 65534, 65534)
    before = sorted(os.listdir(temporary))
    assert sweep() == 0
    assert sorted(os.listdir(temporary)) == before and (temporary / "elsewhere" / "kept").exists()
