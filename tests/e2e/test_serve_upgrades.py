"""Upgrade after upgrade of a standalone `midstream serve`, WSGI and ASGI, under every kind of client: code and virtualenv
change, no request fails, the pid stays. And the same load against `--linger 0`, which must fail: else it proves nothing.

MIDSTREAM_SERVE_UPGRADES says how many (3). MIDSTREAM_OTHER_VENV names a virtualenv of another Python version with
`midstream[serve]` in it; the releases then alternate between the two versions.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from distance import Far, away
from nginx_haproxy import IDLE_S, proxy
from streams import ASGI_APP, WSGI_APP, Streaming, Streams, app_of, streams
from tests.process.serving import Server, point, running
from traffic import Clients, Traffic, record, traffic

UPGRADES = int(os.environ.get("MIDSTREAM_SERVE_UPGRADES", "3"))
OTHER = os.environ.get("MIDSTREAM_OTHER_VENV", "")
LONG = UPGRADES >= 10  # such a run may meet a busy machine, where clients and proxies are given no time for seconds
LINGER_S = (6 if LONG else 3) * IDLE_S
GRACEFUL_S = 12 if LONG else 6  # WebSockets and event streams end within 0.6 of it
DISTANCE_S = 0.03
NAMES = ("one", "two")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180 + 20 * UPGRADES), pytest.mark.server("nginx", "haproxy")]


def virtualenv(folder: Path) -> Path:
    """One of its own, which borrows the packages of ours."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    import midstream

    packages = [str(Path(str(module.__file__)).parents[1]) for module in (midstream, pytest)]
    (next((folder / "lib").iterdir()) / "site-packages/ours.pth").write_text("\n".join(packages) + "\n")
    return folder


