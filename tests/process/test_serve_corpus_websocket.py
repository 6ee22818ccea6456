"""The cases of the Autobahn test suite for WebSockets against a live `midstream serve`.

kosoku runs them: Autobahn's own runner needs Python 2. Both are fetched, not ours (`foreign.py`); they run in a process of
their own. By default without the cases of throughput (9.*, 12.*, 13.*: megabytes and deflate); MIDSTREAM_AUTOBAHN=1: all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import foreign
import pytest
import serving

pytest.importorskip("uvloop")
pytest.importorskip("websockets")

ALL = bool(os.environ.get("MIDSTREAM_AUTOBAHN"))
TAKES_S = 1500 if ALL else 240

APP = """
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        await send({"type": "websocket.send", **({"bytes": message["bytes"]} if text is None else {"text": text})})
"""
RUNNER = """
import asyncio, json, os, sys
from kosoku import FailureError, run_fuzzingclient

async def main():
    try:
        results = await run_fuzzingclient(sys.argv[1], exclude_cases=json.loads(sys.argv[2]), concurrency=4)
    except FailureError as error:
        results = error.results
    return [[one.case_id, one.behavior.value, one.behavior_close.value, one.result] for one in results]

print(json.dumps(asyncio.run(main())), flush=True)
os._exit(0)  # once in 50 runs kosoku's own threads abort the interpreter while it ends
"""

# Not "OK", and conforming all the same: Autobahn's NON-STRICT (bad UTF-8 is refused at the end of its frame, not at the first
# bad byte), INFORMATIONAL (what becomes of data behind a close) and UNIMPLEMENTED (compression in ways that were not offered).
CONFORMING = ("OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED")
FAILS = {"7.1.5": "a close amid the parts of a message: the library `websockets` calls that an error, 1002, and closes"}


@pytest.mark.slow
@pytest.mark.timeout(TAKES_S + 60)
def test_autobahns_cases(tmp_path: Path) -> None:
    suite = foreign.folder(foreign.KOSOKU)
    serving.point(tmp_path, serving.make_release(tmp_path, "r1", app=APP))
    excluded = [] if ALL else ["9.*", "12.*", "13.*"]
    with serving.running(tmp_path, "--linger", "0") as server:
        done = subprocess.run(
            [sys.executable, "-c", RUNNER, f"ws://127.0.0.1:{server.port}", json.dumps(excluded)],
            env={**os.environ, "PYTHONPATH": str(suite)},
            capture_output=True,
            text=True,
            timeout=TAKES_S,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    wrong = [one for one in results if one[1] not in CONFORMING or one[2] not in ("OK", "INFORMATIONAL")]
    assert {one[0] for one in wrong} == set(FAILS), wrong
    counts = {kind: sum(one[1] == kind for one in results) for kind in CONFORMING}
    print(f"{len(results)} cases: {counts}, and {len(wrong)} known failure")
    assert counts["OK"] > len(results) * 0.9
