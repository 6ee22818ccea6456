"""Workers of `midstream serve` that hang, grow, have served enough, or do not boot; preload; hooks."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import threading
from pathlib import Path

import pytest
from tests.process.serving import make_release, point, running


@pytest.fixture
def app(tmp_path: Path) -> Path:
    point(tmp_path, make_release(tmp_path, "one"))
    return tmp_path


@pytest.mark.parametrize(("threads", "words"), [("1", "its loop stood still"), ("2", "no request of its app threads")])
def test_a_worker_that_hangs_is_killed_with_its_traceback_in_the_log(app: Path, threads: str, words: str) -> None:
    with running(app, "--workers", "1", "--timeout", "1", "--threads", threads) as server:
        worker = server.workers()[0]

        def hang() -> None:
            with pytest.raises((OSError, http.client.HTTPException)):
                server.get("/slow?1000")

        clients = [threading.Thread(target=hang) for _ in range(int(threads))]
        for client in clients:
            client.start()
        server.line(rf"worker 0 \({worker}\) hangs: {words}")
        server.line(r'File ".*releases/one/app.py", line \d+ in app')
        server.line(rf"worker 0 \({worker}\) was killed by signal of a hung worker: {words}")
        for client in clients:
            client.join()
        server.until("another one", lambda: server.workers() not in ([], [worker]))
        assert server.get().pid != worker


def test_a_worker_that_has_answered_enough_is_replaced_without_a_loss(app: Path) -> None:
    with running(app, "--workers", "1", "--max-requests", "5", "--max-requests-jitter", "2") as server:
        pids: set[int] = set()

        def three_have_answered() -> bool:
            pids.add(server.get().pid)
            return len(pids) == 3

        server.until("the third worker", three_have_answered)
        server.line(r"worker \d \(\d+\) is replaced: it has answered 5 requests")


def test_a_worker_that_grows_is_replaced(app: Path) -> None:
    point(app, make_release(app, "big", "import os\nwaste = []"))
    (app / "releases/big/app.py").write_text(
        "import os\nwaste = []\ndef app(environ, start_response):\n"
        "    if environ['PATH_INFO'] == '/grow': waste.append(bytes(b'x' * 150_000_000))\n"
        "    start_response('200 OK', [])\n    return [b'big %d' % os.getpid()]\n"
    )
    with running(app, "--workers", "1", "--max-worker-memory", "100MB") as server:
        worker = server.get().pid
        server.get("/grow")
        server.line(rf"worker 0 \({worker}\) is replaced: it takes \d+ MB of memory, more than 100")
        server.until("the other serves", lambda: server.get().pid != worker)


def test_a_worker_that_does_not_boot_later_is_tried_again_and_the_others_serve(app: Path) -> None:
    hooks = app / "hooks.py"
    gate = app / "broken"
    hooks.write_text(
        f"import os\ndef after_fork(worker):\n    if os.path.exists({str(gate)!r}): raise RuntimeError('no')\n"
    )
    with running(app, "--hooks", str(hooks)) as server:
        first, second = server.workers()
        gate.touch()
        server.signal(signal.SIGKILL, first)
        server.line("hook after_fork failed: RuntimeError: no")
        assert server.get().pid == second
        gate.unlink()
        server.until("two again", lambda: len([pid for pid in server.workers() if pid != first]) == 2)


def test_without_preload_each_worker_imports_the_app(app: Path) -> None:
    point(app, make_release(app, "each", "import os\nopen(f'imported.{os.getpid()}', 'w').close()"))
    with running(app, "--no-preload") as server:
        imported = {int(path.suffix[1:]) for path in (app / "releases/each").glob("imported.*")}
        assert imported == set(server.workers())
        point(app, make_release(app, "bad", "import no_such_module_at_all"))
        answer = server.reload()
        assert not answer.ok and "no_such_module_at_all" in answer.text
        assert server.get().release == "each"


def test_a_preloaded_app_is_imported_once(app: Path) -> None:
    point(app, make_release(app, "once", "import os\nopen(f'imported.{os.getpid()}', 'w').close()"))
    with running(app) as server:
        imported = {int(path.suffix[1:]) for path in (app / "releases/once").glob("imported.*")}
        assert imported == {server.zygote()}


def test_native_threads_are_warned_of_and_no_reason_to_refuse(app: Path) -> None:
    code = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "thread = ctypes.c_ulong()\n"
        "libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)"
    )
    point(app, make_release(app, "native", code))
    with running(app) as server:
        server.line("1 native threads .* do not live on in the workers")
        assert server.get().release == "native"


HOOKS = """
import json, os
def note(name, *arguments):
    with open({path!r}, "a") as file:
        file.write(json.dumps([name, os.getpid(), *arguments]) + "\\n")
