"""How each real server is started in the tests and in the benchmark: one line of command per profile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

APPS = Path(__file__).parent / "server_apps"


@dataclass(frozen=True)
class Case:
    """`needs`: the program; `imports`: a module that it needs as well. The command is that of an operator:
    without listeners in it."""

    profile: str
    command: tuple[str, ...]
    needs: str
    imports: str = ""
    blocking: bool = False  # one request at a time in a worker: held connections keep others waiting
    keeps_alive: bool = True  # answers a second request on a connection
    label: str = ""  # in the benchmark, where it is not the profile's name


CASES = (
    Case("gunicorn", ("gunicorn", "wsgi_app", "-w", "2"), "gunicorn", blocking=True, keeps_alive=False),
    Case("gunicorn-gthread", ("gunicorn", "wsgi_app", "-w", "2", "--threads", "4"), "gunicorn"),
    Case("gunicorn-gevent", ("gunicorn", "wsgi_app", "-w", "2", "-k", "gevent"), "gunicorn", "gevent"),
    Case(
        "gunicorn-uvicorn",
        ("gunicorn", "asgi_app:application", "-w", "2", "-k", "uvicorn_worker.UvicornWorker"),
        "gunicorn",
        "uvicorn_worker",
    ),
    Case("gunicorn-asgi", ("gunicorn", "asgi_app:application", "-w", "2", "-k", "asgi"), "gunicorn", "gunicorn.asgi"),
    Case("uvicorn", ("uvicorn", "asgi_app:application"), "uvicorn"),
    Case("uvicorn-workers", ("uvicorn", "asgi_app:application", "--workers", "2"), "uvicorn"),
    Case("hypercorn", ("hypercorn", "asgi_app:application", "-w", "1", "--graceful-timeout", "20"), "hypercorn"),
    Case(
        "uwsgi",
        ("uwsgi", "--master", "-p", "2", "--module", "wsgi_app:application", "--need-app"),
        "uwsgi",
        blocking=True,
        keeps_alive=False,
    ),
    Case("puma", ("puma", "-w", "2", "-t", "2:2", "config.ru"), "puma"),
    Case("unicorn", ("unicorn", "-c", "unicorn.rb", "config.ru"), "unicorn", blocking=True, keeps_alive=False),
    Case("node", ("node", "server.js", "{fd}"), "node"),
    Case("midstream-serve", ("midstream", "serve", "wsgi_app", "--workers", "2", "--release-header", ""), "midstream"),
)
OWN_ADDRESS = (
    Case("granian", ("granian", "--interface", "wsgi", "wsgi_app:application", "--port", "{port}"), "granian"),
    Case("waitress", ("waitress-serve", "--listen=127.0.0.1:{port}", "wsgi_app:application"), "waitress-serve"),
)
# What Midstream warns of, and a server that drains as it should, for comparison.
COMPARED = (
    Case(
        "hypercorn",
        ("hypercorn", "asgi_app:application", "-w", "2", "--graceful-timeout", "20"),
        "hypercorn",
        label="hypercorn -w 2",
    ),
    Case("generic", ("python3", "drain_server.py"), "python3", label="drain_server.py"),
)
