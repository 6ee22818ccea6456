"""What an agent does with deadlines that were stored in an earlier boot. The reboot is an ordered stop, after which the
stored boot id and CLOCK_BOOTTIME are made those of another boot."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest
from machine import Machine, Project, wait_for


def _nothing(stored: dict[str, Any]) -> None:
    pass


def reboot(
    machine: Machine,
    change: Callable[[dict[str, Any]], None] = _nothing,
    change_app: Callable[[dict[str, Any]], None] = _nothing,
) -> None:
    """`change` is given the stored hold of the one service, `change_app` what is stored of its app."""
    machine.stop()
    with sqlite3.connect(machine.state / "agent.db") as db:
        db.execute("UPDATE meta SET value = 'the boot before' WHERE name = 'boot_id'")
        ((text,),) = db.execute("SELECT body FROM service WHERE app = 'shop' AND name = 'web'")
        body = json.loads(text)
        change(body.get("hold", {}))
        db.execute("UPDATE service SET body = ? WHERE app = 'shop' AND name = 'web'", (json.dumps(body),))
        ((text,),) = db.execute("SELECT body FROM app WHERE app = 'shop'")
        body = json.loads(text)
        change_app(body)
        db.execute("UPDATE app SET body = ? WHERE app = 'shop'", (json.dumps(body),))
    db.close()
    machine.start()


def held(machine: Machine, ttl_s: float) -> int:
    return int(machine.call("hold", app="shop", service="web", owner="me", ttl_s=ttl_s)["token"])


@pytest.mark.parametrize("before_s", [5.0, 10.0**7], ids=["a clock that was behind", "a clock that was ahead"])
def test_a_hold_lasts_over_a_reboot(project: Project, machine: Machine, before_s: float) -> None:
    project.deployed()
    token = held(machine, 600)
    reboot(machine, lambda hold: hold.update(deadline_s=before_s))
    assert machine.service()["state"] == "held" and machine.pids() == []
    assert 500 < machine.service()["hold"]["expires_in_s"] <= 600
    machine.call("unhold", app="shop", service="web", token=token)
    wait_for("the service to be back", machine.settled)


def test_a_hold_that_ran_out_while_the_host_was_off_is_over(project: Project, machine: Machine) -> None:
    project.deployed()
    held(machine, 600)
    reboot(machine, lambda hold: hold.update(ends_wall_s=time.time() - 1, deadline_s=10.0**7))
    wait_for("the service to be back", machine.settled)
    assert machine.service()["hold"] is None


def test_a_clock_set_back_gives_a_hold_no_more_than_its_time(project: Project, machine: Machine) -> None:
    project.deployed()
    held(machine, 60)
    reboot(machine, lambda hold: hold.update(ends_wall_s=time.time() + 10**9))
    assert 0 < machine.service()["hold"]["expires_in_s"] <= 60


def test_a_clock_set_back_gives_a_lock_no_more_than_its_time(project: Project, machine: Machine) -> None:
    project.deployed()
    machine.call("lock", app="shop", owner="me", reason="frozen", ttl_s=2.0)
    later = {"lock_boot_id": "the boot before", "lock_since_wall_s": time.time() + 10**6}
    reboot(machine, change_app=lambda app: app.update(later))
    wait_for("the lock to end", lambda: machine.app()["lock"] is None)


def test_an_agent_killed_after_a_reboot_does_not_take_its_deadlines_for_older_ones(
    project: Project, machine: Machine
) -> None:
    """The boot id and the deadlines of the new boot are stored together."""
    project.deployed()
    held(machine, 600)
    reboot(machine, lambda hold: hold.update(deadline_s=10.0**7))
    machine.kill_agent()
    assert 500 < machine.service()["hold"]["expires_in_s"] <= 600
