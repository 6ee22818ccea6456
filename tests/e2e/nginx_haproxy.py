"""nginx and HAProxy in front of a service: private configurations, in the foreground, on loopback ports of their own.

Both keep connections to the service alive, and neither tries a request again: what the service loses is a 502 that a
client sees. Their idle time-out towards the service is shorter than the service lingers at its drain; a proxy that
keeps idle connections for longer would send a request just when the service closes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from machine import free_port, wait_for

IDLE_S = 1  # how long a proxy keeps an idle connection to the service
CLIENT_IDLE_S = 60  # and one to its client: as nginx does; who is given no time to ask has lost nothing
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    assert found is not None, f"{name} is not installed"
    return found


def nginx_conf(folder: Path, fronts: Mapping[str, tuple[int, str]]) -> str:
    """fronts: name -> (port, address of the service)."""
    temp = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    parts = []
    for name, (port, address) in fronts.items():
        server = address.removeprefix("tcp://").replace("unix://", "unix:")
        parts.append(
            f"""
    upstream {name} {{
        server {server};
        keepalive 32;
        keepalive_timeout {IDLE_S}s;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://{name};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_next_upstream off;
            proxy_request_buffering off;
        }}
    }}"""
        )
    return f"""
daemon off;
{"user root;" if os.getuid() == 0 else ""}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_max_body_size 16m;
{temp}
{"".join(parts)}
}}
"""


def haproxy_conf(fronts: Mapping[str, tuple[int, str]]) -> str:
    """As `nginx_conf`. `pool-purge-delay` is HAProxy's idle time-out: each time half of the idle connections go."""
    parts = []
    for name, (port, address) in fronts.items():
        server = address.removeprefix("tcp://").replace("unix://", "unix@")
        parts.append(
            f"""
listen {name}
    bind 127.0.0.1:{port}
    server service {server} pool-purge-delay 200ms
"""
        )
    return f"""
global
    maxconn 1000
defaults
    mode http
    retries 0
    http-reuse safe
    timeout connect 10s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive {CLIENT_IDLE_S}s
{"".join(parts)}
"""


@contextlib.contextmanager
def proxy(program: str, folder: Path, services: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """`nginx` or `haproxy` before each of `services` (name -> address); gives name -> address to ask instead."""
    folder.mkdir()
    fronts = {name: (free_port(), address) for name, address in services.items()}
    conf = folder / "conf"
    conf.write_text(nginx_conf(folder, fronts) if program == "nginx" else haproxy_conf(fronts))
    options = ["-p", str(folder), "-e", str(folder / "error.log"), "-c", str(conf)]
    argv = [_program(program), *(options if program == "nginx" else ["-db", "-f", str(conf)])]
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        for port, _ in fronts.values():
            wait_for(f"{program} to listen", functools.partial(_listens, port))
        yield {name: f"tcp://127.0.0.1:{port}" for name, (port, _) in fronts.items()}
        assert process.poll() is None, (folder / "out").read_text()
    finally:
        process.terminate()
        process.wait(20.0)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False
