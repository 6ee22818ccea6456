"""READY=1 comes once, and the agent may be away just then: the keeper keeps it, and the next agent has to ask for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from machine import Machine, new_machine, new_project, wait_for

NOTIFIER = """
import os, socket, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
if sys.argv[2] == "fd":
    os.write(int(sys.argv[3]), b"\\n")
else:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        address = os.environ["NOTIFY_SOCKET"]
        notify.connect("\\0" + address[1:] if address.startswith("@") else address)
        notify.send(b"READY=1")
print("said so", flush=True)
while True:
    time.sleep(3600)
"""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with new_machine(MIDSTREAM_LEASE_S="15") as machine:  # the deployer tries for twice as long to reach the next agent
        yield machine


@pytest.mark.parametrize("ready", ["notify", "fd"])
def test_ready_that_is_said_while_there_is_no_agent_counts(machine: Machine, ready: str) -> None:
    """The agent is killed while a generation is being proven; the generation says that it is ready before the next agent
    is there. The deploy goes through, and long before the time-out for starting."""
    project = new_project(machine)
    go = machine.root / "go"
    argument = " {ready_fd}" if ready == "fd" else ""
    jobs = f"""
[services.jobs]
command = "{os.sys.executable} notifier.py {go} {ready}{argument}"
ready = "{ready}"
handover = "drain"
start_timeout = "25s"
stop_timeout = "3s"
"""
    project.write(config=project.config(project.web() + jobs))
    project.commit("first", notifier_dot_py=NOTIFIER)
    go.touch()
    project.deployed()
    go.unlink()

    project.commit("second")
    deploy = machine.spawn_cli("deploy", cwd=project.folder)
    wait_for("the new worker", lambda: [i for i in machine.instances("jobs") if i["generation_state"] == "prepared"])
    os.kill(machine.agent_pid, signal.SIGKILL)
    go.touch()  # an agent takes a good part of a second to start; the worker looks every hundredth
    out, _ = deploy.communicate(timeout=60)
    assert deploy.returncode == 0, out
    wait_for("one generation", machine.settled)
