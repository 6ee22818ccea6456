"""The keeper's program files: the newest is the one that was written last, whatever the clock said then."""

from __future__ import annotations

import os
import time
from pathlib import Path

from midstream.keeper import image


def test_after_the_clock_was_set_back_a_new_image_is_still_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "lib"
    folder.mkdir()
    for number in range(6):
        older = folder / f"keeper-0.0.{number}-abc.pyz"
        older.touch()
        moment_s = time.time() + 2 * 86400 + number
        os.utime(older, (moment_s, moment_s))
    built = Path(image.build(str(tmp_path)))
    found = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    assert found[-1] == built
    assert [path.name for path in found[:-1]] == [f"keeper-0.0.{number}-abc.pyz" for number in (3, 4, 5)]
