"""Runs `midstream` commands as a user would, and reads what they print with --json.

Runs in the demo. Nothing here knows what the commands are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midstream.cli.programs import program_argv

_LINE_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended. rows: what it printed as JSON lines; stderr: for people."""

    code: int
    rows: list[dict[str, Any]]
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        return next((row for row in reversed(self.rows) if row.get("type") == "summary"), {})


async def run(
    words: list[str], *, folder: Path, env: dict[str, str], on_row: Callable[[dict[str, Any]], None] | None = None
) -> Done:
    """One command to its end. Cancelled, it is interrupted as by ^C and waited for."""
    process = await asyncio.create_subprocess_exec(
        *program_argv(*words),
        cwd=folder,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=_LINE_MAX_BYTES,
    )
    assert process.stdout is not None and process.stderr is not None
    complaints = asyncio.create_task(process.stderr.read())
    rows: list[dict[str, Any]] = []
    try:
        async for line in process.stdout:
            row = json.loads(line)
            rows.append(row)
            if on_row is not None:
                on_row(row)
        return Done(await process.wait(), rows, (await complaints).decode(errors="replace"))
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        await process.wait()
        raise
    finally:
        complaints.cancel()
