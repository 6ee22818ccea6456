"""Real applications under a standalone `midstream serve` with several workers, upgraded while they are in use.

Django's own admin in a real browser, Wagtail, FastAPI with WebSockets, Datasette. What comes from the package index is fetched
once in a run; without it those tests skip.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.cookies
import json
import re
import shutil
import socket
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import admin_site
import pytest
import wagtail_site
from browser import Browser, Page, browser
from index_kits import download, once, virtualenv
from tests.process.serving import Server, point, running
from traffic import Clients, traffic
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT_S = 60.0
KEPT_CONNECTIONS = 6  # to one server, at most: Chromium's limit


def upgraded(server: Server, folder: Path, to: Path) -> None:
    """`current` leads to the release and the server runs it; nothing that the old one had in hand was cut."""
    since = server.mark()
    point(folder, to)
    answer = server.reload()
    assert answer.ok, answer.text
    assert complaints(server, since) == [], "\n".join(server.lines)


def complaints(server: Server, since: int = 0) -> list[str]:
    """Lines of the log that tell of something lost."""
    lines = server.lines[since:]
    return [line for line in lines if "Traceback" in line or "cut " in line.replace("nothing was cut", "")]


# ------------------------------------------------------------------------------------ Django's admin, in a browser

# What a page of one's own does all the time: it sends something and reads it back, several at once, by the browser's own
# connections.
ASKING = """
window.failed = []; window.seen = {}; window.asked = 0; window.over = false;
window.clients = [1, 2, 3].map(async () => {
  while (!over) {
    const body = 'x'.repeat(1 + Math.random() * 20000);
    try {
      const answer = await fetch('/echo', {method: 'POST', body});
      const release = answer.headers.get('X-Release');
      if (answer.status != 200 || await answer.text() != body) failed.push(answer.status);
      seen[release] = (seen[release] || 0) + 1;
      asked++;
    } catch (error) { failed.push(String(error)); }
    await new Promise(done => setTimeout(done, Math.random() * 40));
  }
});
0
"""
TWENTY_MORE = """
new Promise(done => {
  const until = asked + 20;
  const again = setInterval(() => { if (asked >= until) { clearInterval(again); done(0); } }, 5);
})
"""
ENDED = "over = true, Promise.all(clients).then(() => ({failed, seen}))"


def log_in(page: Page, url: str) -> None:
    page.go(f"{url}/admin/")
    page.fill("#id_username", admin_site.USER)
    page.fill("#id_password", admin_site.PASSWORD)
    page.press("input[type=submit]")


def digest(page: Page, path: str) -> str:
    """SHA-256 of what the browser gets there."""
    script = f"""fetch({json.dumps(path)}).then(answer => answer.arrayBuffer())
        .then(data => crypto.subtle.digest('SHA-256', data))
        .then(sum => [...new Uint8Array(sum)].map(byte => byte.toString(16).padStart(2, '0')).join(''))"""
    return str(page.run(script))


def edit_over_an_upgrade(chromium: Browser, page: Page, server: Server, folder: Path, upload: Path) -> str:
    """Logs in, uploads, begins to edit; the upgrade; saves what was begun. The path of the uploaded file."""
    log_in(page, f"http://127.0.0.1:{server.port}")
    assert "The library, one" in page.text
    page.go(f"http://127.0.0.1:{server.port}/admin/library/document/add/")
    page.fill("#id_title", "A long story")
    page.choose("#id_file", upload)
    page.press("[name=_save]")
    assert "was added successfully" in page.text
    page.press(".field-__str__ a")
    page.fill("#id_notes", "written before the upgrade")
    upgraded(server, folder, folder / "releases" / "two")
    assert page.press("[name=_continue]")["status"] == 200
    assert "was changed successfully" in page.text, "the session of the old release goes on"
    for _ in range(KEPT_CONNECTIONS):  # the old workers answer once more on each that the browser has to them
        if "The library, two" in page.text:
            break
        page.go(str(page.run("location.href")))
    assert "The library, two" in page.text
    assert page.run("document.querySelector('#id_notes').value") == "written before the upgrade"
    return str(page.run("document.querySelector('.file-upload a').getAttribute('href')"))


@pytest.mark.server("chromium")
def test_djangos_admin_in_a_browser(tmp_path: Path) -> None:
    """Log in, upload, edit, the upgrade in the middle of editing, save: the session goes on and no request fails."""
    one, _ = admin_site.make(tmp_path, "one", "two")
    point(tmp_path, one)
    upload = tmp_path / "story.txt"
    upload.write_text("".join(f"line {number}\n" for number in range(300_000)))  # 3 MB: to a file, here and in Django
    health = ("--health-path", "/admin/login/", "--health-host", "127.0.0.1")
    with running(tmp_path, "--workers", "3", "--linger", "20", *health) as server, browser() as chromium:
        page, asking = chromium.page(), chromium.page()
        asking.go(f"http://127.0.0.1:{server.port}/admin/login/")
        asking.run(ASKING)
        path = edit_over_an_upgrade(chromium, page, server, tmp_path, upload)
        assert digest(page, path) == hashlib.sha256(upload.read_bytes()).hexdigest()
        page.press(".object-tools a.historylink")
        assert "Added" in page.text and "Changed Notes" in page.text
        asking.run(TWENTY_MORE)
        told = asking.run(ENDED)
        assert told["failed"] == [] and set(told["seen"]) == {"one", "two"}
        assert chromium.trouble == []
        assert complaints(server) == [], "\n".join(server.lines)


# ------------------------------------------------------------------------------------ Wagtail


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> wagtail_site.Kit:
    return wagtail_site.shared_kit(tmp_path_factory)


WAGTAIL_SETTINGS = """
SECRET_KEY = "only of this test"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "with_media"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
"""
WAGTAIL_URLS = """
from django.conf import settings
from django.urls import re_path
from django.views.static import serve
from mysite.urls import urlpatterns as theirs

