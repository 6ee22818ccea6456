"""CPU time per request of one worker: the WSGI server, granian and gunicorn, side by side in rounds.

    python tests/bench/serve_wsgi.py [--seconds 3] [--rounds 3] [--only midstream,granian]

CPU time of the server's processes (from /proc), not wall time, so that another load disturbs less; but a machine that is
not idle also makes threads switch more. wrk sends; a hello of 13 bytes is answered. Prints the median of the rounds and
its ratio to granian's. The budgets are in the design: logged <= 0.8 of granian; unlogged <= 0.9 at 4 connections,
<= 1.5 at 16; closing <= 1.6 of granian and <= 0.4 of gunicorn.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNNER = Path(__file__).resolve().parents[1] / "process" / "serve_wsgi_runner.py"
APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [b"Hello, world!"]
"""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CASES = ("keep-alive c=4", "keep-alive c=16", "keep-alive c=4 logged", "keep-alive c=16 logged", "closing c=4")


def command(server: str, port: int, logged: bool) -> tuple[list[str], socket.socket | None]:
    bin_folder = Path(sys.executable).parent
    if server == "granian":
        log = ["--access-log"] if logged else ["--no-access-log"]
        return [
            str(bin_folder / "granian"),
            "--interface",
            "wsgi",
            "--port",
            str(port),
            "--no-ws",
            *log,
            "hello:app",
        ], None
    if server == "gunicorn":
        log = ["--access-logfile", "-"] if logged else []
        return [str(bin_folder / "gunicorn"), "-b", f"127.0.0.1:{port}", *log, "hello:app"], None
    listening = socket.create_server(("127.0.0.1", port), backlog=512)
    settings = '{"access_log": "-"}' if logged else "{}"
    return [sys.executable, str(RUNNER), "hello:app", str(listening.fileno()), settings], listening


def cpu_s(pid: int) -> float:
    """Of the process and its descendants."""
    parents = {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                fields = (each / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(each.name)] = (int(fields[1]), (int(fields[11]) + int(fields[12])) * TICK_S)

    def below(one: int) -> float:
        return parents.get(one, (0, 0.0))[1] + sum(
            below(child) for child, (parent, _) in parents.items() if parent == one
        )

    return below(pid)


def load(port: int, connections: int, closing: bool, seconds: int) -> int:
    extra = ["-H", "Connection: close"] if closing else []
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", *extra, f"http://127.0.0.1:{port}/"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+) requests in", said)
    if found is None or "Non-2xx" in said:
        raise RuntimeError(said)
    return int(found.group(1))


def measure(server: str, case: str, seconds: int, folder: Path) -> float:
    """Microseconds of CPU for one request."""
    connections = int(re.search(r"c=(\d+)", case).group(1))  # type: ignore[union-attr]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv, listening = command(server, port, "logged" in case)
    with (folder / f"{server}.log").open("w") as out:
        process = subprocess.Popen(
            argv,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])},
            pass_fds=(listening.fileno(),) if listening else (),
        )
    try:
        _wait_for(port)
        load(port, connections, "closing" in case, 1)
        before_s = cpu_s(process.pid)
        requests = load(port, connections, "closing" in case, seconds)
        return 1e6 * (cpu_s(process.pid) - before_s) / requests
    finally:
        process.terminate()
        process.wait()
        if listening:
            listening.close()


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
                if sock.recv(100):
                    return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the server does not answer")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="midstream,granian,gunicorn")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed", file=sys.stderr)
        return 2
    servers = options.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hello.py").write_text(APP)
        for case in CASES:
            found: dict[str, list[float]] = {server: [] for server in servers}
            for _ in range(options.rounds):
                for server in servers:
                    found[server].append(measure(server, case, options.seconds, folder))
            medians = {server: statistics.median(values) for server, values in found.items()}
            least = {server: min(values) for server, values in found.items()}
            words = [f"{server} {medians[server]:6.1f} us (least {least[server]:.1f})" for server in servers]
            for peer in ("granian", "gunicorn"):
                if "midstream" in medians and peer in medians:
                    words.append(f"{medians['midstream'] / medians[peer]:.2f} of {peer}")
            print(f"{case:24}", "  ".join(words), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
