"""A run of tests names what it left behind, and the next one clears what a killed run left (tests/leftovers.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEAVES = """
    import os, subprocess, tempfile
    def test_it():
        subprocess.Popen(["sleep", "1000"], start_new_session=True, cwd="/")
        folder = tempfile.mkdtemp()
        if os.geteuid() == 0:
            subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
        tempfile.mkdtemp(prefix="midstream-packs-")
"""


def run(tests: Path, source: str, *options: str) -> subprocess.Popen[str]:
    """pytest with the project's conftest.py on one test, which is outside the project."""
    tests.joinpath("conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    tests.joinpath("test_it.py").write_text(textwrap.dedent(source))
    # a run of its own: not that of the run that this test is part of
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MIDSTREAM_RUN", "PYTEST_XDIST"))}
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_it.py"],
        cwd=tests,
        env=env | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT / "src")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_what_is_left_is_named_and_cleared_and_fails_the_run(tmp_path: Path) -> None:
    process = run(tmp_path, LEAVES)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 8, out
    named = out[out.index("left behind by these tests:") :].splitlines()[1:]
    kinds = [line.split()[0] for line in named]
    assert kinds == (["process", "mount", "file"] if os.geteuid() == 0 else ["process", "file"]), out
    assert "sleep 1000" in named[0]
    assert gone(int(named[0].split()[1].rstrip(":")))
    assert not Path(named[-1].split()[1]).exists()


def test_a_failing_test_that_leaves_something_has_another_exit_code(tmp_path: Path) -> None:
    process = run(tmp_path, LEAVES + "        assert False\n")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 9, out


def test_a_run_with_workers_that_leaves_nothing_passes(tmp_path: Path) -> None:
    process = run(tmp_path, "def test_it(tmp_path): (tmp_path / 'x').touch()\n", "-n", "1")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out


def test_what_a_killed_run_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    source = LEAVES + "        print('RUN', os.environ['TMPDIR'], flush=True); import time; time.sleep(1000)\n"
    killed = run(tmp_path, source, "-s")
    assert killed.stdout is not None
    folder = next(Path(line.split()[1]) for line in killed.stdout if line.startswith("RUN"))
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    killed.stdout.close()
    assert folder.exists()
    process = run(tmp_path, "def test_it(): pass\n")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
