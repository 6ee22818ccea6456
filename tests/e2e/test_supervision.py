"""What people have a supervisor for: restart, stop the whole tree, hold, logs, watchdog, and the verbs (DESIGN 8)."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
from machine import Machine, Project, wait_for

from midstream.errors import LockedError

PYTHON = sys.executable


def deploy_with(project: Project, services: str) -> str:
    project.write(config=project.config(project.web() + services))
    project.commit("services")
    return project.deployed()


def script(project: Project, name: str, text: str) -> str:
    project.write(**{f"{name}_dot_py": text})
    return f'command = "{PYTHON} {name}.py"'


def test_killed_service_is_back_and_why_says_so(project: Project, machine: Machine) -> None:
    release = project.deployed()
    old = machine.pids()
    os.kill(old[0], signal.SIGKILL)
    wait_for("a new process", lambda: machine.replaced(old))
    assert machine.instances()[0]["restarts"] == 1
    assert machine.instances()[0]["release_running"] == release
    why = project.cli("why", "web", "--json")
    assert "killed by SIGKILL" in why.out


def test_crash_loop_backs_off_and_never_gives_up(project: Project, machine: Machine) -> None:
    """A committed generation that crashes at once is started again with growing pauses, for ever."""
    loop = script(
        project,
        "loop",
        "import os, sys, time\nif os.path.exists('../../shared/crash'): sys.exit(9)\ntime.sleep(3600)\n",
    )
    deploy_with(project, f'\n[services.loop]\n{loop}\nhandover = "replace"\nmin_uptime = "0.2s"\n')
    (project.deploy_to / "shared" / "crash").touch()
    os.kill(machine.pids("loop")[0], signal.SIGKILL)
    wait_for("back-off", lambda: machine.service("loop")["state"] == "backoff")
    pauses = wait_for("several pauses", lambda: len(_pauses(project)) >= 4 and _pauses(project), 90)
    assert pauses == sorted(pauses) and pauses[-1] > pauses[0], pauses
    assert machine.service("web")["state"] == "running"
    (project.deploy_to / "shared" / "crash").unlink()
    wait_for("it to come back by itself", machine.settled, 90)


def _pauses(project: Project) -> list[float]:
    return [float(item) for item in re.findall(r"start again in ([0-9.]+) s", project.cli("why", "loop").out)]


def test_stop_reaches_a_setsid_grandchild(project: Project, machine: Machine) -> None:
    """What supervisord leaves behind even with stopasgroup and killasgroup."""
    tree = script(
        project,
        "tree",
        "import os, signal, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import os, signal, time; os.setsid(); '\n"
        '  \'signal.signal(signal.SIGTERM, signal.SIG_IGN); open("grandchild", "w").write(str(os.getpid())); \'\n'
        "  'time.sleep(3600)'])\n"
        "time.sleep(3600)\n",
    )
    release = deploy_with(project, f'\n[services.tree]\n{tree}\nhandover = "replace"\nstop_timeout = "1s"\n')
    marker = project.deploy_to / "releases" / release / "grandchild"
    pid = int(wait_for("the grandchild", lambda: marker.exists() and marker.read_text()))
    assert project.cli("stop", "tree").code == 0
    wait_for("the grandchild to be gone", lambda: not _runs(pid))
    assert machine.service("tree")["state"] == "stopped"
    assert project.cli("status", "--check").code in (0, 3)
    assert project.cli("start", "tree").code == 0
    assert machine.service("tree")["state"] == "running"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_stopped_service_stays_stopped_over_an_agent_crash(project: Project, machine: Machine) -> None:
    project.deployed()
    assert project.cli("stop", "web").code == 0
    machine.kill_agent()
    machine.kill_keeper()
    wait_for("the agent", machine.answers)
    assert machine.service()["state"] == "stopped" and machine.pids() == []
    assert machine.instances() == []
    assert project.cli("status", "--check").code == 3
    assert project.cli("start", "all").code == 0
    assert project.get("/")[0] == 200


def test_restart_is_a_handover_to_the_same_release(project: Project, machine: Machine) -> None:
    from machine import under_load

    release = project.deployed()
    old = machine.pids()
    with under_load(project.address, "--pause", "0.01", "--keep-alive", "2", "--closing", "2") as load:
        result = project.cli("restart", "web")
        assert result.code == 0, result.text
        wait_for("the old generation to be gone", machine.settled)
        tally = load()
    assert tally["failed"] == 0, tally["failures"]
    assert machine.pids() != old and machine.app()["release"] == release


def test_hold_starts_nothing_and_expires(project: Project, machine: Machine) -> None:
    project.deployed()
    held = machine.call("hold", app="shop", service="web", owner="me", ttl_s=600.0, reason="looking")
    old = machine.pids()
    os.kill(old[0], signal.SIGKILL)
    wait_for("it to be down", lambda: machine.service()["state"] == "held" and machine.pids() == [])
    refused = project.cli("start", "web")
    assert refused.code == 4 and "held by me" in refused.text, refused.text
    with pytest.raises(LockedError, match="held by me"):
        machine.call("hold", app="shop", service="web", owner="you", ttl_s=3.0)
    assert held["token"] > 0
    machine.call("hold", app="shop", service="web", owner="me", ttl_s=0.5)
    wait_for("supervision to resume by itself", machine.settled)
    assert machine.pids() != old


def test_hold_survives_the_agent(project: Project, machine: Machine) -> None:
    project.deployed()
    token = machine.call("hold", app="shop", service="web", owner="me", ttl_s=600)["token"]
    old = machine.pids()
    machine.kill_agent()
    os.kill(old[0], signal.SIGKILL)
    wait_for("it to be down", lambda: machine.pids() == [])
    machine.kill_keeper()
    wait_for("the agent", machine.answers)
    assert machine.pids() == [] and machine.service()["state"] == "held"
    machine.call("unhold", app="shop", service="web", token=token)
    wait_for("it is back", machine.settled)


def test_reload_and_signal(project: Project, machine: Machine) -> None:
    release = project.deployed()
    old = machine.pids()
    assert project.cli("signal", "WINCH", "web").code == 0 or project.cli("signal", "web", "WINCH").code == 0
    result = project.cli("reload", "web")
    assert result.code == 0, result.text
    wait_for("settled", machine.settled)
    assert machine.pids() != old and project.get("/") == (200, release)


def test_logs_have_time_generation_and_follow(project: Project, machine: Machine) -> None:
    talk = script(
        project,
        "talk",
        "import sys, time\nprint('to stdout', flush=True)\nprint('to stderr', file=sys.stderr, flush=True)\n"
        "while True:\n  time.sleep(0.2); print('tick \\x1b[31m', flush=True)\n",
    )
    deploy_with(project, f'\n[services.talk]\n{talk}\nhandover = "replace"\n')
    text = wait_for("lines", lambda: "to stderr" in (out := project.cli("logs", "talk").out) and out)
    assert "to stdout" in text and re.search(r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d", text), text
    follower = machine.spawn_cli("logs", "talk", "-f", "--lines", "1", cwd=project.folder)
    assert follower.stdout is not None
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(iter(follower.stdout.readline, "")))  # type: ignore[union-attr]
    reader.start()
    wait_for("three ticks", lambda: sum("tick" in line for line in seen) >= 3)
    os.killpg(follower.pid, signal.SIGINT)
    follower.wait(20)
    reader.join(20)
    follower.stdout.close()
    assert "\x1b[31m" not in "".join(seen), "control characters of a service reach the terminal"
    stored = (machine.state / "log" / "shop" / "talk.log").read_text()
    assert "1.0" in stored and "tick" in stored


def test_log_rotation(project: Project, machine: Machine) -> None:
    noisy = script(project, "noisy", "import time\nwhile True:\n  print('x' * 1000, flush=True)\n  time.sleep(0.001)\n")
    log = 'log = { max_size = "100kB", keep = 3 }'
    deploy_with(project, f'\n[services.noisy]\n{noisy}\nhandover = "replace"\n{log}\n')
    folder = machine.state / "log" / "shop"
    wait_for("rotated files", lambda: len(list(folder.glob("noisy.log.*"))) == 3)
    assert all(path.stat().st_size <= 110_000 for path in folder.glob("noisy.log*"))


def test_watchdog_restarts_what_hangs(project: Project, machine: Machine) -> None:
    dog = script(
        project,
        "dog",
        "import os, signal, socket, time\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "say = lambda text: s.sendto(text, os.environ['NOTIFY_SOCKET'])\n"
        "say(b'READY=1\\nSTATUS=well')\n"
        "hung = []\n"
        "signal.signal(signal.SIGUSR1, lambda *a: hung.append(1))\n"
        "while True:\n"
        "  time.sleep(0.2)\n"
        "  if not hung: say(b'WATCHDOG=1')\n",
    )
    service = f'\n[services.dog]\n{dog}\nhandover = "replace"\nready = "notify"\nwatchdog = "2s"\nstop_timeout = "1s"\n'
    deploy_with(project, service)
    old = machine.pids("dog")
    assert machine.instances("dog")[0]["status_text"] == "well"
    os.kill(old[0], signal.SIGUSR1)
    wait_for("the watchdog to bite", lambda: machine.replaced(old, "dog"))
    assert "WATCHDOG=1 did not come" in project.cli("why", "dog").out


def test_ready_by_file_descriptor(project: Project, machine: Machine) -> None:
    """s6's protocol: a newline on the notification descriptor."""
    s6 = script(
        project, "s6", "import os, sys, time\ntime.sleep(0.5)\nos.write(int(sys.argv[1]), b'\\n')\ntime.sleep(3600)\n"
    )
    command = s6.removesuffix('"') + ' {ready_fd}"'
    deploy_with(project, f'\n[services.s6]\n{command}\nhandover = "replace"\nready = "fd"\n')
    assert machine.instances("s6")[0]["ready"]


