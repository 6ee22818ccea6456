"""The app's start-up and shutdown in one worker: uvicorn's lifespan, with a failure that is told and an end that comes.

Differs from uvicorn's: under "auto" an app that takes the start-up message and then raises has failed; uvicorn takes
every exception for "knows no lifespan" and serves a broken release. What must not live here: connections. Runs in a
worker, on its event loop.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn

from midstream.errors import AppError
from midstream.serve.application import failed

_TYPES = (
    "lifespan.startup.complete",
    "lifespan.startup.failed",
    "lifespan.shutdown.complete",
    "lifespan.shutdown.failed",
)


class Lifespan(LifespanOn):
    """state: what the app left for its requests. wanted: "auto", "on" or "off"."""

    def __init__(self, config: Config, wanted: str) -> None:
        super().__init__(config)
        self.wanted = wanted
        self.task: asyncio.Task[Any] | None = None
        self.took_startup = False
        self.has_started = False
        self.spoke_otherwise = False  # it takes the lifespan for a request
        self.error: BaseException | None = None
        self.said = ""

    async def begin(self) -> None:
        """Waits for the app's start-up, as long as it takes. Raises AppError when it fails."""
        if self.wanted == "off":
            return
        await self.startup()
        if self.startup_failed:
            raise AppError(
                f"the app's start-up (lifespan) failed: {self.said or 'it gave no reason'}",
                remedy="mend the app's start-up; --lifespan off leaves it out",
            )
        knows_none = self.wanted == "auto" and (self.spoke_otherwise or not self.took_startup)
        if self.error is not None and not knows_none:
            error = failed("the app's start-up (lifespan) failed", self.error)
            error.remedy = "--lifespan off, if the app knows no lifespan"
            raise error

    async def end(self, timeout_s: float) -> None:
        """Waits for the app's shutdown, so long at most. Never raises: what goes wrong is logged."""
        if self.wanted == "off" or self.task is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self.shutdown()
        except TimeoutError:
            self.logger.error("The app's lifespan.shutdown took more than %.0f s; it is cut.", timeout_s)
        self.task.cancel()
        await asyncio.wait([self.task], timeout=1.0)

    async def main(self) -> None:
        self.task = asyncio.current_task()
        version = {"version": self.config.asgi_version, "spec_version": "2.0"}
        try:
            await self.config.loaded_app(
                {"type": "lifespan", "asgi": version, "state": self.state}, self.receive, self.send
            )
        except BaseException as error:
            self.error = error
            self.error_occurred = True
            if self.has_started and not isinstance(error, asyncio.CancelledError):
                self.logger.error("The app's lifespan ended with an error.\n", exc_info=error)
        finally:
            self.startup_event.set()
            self.shutdown_event.set()

    async def receive(self) -> Any:
        message = await super().receive()
        self.took_startup = True
        return message

    async def send(self, message: Any) -> None:
        if message["type"] not in _TYPES:
            self.spoke_otherwise = True
            raise RuntimeError(f"ASGI message {message['type']!r} is none of the lifespan's")
        if message["type"].endswith(".failed"):
            self.said = str(message.get("message", ""))
        elif message["type"] == "lifespan.startup.complete":
            self.has_started = True
        await super().send(message)