urlpatterns = [re_path("^media/(?P<path>.*)$", serve, {"document_root": settings.MEDIA_ROOT}), *theirs]
"""
WAGTAIL_APP = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings.production"
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application
app = StaticFilesHandler(get_wsgi_application())
"""


def wagtail_release(folder: Path, kit: wagtail_site.Kit, name: str) -> Path:
    release = folder / "releases" / name
    shutil.copytree(kit.site, release, ignore=shutil.ignore_patterns("__pycache__"))
    (release / "mysite" / "settings" / "local.py").write_text(WAGTAIL_SETTINGS)
    (release / "with_media.py").write_text(WAGTAIL_URLS)
    (release / "app.py").write_text(WAGTAIL_APP)
    (release / "db.sqlite3").symlink_to(folder / "shared" / "db.sqlite3")
    (release / "media").symlink_to(folder / "shared" / "media")
    (release / ".venv").symlink_to(kit.venv)
    return release


class Editor:
    """Somebody who works in Wagtail's admin: cookies, forms, one connection that is kept as long as the server wants."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        self.cookies: dict[str, str] = {}
        self.releases: list[str] = []

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, str]:
        """(status, body, Location)"""
        sent = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()), **headers}
        sent |= {"Referer": f"http://127.0.0.1:{self.connection.port}/"}
        self.connection.request("GET" if body is None else "POST", path, body, sent)
        answer = self.connection.getresponse()
        for line in answer.headers.get_all("Set-Cookie", []):
            self.cookies.update({name: one.value for name, one in http.cookies.SimpleCookie(line).items()})
        self.releases.append(answer.headers["X-Release"])
        return answer.status, answer.read(), answer.headers.get("Location", "")

    def token(self, path: str) -> str:
        _, page, _ = self.ask(path)
        found = re.search(rb'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        assert found, page[:300]
        return found[1].decode()

    def log_in(self) -> None:
        login = {"username": wagtail_site.EDITOR, "password": wagtail_site.PASSWORD, "next": "/admin/"}
        form = urlencode({"csrfmiddlewaretoken": self.token("/admin/login/"), **login}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert self.ask("/admin/login/", form, **headers)[::2] == (302, "/admin/")

    def upload(self, title: str, png: bytes) -> int:
        """As the admin's uploader does it; the image's number."""
        parts = {"csrfmiddlewaretoken": self.token("/admin/images/multiple/add/"), "title": title, "collection": "1"}
        body = b"".join(
            f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in parts.items()
        )
        body += b'--edge\r\nContent-Disposition: form-data; name="files[]"; filename="a.png"\r\n'
        body += b"Content-Type: image/png\r\n\r\n" + png + b"\r\n--edge--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=edge", "X-Requested-With": "XMLHttpRequest"}
        status, answer, _ = self.ask("/admin/images/multiple/add/", body, **headers)
        assert status == 200 and json.loads(answer)["success"], answer[:500]
        return int(json.loads(answer)["image_id"])

    def image(self, number: int) -> bytes:
        """What the page of the image shows."""
        status, page, _ = self.ask(f"/admin/images/{number}/")
        found = re.search(rb'<img [^>]*src="(/media/images/[^"]+)"', page)
        assert status == 200 and found, page[:500]
        status, data, _ = self.ask(found[1].decode())
        assert status == 200
        return data


def png(side: int, colour: int) -> bytes:
    """A square of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes([colour, 80, 80]) * side) * side
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def test_wagtail(kit: wagtail_site.Kit, tmp_path: Path) -> None:
    """Pages under load, an editor who logs in and uploads images before and after the upgrade: nothing is lost."""
    (tmp_path / "shared" / "media").mkdir(parents=True)
    shutil.copy(kit.database, tmp_path / "shared")
    one, two = (wagtail_release(tmp_path, kit, name) for name in ("one", "two"))
    point(tmp_path, one)
    health = ("--health-path", "/", "--health-host", "127.0.0.1")
    with running(tmp_path, "--workers", "3", "--linger", "20", *health) as server:
        editor = Editor(server.port)
        editor.log_in()
        first = editor.upload("Before", png(900, 200))
        address = f"tcp://127.0.0.1:{server.port}"
        pages = Clients("pages", address, keep_alive=3, closing=2, host="127.0.0.1", pause_s=0.1)
        admin = Clients("admin", address, keep_alive=1, path="/admin/login/", host="127.0.0.1", pause_s=0.1)
        with traffic(tmp_path, pages, admin) as load:
            upgraded(server, tmp_path, two)
            second = editor.upload("After", png(900, 30))
            seen = load.stop()
        assert load.failed == 0, load.failures
        assert seen["pages"].releases.keys() == {"one", "two"}
        pictures = {editor.image(number) for number in (first, second)}
        assert len(pictures) == 2 and all(picture.startswith(b"\x89PNG") for picture in pictures)
        assert editor.releases[0] == "one" and editor.releases[-1] == "two"