def before_exec(settings): note("before_exec", settings.app)
def before_fork(worker): note("before_fork", worker.worker, worker.release, worker.generation)
def after_fork(worker): note("after_fork", worker.worker, worker.pid)
def worker_ready(worker): note("worker_ready", worker.worker)
def worker_exit(worker): note("worker_exit", worker.worker)
def pre_request(worker, request): note("pre_request", request["PATH_INFO"])
def post_request(worker, request): note("post_request", request["PATH_INFO"])
"""


def test_each_hook_runs_where_and_when_it_says(app: Path) -> None:
    notes = app / "notes"
    hooks = app / "hooks.py"
    hooks.write_text(HOOKS.format(path=str(notes)))
    with running(app, "--hooks", str(hooks), "--workers", "1") as server:
        worker, zygote = server.workers()[0], server.zygote()
        server.get("/hello")
        server.until("it is told that the answer is sent", lambda: "post_request" in notes.read_text())
        server.signal(signal.SIGTERM)
        assert server.ends() == 0
        assert [json.loads(line) for line in notes.read_text().splitlines()] == [
            ["before_exec", zygote, "app:app"],
            ["before_fork", zygote, 0, "one", 1],
            ["after_fork", worker, 0, worker],
            ["worker_ready", worker, 0],
            ["pre_request", worker, "/hello"],
            ["post_request", worker, "/hello"],
            ["worker_exit", worker, 0],
        ]


ASGI_2 = """
class app:
    def __init__(self, scope): self.scope = scope
    async def __call__(self, receive, send):
        if self.scope["type"] != "http": raise RuntimeError("no lifespan")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"asgi 2 " + self.scope["path"].encode()})
"""


@pytest.mark.parametrize("hooked", [False, True])
def test_an_app_of_asgi_2_is_served_with_and_without_hooks(app: Path, hooked: bool) -> None:
    point(app, make_release(app, "two_steps", app=ASGI_2))
    notes, hooks = app / "notes", app / "hooks.py"
    hooks.write_text(
        f"def pre_request(worker, request): open({str(notes)!r}, 'a').write('before ' + request['path'])\n"
        f"async def post_request(worker, request): open({str(notes)!r}, 'a').write(' after')\n"
    )
    with running(app, *(("--hooks", str(hooks)) if hooked else ())) as server:
        assert server.get("/hello").body == "asgi 2 /hello"
        if hooked:
            server.until("both are noted", lambda: notes.read_text() == "before /hello after")


def test_an_asgi_app_is_recognised_and_served(app: Path) -> None:
    code = (
        "import os\nasync def app(scope, receive, send):\n"
        "    if scope['type'] != 'http': raise RuntimeError('no lifespan')\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': b'asgi %d' % os.getpid()})\n"
    )
    point(app, make_release(app, "asgi", app=code))
    with running(app) as server:
        reply = server.get()
        assert (reply.release, reply.headers["X-Release"]) == ("asgi", "asgi")
        point(app, app / "releases/one")
        assert server.reload().ok  # from ASGI to WSGI
        assert server.get().release == "one"


def test_kept_connections_are_spread_over_the_workers(app: Path) -> None:
    with running(app, "--workers", "3") as server:
        server.until("all workers", lambda: len(server.workers()) == 3)
        with contextlib.ExitStack() as open_ones:
            clients = []
            for _ in range(30):
                client = open_ones.enter_context(
                    contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20))
                )
                client.connect()
                clients.append(client)
            pids = []
            for client in clients:
                client.request("GET", "/")
                answer = client.getresponse()
                body = answer.read()
                pids.append(int(body.split()[1]))
            shares = [pids.count(pid) for pid in server.workers()]
            assert sum(shares) == 30 and min(shares) >= 5, shares
