"""The git repository of the demo project: made in the temporary folder, one commit for each release. Runs git."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from string import Template

from midstream.cli.demo.project_kind import Change
from midstream.errors import HostError

_IDENTITY = ("-c", "user.name=Midstream demo", "-c", "user.email=demo@example.com", "-c", "commit.gpgsign=false")
# Nothing of this user's git configuration: hooks, templates and signing have no place in a demo.
_ENV = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}


class Repository:
    """`words` fill the placeholders of midstream.toml."""

    def __init__(self, folder: Path, words: dict[str, str]) -> None:
        self.folder = folder
        self._words = words

    async def make(self) -> None:
        """Raises HostError where there is no git."""
        self.folder.mkdir()
        await self._git("init", "-q", "-b", "main")

    async def commit(self, change: Change) -> str:
        """Writes the files and commits them; returns the revision."""
        for name, text in change.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = Template(text).substitute(self._words) if name == "midstream.toml" else text
            path.write_text(whole, encoding="utf-8")
        await self._git("add", "-A")
        await self._git(*_IDENTITY, "commit", "-q", "-m", change.subject)
        return await self._git("rev-parse", "HEAD")

    async def _git(self, *args: str) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                "git",
                *args,
                cwd=self.folder,
                env={**os.environ, **_ENV},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError:
            raise HostError("there is no git here", remedy="install git, and start the demo again") from None
        out, err = await process.communicate()
        if process.returncode:
            raise HostError(
                f"git {args[0]} failed",
                where=str(self.folder),
                detail=err.decode(errors="replace"),
                remedy="the lines above are git's own; `midstream doctor` looks for git and its version",
            )
        return out.decode().strip()
