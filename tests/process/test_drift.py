"""Which release a process runs, read from processes that really run one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from profile_servers import Child, Yard, eventually, spawn, yard_in
from test_sockets import as_nobody

from midstream.linux.drift import Running, runs, usage

OLD, NEW = "20261121190501", "20261121200501"


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    with yard_in(tmp_path) as found:
        yield found


@pytest.fixture
def deploy_to(tmp_path: Path) -> Path:
    for release in (OLD, NEW):
        (tmp_path / "app/releases" / release).mkdir(parents=True)
    (tmp_path / "app/current").symlink_to(tmp_path / "app/releases" / NEW)
    return tmp_path / "app"


def sleeper(yard: Yard, cwd: Path, *, stamp: str = "", program: str = "sleep") -> Child:
    env = {"MIDSTREAM_RELEASE": stamp} if stamp else {}
    child = spawn((program, "600"), {}, yard.folder / f"log-{len(yard.children)}", env=env, cwd=cwd)
    yard.children.append(child)
    name = Path(program).name
    eventually("it has been exec'd", lambda: Path(f"/proc/{child.pid}/comm").read_text().strip() == name)
    return child


def test_the_working_folder_tells_even_when_it_was_entered_through_current(yard: Yard, deploy_to: Path) -> None:
    """`current` moves on; the process stays where it is."""
    child = sleeper(yard, deploy_to / "current")
    (deploy_to / "current").unlink()
    (deploy_to / "current").symlink_to(deploy_to / "releases" / OLD)
    found = runs(child.pid, str(deploy_to))
    assert (found.release, found.deleted, found.certain) == (NEW, False, True)
    assert found.evidence == (f"cwd={deploy_to}/releases/{NEW}",)


def test_a_release_that_was_cleaned_up_is_told(yard: Yard, deploy_to: Path) -> None:
    child = sleeper(yard, deploy_to / "releases" / OLD, stamp=OLD)
    shutil.rmtree(deploy_to / "releases" / OLD)
    found = runs(child.pid, str(deploy_to))
    assert (found.release, found.deleted, found.certain) == (OLD, True, True)


def test_deploy_to_may_be_a_symlink(yard: Yard, deploy_to: Path) -> None:
    child = sleeper(yard, deploy_to / "releases" / OLD)
    alias = deploy_to.parent / "alias"
    alias.symlink_to(deploy_to)
    assert runs(child.pid, os.path.realpath(alias)).release == OLD


def test_what_is_loaded_counts_more_than_what_was_stamped(yard: Yard, deploy_to: Path) -> None:
    """A virtualenv of the old release under the stamp of the new one: old code, and not certain."""
    program = deploy_to / "releases" / OLD / "sleep"
    shutil.copy(shutil.which("sleep") or "", program)
    child = sleeper(yard, deploy_to / "releases" / NEW, stamp=NEW, program=str(program))
    found = runs(child.pid, str(deploy_to))
    assert found.release == OLD
    assert not found.certain
    assert f"exe={program}" in found.evidence
    assert f"env={NEW}" in found.evidence


def test_a_file_replaced_under_a_running_process_is_deleted_code(yard: Yard, deploy_to: Path) -> None:
    program = deploy_to / "releases" / OLD / "sleep"
    shutil.copy(shutil.which("sleep") or "", program)
    child = sleeper(yard, Path("/"), program=str(program))
    assert runs(child.pid, str(deploy_to)) == Running(OLD, False, (f"maps={program}", f"exe={program}"), True)
    program.unlink()
    shutil.copy(shutil.which("sleep") or "", program)
    assert runs(child.pid, str(deploy_to)).deleted


def test_a_stranger_runs_no_release(yard: Yard, deploy_to: Path) -> None:
    child = sleeper(yard, Path("/"), stamp="not a release")
    assert runs(child.pid, str(deploy_to)) == Running(None)
    assert runs(sleeper(yard, deploy_to).pid, str(deploy_to)) == Running(None)


def test_a_process_that_is_gone_is_said_to_be_gone(deploy_to: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert runs(pid, str(deploy_to)).evidence == ("the process is gone",)
    assert usage(pid) is None


def test_what_may_not_be_read_is_unknown_not_none(yard: Yard, deploy_to: Path) -> None:
    child = sleeper(yard, deploy_to / "releases" / OLD, stamp=OLD)
    assert as_nobody(lambda: runs(child.pid, str(deploy_to)).certain) == "False"
    assert as_nobody(lambda: runs(child.pid, str(deploy_to)).release) == "None"


def test_memory_processor_time_and_age_of_a_process(yard: Yard, deploy_to: Path) -> None:
    me = usage(os.getpid())
    assert me is not None
    assert 1_000_000 < me.memory_bytes < 2_000_000_000
    assert me.cpu_s > 0
    young = usage(sleeper(yard, Path("/")).pid)
    assert young is not None
    assert young.uptime_s <= me.uptime_s
    assert young.memory_bytes < me.memory_bytes
    assert as_nobody(lambda: usage(1) is not None and not usage(1).shared_counted_once) == "True"  # type: ignore[union-attr]
