"""What the import of an app leaves open: refused with the module's name, unless the hook before_fork closes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.process.serving import LIMIT_S, make_release, point, running
from worker_projects import private_redis

RECIPES = Path(__file__).parents[2] / "docs/recipes/serve_hooks.md"

THREADS = """
import queue, threading, time
import pool_of_ours
from concurrent.futures import ThreadPoolExecutor

def start(name, **words):
    threading.Thread(name=name, daemon=True, **words).start()

start("sleeps", target=time.sleep, args=(1000,))
start("waits", target=queue.Queue().get)
timer = threading.Timer(1000, print)
timer.name, timer.daemon = "timer", True
timer.start()
"""
POOL = """
import asyncio, threading
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1, thread_name_prefix="pool")
pool.submit(len, ())
threading.Thread(name="loop", target=asyncio.new_event_loop().run_forever, daemon=True).start()
"""


def checked(folder: Path, *more: str) -> tuple[bool, str]:
    """Whether `--check` would let it start, and all it found, a finding a line."""
    command = [
        sys.executable,
        "-m",
        "midstream",
        "serve",
        "app:app",
        "--chdir",
        str(folder),
        "--check",
        "--json",
        *more,
    ]
    command += ["--bind", f"unix:{folder}/sock"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    report = json.loads(done.stdout)
    return report["ok"], "\n".join(finding["what"] for finding in report["findings"])


def test_a_thread_is_named_by_the_module_that_began_it(tmp_path: Path) -> None:
    """Though nothing but the standard library is on its stack."""
    release = make_release(tmp_path, "one", THREADS)
    (release / "pool_of_ours.py").write_text(POOL)
    ok, found = checked(release)
    assert not ok
    for name, module in (
        ("sleeps", "app"),
        ("waits", "app"),
        ("timer", "app"),
        ("pool_0", "pool_of_ours"),
        ("loop", "pool_of_ours"),
    ):
        assert f"thread '{name}' of {module}\n" in found + "\n"


def test_a_thread_that_before_fork_ends_is_no_reason_to_refuse(tmp_path: Path) -> None:
    release = make_release(tmp_path, "one", "import pool_of_ours")
    (release / "pool_of_ours.py").write_text(POOL.split("threading.Thread")[0])
    hooks = release / "hooks.py"
    hooks.write_text("def before_fork(worker):\n    pass\n")
    assert "of pool_of_ours" in checked(release, "--hooks", "hooks.py")[1]
    hooks.write_text("def before_fork(worker):\n    import pool_of_ours\n    pool_of_ours.pool.shutdown()\n")
    assert checked(release, "--hooks", "hooks.py")[0]
    hooks.write_text("def before_fork(worker):\n    raise ValueError(worker.release)\n")
    assert "hook before_fork failed: ValueError: one" in checked(release, "--hooks", "hooks.py")[1]


@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed")
def test_the_recipe_for_redis_lets_an_app_that_asks_it_at_import_serve(tmp_path: Path) -> None:
    """Each worker has a connection of its own, and the zygote none."""
    pytest.importorskip("redis")
    recipe = RECIPES.read_text(encoding="utf-8").split("## redis")[1].split("```python\n")[1].split("```")[0]
    answer = "def app(environ, start_response):\n    start_response('200 OK', [])\n"
    answer += "    return [f'{redis.client_id()} {__import__(\"os\").getpid()}'.encode()]\n"
    release = make_release(tmp_path, "one", "", "from shop.cache import redis\n" + answer)
    (release / "shop").mkdir()
    point(tmp_path, release)
    with private_redis(tmp_path) as redis:
        cache = f"from redis import Redis\nredis = Redis.from_url({redis.url!r})\nat_import = redis.client_id()\n"
        (release / "shop/cache.py").write_text(cache)
        assert "a connection to 127.0.0.1:" in checked(release)[1]
        (release / "hooks.py").write_text(recipe)
        assert checked(release, "--hooks", "hooks.py")[0]
        with running(tmp_path, "--hooks", "hooks.py") as server:
            seen: dict[str, str] = {}

            def both_have_answered() -> bool:
                client, pid = server.get().body.split()
                return seen.setdefault(pid, client) == client and len(seen) == 2

            server.until("both workers have answered", both_have_answered)
            assert len(set(seen.values())) == 2
            server.until(
                "nobody else has one", lambda: str(redis.ask("CLIENT", "LIST")).count("laddr=") == 3
            )  # and ours
