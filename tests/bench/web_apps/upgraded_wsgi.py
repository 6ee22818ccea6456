"""The app whose code is replaced: it says which version it is, and takes 0.3 s of CPU time to load, as one does that
imports something."""

import pathlib
import time

end = time.process_time() + 0.3
while time.process_time() < end:
    pass
VERSION = (pathlib.Path(__file__).parent / "VERSION").read_text().strip()
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "6"), ("X-Release", VERSION)]


def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.2)
    body = environ["wsgi.input"]
    while body.read(65536):
        pass
    start_response("200 OK", list(HEADERS))
    return [b"hello\n"]
