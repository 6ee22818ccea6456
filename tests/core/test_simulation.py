"""Random histories of a whole host, with everything dying at any moment: see `simulation`.

A failure prints its seed; `MIDSTREAM_SEED=N pytest tests/core/test_simulation.py` plays that history again.
`MIDSTREAM_HISTORIES_S` sets how much processor time the histories may take (default 20 s); they are the same each time,
unless MIDSTREAM_EXPLORE=1 asks for new ones.

That the rules bite is itself a test: each mutant of the core in `simulation/mutants.py` must be caught (commit before
proven, a crash made good from the new release, a draining one started again, a parked one never woken, two at once
under `replace`, a hold that never ends, a drain signal sent twice, and some thirty more).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from simulation.mutants import MUTANTS, Mutant
from simulation.world import World, play

import midstream

FIRST = 1_000_000
HISTORIES_S = float(os.environ.get("MIDSTREAM_HISTORIES_S", "20"))
_SEEN = {
    "committed": "is committed",
    "put back": "is failed",
    "agent killed": "the agent is killed",
    "keeper killed": "the keeper is killed",
    "disk full": "the disk is full",
    "rebooted": "the host is rebooted",
    "deployer gone": "a deployer is gone",
    "started by an order": "order starts",
    "parked": "WINCH to",
    "woken": "TTIN to",
    "killed": "KILL to",
    "quieted": "TSTP to",
    "gone back from quiet": "takes over from a quiet one",
    "redis down": "redis is down",
}


def test_these_histories_break_no_rule() -> None:
    for seed in range(100):
        play(seed)


@pytest.mark.slow
def test_no_history_breaks_a_rule() -> None:
    given = os.environ.get("MIDSTREAM_SEED")
    if given:
        play(int(given))
        return
    first = random.SystemRandom().randrange(1 << 40) if os.environ.get("MIDSTREAM_EXPLORE") else FIRST
    begun = time.process_time()
    played = 0
    while time.process_time() - begun < HISTORIES_S:
        play(first + played)
        played += 1


def test_a_seed_is_one_history() -> None:
    def told(world: World) -> list[str]:
        return [f"{at_s} {words}" for at_s, words in world.record]

    assert told(play(7)) == told(play(7))
    assert told(play(7)) != told(play(8))


def test_the_histories_tell_of_everything() -> None:
    """Or a rule could hold because nothing ever tries it."""
    seen: Counter[str] = Counter()
    for seed in range(100):
        world = World(seed)
        world.remember_all()
        world.begin()
        world.run()
        text = "\n".join(" ".join(str(word) for word in words) for _, words in world.record)
        seen.update(name for name, words in _SEEN.items() if words in text)
    missing = set(_SEEN) - set(seen)
    assert not missing, f"no history has: {missing}"


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_simulation_bites(mutant: Mutant, tmp_path: Path) -> None:
    source = Path(midstream.__file__).parent
    target = tmp_path / "midstream"
    shutil.copytree(source / "core", target / "core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "errors.py"):
        shutil.copy(source / name, target / name)
    for file, text, becomes in mutant.changes:
        path = target / "core" / file
        code = path.read_text()
        assert code.count(text) == 1, f"{file} has no longer: {text}"
        path.write_text(code.replace(text, becomes))
    program = (
        "import sys\n"
        "from simulation.rules import Broken\n"
        "from simulation.world import play\n"
        f"for seed in range({mutant.first}, {mutant.first + (150 if mutant.often else 3000)}):\n"
        "    try: play(seed)\n"
        "    except Broken as broken: sys.exit(str(broken).splitlines()[0])\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parent}", "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 1 and "MIDSTREAM_SEED" in run.stderr, f"survived\n{run.stderr}"