# ------------------------------------------------------------------------------------ FastAPI and WebSockets

FASTAPI_APP = """
import asyncio, os
from contextlib import asynccontextmanager
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

RELEASE = os.path.basename(os.getcwd())

def note(what):
    with open("../../lifespan", "a") as file:
        file.write(f"{RELEASE} {os.getpid()} {what}\\n")

@asynccontextmanager
async def lifespan(app):
    note("begins")
    yield {"stock": {"tea": 3}}
    note("ends")

app = FastAPI(lifespan=lifespan)

class Order(BaseModel):
    name: str
    count: int

@app.post("/orders")
async def order(order: Order):
    await asyncio.sleep(0.05)
    return {"release": RELEASE, **order.model_dump()}

@app.websocket("/chat/{name}")
async def chat(websocket: WebSocket, name: str):
    await websocket.accept()
    try:
        while True:
            await websocket.send_json({"release": RELEASE, "name": name, "heard": await websocket.receive_text()})
    except WebSocketDisconnect:
        pass
"""


class Chatter(threading.Thread):
    """Says one number after the other and waits for each to be heard, on one WebSocket; connects anew when it is told that
    the service restarts (1012). closes: the codes it was told."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(daemon=True)
        self.url, self.name_ = f"ws://127.0.0.1:{port}/chat/{name}", name
        self.over = threading.Event()
        self.heard: list[tuple[str, int]] = []
        self.closes: list[int] = []
        self.trouble = ""
        self.start()

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self._talk()
        except Exception as error:
            self.trouble = repr(error)

    def _talk(self) -> None:
        with connect(self.url, open_timeout=LIMIT_S, close_timeout=LIMIT_S) as websocket:
            try:
                while not self.over.wait(0.002):
                    websocket.send(str(len(self.heard)))
                    answer = json.loads(websocket.recv(timeout=LIMIT_S))
                    assert (answer["name"], answer["heard"]) == (self.name_, str(len(self.heard)))
                    self.heard.append((answer["release"], len(self.heard)))
            except ConnectionClosed as closed:
                self.closes.append(closed.rcvd.code if closed.rcvd else 1006)

    def end(self) -> None:
        self.over.set()
        self.join(LIMIT_S)


def test_fastapi_and_its_websockets(tmp_path: Path) -> None:
    """Each WebSocket is told once to come back, and comes back to the new release; no order fails; each worker's lifespan
    begins and ends."""
    pytest.importorskip("fastapi")
    one, two = (tmp_path / "releases" / name for name in ("one", "two"))
    for release in (one, two):
        release.mkdir(parents=True)
        (release / "app.py").write_text(FASTAPI_APP)
    point(tmp_path, one)
    with running(tmp_path, "--workers", "3", "--linger", "2", "--graceful-timeout", "5") as server:
        chatters = [Chatter(server.port, f"guest{number}") for number in range(6)]
        body = json.dumps({"name": "tea", "count": 1})
        orders = [OrderingThread(server.port, body) for _ in range(4)]
        try:
            server.until("all talk", lambda: all(len(one.heard) > 5 for one in chatters))
            upgraded(server, tmp_path, two)
            server.until(
                "all have come back", lambda: all(one.heard[-1][0] == "two" or one.trouble for one in chatters)
            )
        finally:
            for client in (*chatters, *orders):
                client.end()
        assert [one.trouble for one in (*chatters, *orders)] == [""] * 10
        assert [one.closes for one in chatters] == [[1012]] * 6
        for one_ in chatters:
            assert [number for _, number in one_.heard] == list(range(len(one_.heard)))
        assert all({"one", "two"} == set(client.releases) for client in orders)
        noted = tmp_path / "lifespan"
        server.until("the old workers have ended", lambda: noted.read_text().count("one ") == 6)
        lines = [line.split() for line in noted.read_text().splitlines()]
        pids = {pid for release, pid, what in lines if release == "one" and what == "ends"}
        assert len(pids) == 3
        assert sum(release == "two" and what == "begins" for release, _, what in lines) == 3


class OrderingThread(threading.Thread):
    """Orders on a connection that it keeps until it is told that it closes."""

    def __init__(self, port: int, body: str) -> None:
        super().__init__(daemon=True)
        self.port, self.body = port, body
        self.over = threading.Event()
        self.releases: list[str] = []
        self.trouble = ""
        self.start()

    def run(self) -> None:
        try:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)) as connection:
                while not self.over.wait(0.01):
                    connection.request("POST", "/orders", self.body, {"Content-Type": "application/json"})
                    answer = connection.getresponse()  # which connects anew after `Connection: close`
                    told = json.loads(answer.read())
                    assert answer.status == 200 and told["name"] == "tea", told
                    self.releases.append(told["release"])
        except Exception as error:
            self.trouble = repr(error)

    def end(self) -> None:
        self.over.set()
        self.join(LIMIT_S)


# ------------------------------------------------------------------------------------ Datasette

ROWS = 60_000
DATASETTE_APP = """
from datasette.app import Datasette
app = Datasette(["../../shared/shop.db"], plugins_dir="plugins", settings={"max_csv_mb": 0}).app()
"""
DATASETTE_PLUGIN = """
import os
from datasette import hookimpl

