"""Build steps `on = "deployer"`: run here, in a clean checkout of the very revision, in a folder that is thrown away.

Runs in the deployer, on its event loop; git in a thread. The environment is this process's, with `[env]`, the step's
variables and the secrets over it. Nothing of the working copy is in it: what is not committed is not built.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from midstream.core.placeholders import fill
from midstream.core.spec import AppSpec, CommandStep
from midstream.errors import AppError, HostError, OperatorError

WHERE = "the machine that deploys"
_LINE_MAX_BYTES = 64 * 1024
_TAIL_LINES = 40
_END_S = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Checkout:
    """A clean checkout. folder: what a release would have, below `repo_tree` where there is one."""

    folder: str
    spec: AppSpec
    secrets: Mapping[str, str]

    def environment(self, step: CommandStep) -> dict[str, str]:
        """Of a build step here. Raises OperatorError for a placeholder that only a host could fill."""
        words = {"release": self.folder}
        env = dict(os.environ)
        env |= {name: self._filled(value, words) for name, value in self.spec.env.variables.items()}
        env |= {name: value for name, value in self.secrets.items() if name in self.spec.env.secrets}
        front = [os.path.join(self.folder, self._filled(entry, words)) for entry in self.spec.env.path]
        env["PATH"] = ":".join([*front, os.environ.get("PATH", os.defpath)])
        env |= {"MIDSTREAM_APP": self.spec.app, "MIDSTREAM_STAGE": self.spec.stage}
        env["MIDSTREAM_RELEASE_PATH"] = self.folder
        return env | {name: self._filled(value, words) for name, value in step.env.items()} | {"PYTHONUNBUFFERED": "1"}

    def argv(self, step: CommandStep) -> tuple[str, ...]:
        argv = tuple(self._filled(word, {"release": self.folder}) for word in step.run)
        return ("/bin/sh", "-c", " ".join(argv)) if step.shell else argv

    def _filled(self, text: str, words: Mapping[str, str]) -> str:
        try:
            return fill(text, words)
        except KeyError as error:
            raise OperatorError(
                f"{error.args[0]} is a folder of a host: a build on the deployer has none",
                where='[[build]] with on = "deployer", [env]',
                remedy='use {release}, or build on = "once"',
            ) from None


async def build(checkout: Checkout, steps: Sequence[CommandStep], say: Say) -> None:
    """Runs the steps, one after the other. say: is told each line. Raises AppError for the first that fails; cancelling
    ends what runs, with all it has started."""
    for step in steps:
        say(f"$ {step.name or ' '.join(step.run)[:60]}")
        await _run(checkout, step, say)


async def _run(checkout: Checkout, step: CommandStep, say: Say) -> None:
    tail: list[str] = []
    try:
        process = await asyncio.create_subprocess_exec(
            *checkout.argv(step),
            cwd=checkout.folder,
            env=checkout.environment(step),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_LINE_MAX_BYTES,
        )
    except OSError as error:
        raise _failed(step, f"did not start: {error.strerror}", tail) from None
    try:
        async with asyncio.timeout(step.timeout_s):
            await _follow(process, tail, say)
            code = await process.wait()
    except TimeoutError:
        await _end(process)
        raise _failed(step, f"was stopped after {step.timeout_s:g} s", tail) from None
    except BaseException:
        await _end(process)
        raise
    if code != 0:
        text = f"exit {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        raise _failed(step, text, tail)


async def _follow(process: asyncio.subprocess.Process, tail: list[str], say: Say) -> None:
    """Lines until the output ends; one that is too long comes in pieces."""
    assert process.stdout is not None
    while True:
        try:
            raw = await process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            raw = error.partial
        except asyncio.LimitOverrunError as error:
            raw = await process.stdout.readexactly(error.consumed)
        if not raw:
            return
        line = raw.decode(errors="replace").rstrip("\n")
        tail.append(line)
        del tail[:-_TAIL_LINES]
        say(line)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its process group, too: what it left running would hold the folder that is thrown away."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signum)
        if process.returncode is not None:
            continue
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await process.wait()


def _failed(step: CommandStep, how: str, tail: list[str]) -> AppError:
    return AppError(
        f"the build step `{' '.join(step.run)}` {how}",
        where=WHERE,
        detail="\n".join(tail),
        remedy="mend it, commit, and deploy again",
    )


def disk_trouble(error: OSError, folder: str) -> HostError:
    """For what could not be written here."""
    return HostError(
        f"the build cannot be kept: {error.strerror}",
        where=f"{WHERE}, {folder}",
        remedy="free some space there, or set TMPDIR to a folder with more",
    )
