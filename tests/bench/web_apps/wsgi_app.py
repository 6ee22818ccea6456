"""What WSGI servers are measured with: a hello, 10 kB of JSON, 1 MB in either direction, a request that takes 100 ms.

Run by the servers, from a copy of this folder. It does as little as it can: what is measured is the server.
"""

import json
import time

HELLO = b"Hello, world!"
MEGABYTE = b"x" * (1 << 20)
ROWS = [{"id": number, "name": f"item {number}", "price": number * 1.25, "tags": ["a", "b"]} for number in range(150)]


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [HELLO]


def rows(environ, start_response):
    body = json.dumps({"rows": ROWS}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def download(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(MEGABYTE)))])
    return [MEGABYTE]


def upload(environ, start_response):
    size, body = 0, environ["wsgi.input"]
    while chunk := body.read(65536):
        size += len(chunk)
    answer = str(size).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


def slow(environ, start_response):
    time.sleep(0.1)
    return hello(environ, start_response)


ROUTES = {"/json": rows, "/download": download, "/upload": upload, "/slow": slow}


def app(environ, start_response):
    return ROUTES.get(environ["PATH_INFO"], hello)(environ, start_response)
