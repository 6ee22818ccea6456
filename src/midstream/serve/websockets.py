"""One WebSocket: uvicorn's protocol on the library `websockets`, with our handshake's head, counts and goodbye.

Differs from uvicorn's: what the app sends after the goodbye is a disconnect to it, not its mistake; the goodbye waits for
the client's; a client that is not read from is not blamed for missing pongs. What must not live here: HTTP
(`asgi_http.py`), when a drain says goodbye (`asgi.py`). Runs in a worker, on its event loop.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from midstream.serve.contract import Answered

if TYPE_CHECKING:
    from websockets.http11 import Request

    from midstream.serve.asgi_premises import Premises

SERVICE_RESTART = 1012  # RFC 6455's registry: come back, there is another server
GOODBYE_S = 5.0  # how long the client's part of the closing handshake may take


class WebSocketConnection(WebSocketsSansIOProtocol):
    """From the handshake to the end. asked: the scope of the request that asked for it."""

    def __init__(
        self, config: Config, premises: Premises, app_state: dict[str, Any], asked: Any, private: bool
    ) -> None:
        super().__init__(config=config, server_state=premises, app_state=app_state, _loop=premises.loop)
        self.premises = premises
        self.asked = asked
        self.private = private
        self.close_timeout = GOODBYE_S
        self.began_s = time.monotonic()
        self.began_unix_s = time.time()
        self.status = 0
        self.bytes_sent = 0
        self.task: asyncio.Task[None] | None = None
        self.is_leaving = False
        self.is_cut = False
        self.app = self._call
        self.unsent = 0
        self.unsent_since_s = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.client = self.asked["client"]
        self.scheme = "wss" if self.asked["scheme"] == "https" else "ws"
        self.premises.websockets.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.premises.websockets.discard(self)
        self.premises.websocket_ended(self)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code != 101:  # no good handshake: the app has not heard of it
            self.status = self.response.status_code
        elif self.premises.drain is not None:
            self.leave_soon(self.premises.drain.jitter_s())

    # ---- the app's side

    async def run_asgi(self) -> None:
        self.task = asyncio.current_task()
        if self.task is not None:
            self.premises.task_began(self.task, self)
        await super().run_asgi()

    async def _call(self, scope: Any, receive: Any, send: Any) -> Any:
        """The app; to be cut is no mistake of its."""
        try:
            return await self.config.loaded_app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.is_cut:
                raise
            raise ClientDisconnected from None

    async def send(self, message: Any) -> None:
        if self.is_leaving:
            await self._send_behind_goodbye(message)
            return
        size = len(message.get("bytes") or b"") or len(message.get("text") or "")
        was_open = self.handshake_complete
        if not was_open:
            self.default_headers = self.premises.default_headers_beside(message.get("headers") or ())
        await super().send(message)
        self.bytes_sent += size
        if not was_open:
            self._note_handshake(message)

    async def _send_behind_goodbye(self, message: Any) -> None:
        if message["type"] != "websocket.close":
            raise ClientDisconnected("the server has closed this WebSocket: it is going away")

    def _note_handshake(self, message: Any) -> None:
        match message["type"]:
            case "websocket.accept":
                self.status = 101
                self.premises.accepted(self)
            case "websocket.close":
                self.status = 403
            case "websocket.http.response.start":
                self.status = message["status"]

    # ---- the goodbye

    def leave_soon(self, delay_s: float) -> None:
        self.loop.call_later(delay_s, self.leave)

    def leave(self) -> None:
        """Says 1012 between two messages, tells the app, and waits a while for the client's goodbye."""
        if self.disconnected or self.close_sent or self.transport.is_closing():
            return
        if not self.handshake_complete:  # soon after the handshake, then
            self.leave_soon(0.1)
            return
        self.stop_keepalive()
        self.is_leaving = self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": SERVICE_RESTART, "reason": "service restart"})
        self.conn.send_close(SERVICE_RESTART, "service restart")
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def cut(self) -> None:
        """The time is over."""
        self.is_cut = True
        if self.task is not None:
            self.task.cancel()
        self.transport.abort()

    @property
    def is_over(self) -> bool:
        return self.disconnected

    # ---- deadlines

    def keepalive_timeout(self) -> None:
        if self.read_paused:  # its pong may lie unread behind a message that the app has not taken
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()

    def watch_output(self, now_s: float) -> None:
        """Once a second: closes where the client has read nothing for the whole write time-out."""
        unsent = self.transport.get_write_buffer_size()
        timeout_s = self.premises.settings.write_timeout_s
        if unsent == 0 or unsent != self.unsent:
            self.unsent, self.unsent_since_s = unsent, now_s
        elif timeout_s and now_s - self.unsent_since_s > timeout_s:
            self.transport.abort()

    def told(self) -> Answered:
        """The whole WebSocket as one line of the access log, told at its end."""
        headers = dict(self.asked["headers"])
        query = self.asked["query_string"].decode("latin-1")
        return Answered(
            client="" if self.client is None else self.client[0],
            method=self.asked["method"],
            target=self.asked["raw_path"].decode("latin-1") + (f"?{query}" if query else ""),
            version=self.asked["http_version"],
            status=self.status,
            bytes_sent=self.bytes_sent,
            began_unix_s=self.began_unix_s,
            seconds=time.monotonic() - self.began_s,
            referer=headers.get(b"referer", b"").decode("latin-1"),
            user_agent=headers.get(b"user-agent", b"").decode("latin-1"),
            host=headers.get(b"host", b"").decode("latin-1"),
            request_id=headers.get(b"x-request-id", b"").decode("latin-1"),
        )
