"""uvicorn's HTTP protocol with a drain that loses no request: `uvicorn shop.asgi:application --http MODULE:Protocol`.

uvicorn closes idle connections, and new ones of which it has read nothing yet, in the moment in which it is told to
stop; a request that is on its way then is reset. Here each connection lingers: a late request is answered with
`Connection: close`, and only who sends none is closed at the end. LINGER_S: longer than the proxy in front keeps idle
connections.
"""

import os

from uvicorn.protocols.http.auto import AutoHTTPProtocol

LINGER_S = float(os.environ.get("LINGER_S", "2"))


def closing(app):
    """The application, telling each client that no further request is taken on its connection."""

    async def answer(scope, receive, send):
        async def send_with_close(message):
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"connection"]
                message = {**message, "headers": [*kept, (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, send_with_close)

    return answer


class Protocol(AutoHTTPProtocol):
    lingering = False

    def shutdown(self):
        if self.transport.is_closing():
            return
        if self.lingering:
            super().shutdown()
        else:
            self.lingering = True
            self.app = closing(self.app)
            self.loop.call_later(LINGER_S, self.shutdown)