@hookimpl
def startup(datasette):
    with open("../../started", "a") as file:
        file.write(f"{os.path.basename(os.getcwd())} {os.getpid()}\\n")
"""


@pytest.fixture(scope="module")
def datasette(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtualenv that has it."""

    def make(folder: Path) -> None:
        download(folder / "wheels", "datasette")
        virtualenv(folder / "venv", folder / "wheels", "datasette")

    return once(tmp_path_factory, "datasette-kit", make) / "venv"


def datasette_releases(folder: Path, home: Path) -> Iterator[Path]:
    (folder / "shared").mkdir()
    with contextlib.closing(sqlite3.connect(folder / "shared" / "shop.db")) as database, database:
        database.execute("CREATE TABLE boats (id INTEGER PRIMARY KEY, name TEXT, price REAL)")
        rows = ((number, f"boat number {number}", number * 1.5) for number in range(1, ROWS + 1))
        database.executemany("INSERT INTO boats VALUES (?, ?, ?)", rows)
    for name in ("one", "two"):
        release = folder / "releases" / name
        (release / "plugins").mkdir(parents=True)
        (release / "plugins" / "noting.py").write_text(DATASETTE_PLUGIN)
        (release / "app.py").write_text(DATASETTE_APP)
        (release / ".venv").symlink_to(home)
        yield release