@dataclass(frozen=True)
class Site:
    """Two servers: `pages` is WSGI, `live` ASGI, each with the releases `one` and `two`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Site:
        virtualenvs = (virtualenv(folder / "one.venv"), Path(OTHER) if OTHER else virtualenv(folder / "two.venv"))
        for server, app in (("pages", WSGI_APP), ("live", ASGI_APP)):
            for name, made in zip(NAMES, virtualenvs, strict=True):
                release = folder / server / "releases" / name
                release.mkdir(parents=True)
                (release / "app.py").write_text(app_of(app, name))
                (release / ".venv").symlink_to(made)
        site = cls(folder)
        for server in ("pages", "live"):
            site.point(server, "one")
        return site

    def point(self, server: str, name: str) -> Path:
        release = self.folder / server / "releases" / name
        point(self.folder / server, release)
        return release

    def unix(self, server: str) -> str:
        return f"unix://{self.folder}/{server}.sock"

    @property
    def answered(self) -> Path:
        """What the ASGI app notes there: `streams.py`."""
        return self.folder / "answered"

    @contextlib.contextmanager
    def servers(self, linger_s: int) -> Iterator[tuple[Server, Server]]:
        words = ("--linger", str(linger_s), "--graceful-timeout", str(GRACEFUL_S))
        with (
            running(self.folder / "pages", "--bind", self.unix("pages"), *words) as pages,
            running(
                self.folder / "live",
                *("--bind", self.unix("live")),
                *words,
                environment={"ANSWERED": str(self.answered)},
            ) as live,
        ):
            yield pages, live

    def upgrade(self, server: Server, name: str) -> str:
        """To that release, which answers then. The version of its Python."""
        release = self.point(server.folder.name, name)
        mark = server.mark()
        server.signal(signal.SIGUSR2)
        server.line(rf"generation \d+ \({name}\): serves", mark)
        reply = server.get()
        assert reply.body == name
        assert Path(reply.headers["X-Prefix"]) == (release / ".venv").resolve()
        return str(reply.headers["X-Python"])


@contextlib.contextmanager
def load(site: Site, pages: Server, live: Server) -> Iterator[tuple[Traffic, Streaming, Far]]:
    """Every kind of client, over TCP and unix, from a distance, behind nginx and HAProxy (which stand at a distance too, keep
    their connections to the server alive and try nothing again)."""
    near = {"pages": pages.bind, "live": live.bind}
    with (
        away(near, DISTANCE_S) as relay,
        proxy("nginx", site.folder / "nginx", far := relay.addresses) as nginx,
        proxy("haproxy", site.folder / "haproxy", far) as haproxy,
        traffic(
            site.folder,
            *(
                one
                for name, address in (("tcp", pages.bind), ("unix", site.unix("pages")))
                for one in (
                    Clients(f"{name} pages", address, keep_alive=2, closing=1, pause_s=0.02),
                    Clients(f"{name} slow", address, path="/slow", timed=False, keep_alive=1, closing=1),
                    Clients(
                        f"{name} uploads",
                        address,
                        method="POST",
                        body_bytes=50_000,
                        upload_s=0.05,
                        timed=False,
                        keep_alive=1,
                        closing=1,
                    ),
                )
            ),
            Clients("tcp live", live.bind, keep_alive=1, closing=1, pause_s=0.02),
            Clients("far pages", far["pages"], keep_alive=3, timed=False),
            Clients("far live", far["live"], keep_alive=3, timed=False),
            *(
                one
                for name, front in (("nginx", nginx), ("haproxy", haproxy))
                for one in (
                    Clients(f"{name} pages", front["pages"], keep_alive=2, timed=False),
                    Clients(f"{name} POST", front["pages"], method="POST", body_bytes=1000, keep_alive=2, timed=False),
                    Clients(f"{name} live", front["live"], keep_alive=1, timed=False),
                )
            ),
        ) as requests,
        streams(
            site.folder,
            *(
                Streams(kind, f"{kind} {name}", address)
                for kind, server in (
                    ("pipelined", "pages"),
                    ("download", "pages"),
                    ("websocket", "live"),
                    ("events", "live"),
                )
                for name, address in (("tcp", near[server]), ("unix", site.unix(server)), ("far", far[server]))
                if (kind, name) != ("download", "far")
            ),
            Streams("websocket", "websocket haproxy", haproxy["live"]),
            Streams("events", "events nginx", nginx["live"]),
            Streams("events", "events haproxy", haproxy["live"]),
        ) as streaming,
    ):
        yield requests, streaming, relay


def told(requests: Traffic, streaming: Streaming, relay: Far, *servers: Server) -> str:
    """All that helps to find out why something failed."""
    lines = [f"{name}: {text}" for name, texts in (requests.failures | streaming.failures).items() for text in texts]
    windows = [f"upgrade from {begun:.3f} to {ended:.3f}" for begun, ended in requests.windows]
    logs = [line for server in servers for line in server.lines if " info " not in line]
    return "\n".join([*lines, f"the relay was late by {relay.late_s} s at worst", *windows, *logs])


def is_alone(server: Server) -> bool:
    """Whether one generation is left."""
    generations = server.status()["generations"]
    assert isinstance(generations, list)
    return len(generations) == 1


def test_upgrades_lose_nothing_and_keep_the_pid(tmp_path: Path) -> None:
    site = Site.make(tmp_path)
    with site.servers(LINGER_S) as (pages, live):
        pids, pythons = (pages.pid, live.pid), {str(pages.get().headers["X-Python"])}
        with load(site, pages, live) as (requests, streaming, relay):
            for number in range(1, UPGRADES + 1):
                with requests.handover():
                    pythons |= {site.upgrade(server, NAMES[number % 2]) for server in (pages, live)}
            for server in (pages, live):
                server.until("all but the last have drained", functools.partial(is_alone, server))
            seen, streamed = requests.stop(), streaming.stop()
        assert not requests.failures and not streaming.failures, told(requests, streaming, relay, pages, live)
        assert requests.failed == 0
        assert (pages.pid, live.pid) == pids
        assert [server.serving()["number"] for server in (pages, live)] == [UPGRADES + 1] * 2
        releases = {name: set(one.releases) for name, one in seen.items()}
        releases |= {name: set(one.releases) for name, one in streamed.items()}
        assert all(met == set(NAMES) for met in releases.values()), releases
        assert len(pythons) == (2 if OTHER else 1)
        for server in (pages, live):
            server.signal(signal.SIGTERM)
            assert server.ends() == 0
            assert server.left() == []
        ends = streaming.figures()["ends"]
        assert ends["1012"] and ends["between two events"], "the upgrades ended WebSockets and streams"
        assert streaming.lost(site.answered) == []
        record(
            "midstream serve, upgrades under every kind of client",
            {"relay late s": relay.late_s} | requests.figures() | {"streams": streaming.figures()},
        )


def test_without_linger_the_same_load_fails(tmp_path: Path) -> None:
    site = Site.make(tmp_path)
    with site.servers(0) as (pages, live):
        with load(site, pages, live) as (requests, streaming, _):
            for name in ("two", "one"):
                for server in (pages, live):
                    site.upgrade(server, name)
            seen = requests.stop()
        failed = {name: one.failed for name, one in seen.items()}
        assert failed["far pages"] + failed["far live"] > 0, failed
        assert sum(number for name, number in failed.items() if name.startswith(("nginx", "haproxy"))) > 0, failed
        record("midstream serve, --linger 0", requests.figures() | {"streams": streaming.figures()})
