"""The pid file of `midstream serve`: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from midstream.serve.master import pid_file


def test_nothing_is_left_of_one_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "pid").mkdir()
    with pytest.raises(OSError):
        pid_file.write(str(tmp_path / "pid"))
    assert os.listdir(tmp_path) == ["pid"]


def test_it_is_removed_only_where_it_names_us(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pid_file.write(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    pid_file.remove(str(path))
    assert not path.exists()
    path.write_text("1\n")
    pid_file.remove(str(path))
    assert path.exists()