class SlowReader:
    """Somebody who exports a whole table over a slow line: has read the head of the answer, and takes the rest when told."""

    def __init__(self, port: int, path: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        self.connection.sock = socket.socket()
        self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.connection.sock.settimeout(LIMIT_S)
        self.connection.sock.connect(("127.0.0.1", port))
        self.connection.request("GET", path)
        self.answer = self.connection.getresponse()

    def rest(self) -> str:
        with contextlib.closing(self.connection):
            return self.answer.read().decode()


def test_datasette(datasette: Path, tmp_path: Path) -> None:
    """Pages and JSON under load, and an export of a whole table that was begun before the upgrade and ends after it."""
    one, two = datasette_releases(tmp_path, datasette)
    point(tmp_path, one)
    with running(tmp_path, "--workers", "3", "--linger", "5") as server:
        assert "60,000 rows" in server.get("/shop/boats").body
        export = SlowReader(server.port, "/shop/boats.csv?_stream=on&_size=max")
        address = f"tcp://127.0.0.1:{server.port}"
        rows = Clients("JSON", address, keep_alive=3, closing=2, path="/shop/boats.json?_size=20", pause_s=0.05)
        pages = Clients("pages", address, keep_alive=2, path="/shop/boats?_facet=name&_size=5", pause_s=0.1)
        with traffic(tmp_path, rows, pages) as load:
            upgraded(server, tmp_path, two)
            table = export.rest()
            seen = load.stop()
        assert load.failed == 0, load.failures
        assert seen["JSON"].releases.keys() == {"one", "two"}
        assert export.answer.headers["X-Release"] == "one"
        assert table.splitlines()[1] == "1,boat number 1,1.5" and len(table.splitlines()) == ROWS + 1
        found = json.loads(server.get("/shop/boats.json?_shape=array&id=7").body)
        assert found == [{"id": 7, "name": "boat number 7", "price": 10.5}]
        started = (tmp_path / "started").read_text().split("\n")
        assert len({line for line in started if line.startswith("two ")}) == 3  # once in each worker