def test_periodic_health_check_restarts(project: Project, machine: Machine) -> None:
    health = 'health = { http = "/up", interval = "0.3s", failures = 2 }'
    project.write(config=project.config(project.web(health=health)))
    project.commit("periodic")
    project.deployed()
    old = machine.pids()
    os.kill(old[0], signal.SIGSTOP)
    try:
        wait_for("a restart", lambda: machine.replaced(old))
    finally:
        if _runs(old[0]):
            os.kill(old[0], signal.SIGCONT)


def test_crash_in_the_soak_puts_back(project: Project, machine: Machine) -> None:
    good = project.deployed()
    pids = machine.pids()
    project.write(config=project.config(project.web('soak = "20s"')))
    project.misbehave("exit-soon")
    result = project.deploy()
    assert result.code == 1, result.text
    assert machine.app()["release"] == good and machine.pids() == pids
    rows = [json.loads(line) for line in project.cli("releases", "--json").out.splitlines()]
    assert '"bad"' in json.dumps(rows)
    project.write(config=project.config(project.web('soak = "1s"')))
    project.misbehave("")
    assert project.deployed() != good


def test_memory_limit(project: Project, machine: Machine) -> None:
    eats = script(
        project,
        "eats",
        "import os, time\nif not os.path.exists('ate'):\n  open('ate', 'w').close()\n"
        "  food = bytearray(200 << 20)\n  food[::4096] = b'x' * len(food[::4096])\ntime.sleep(3600)\n",
    )
    service = f'\n[services.eats]\n{eats}\nhandover = "replace"\nmin_uptime = "0.1s"\nlimits = {{ memory = "100MB" }}\n'
    deploy_with(project, service)
    old = machine.pids("eats")
    wait_for("a restart", lambda: machine.replaced(old, "eats"))
    assert "limits.memory" in project.cli("why", "eats").out


def test_several_listeners_and_unix_sockets_with_mode(project: Project, machine: Machine) -> None:
    import socket
    import stat

    path = machine.root / "web.sock"
    listen = f'listen = ["{project.address}", {{ address = "unix://{path}", name = "local", mode = "0640" }}]'
    project.write(config=project.config(project.web(listen=listen)))
    project.commit("two listeners")
    release = project.deployed()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    inode = path.stat().st_ino
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            data = b""
            while part := client.recv(65536):
                data += part
        assert release.encode() in data
        project.commit("again")
        release = project.deployed()
    assert path.stat().st_ino == inode, "the socket was made anew"
