"""The app that the tests of the WSGI server ask: each path does one thing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

_text = [("Content-Type", "text/plain")]


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    name, _, argument = environ["PATH_INFO"].lstrip("/").partition("/")
    return globals().get("do_" + name, do_hello)(environ, start_response, argument)


def do_hello(environ, start_response, argument):
    start_response("200 OK", _text)
    return [b"hello"]


def do_echo(environ, start_response, argument):
    start_response("200 OK", _text)
    return [environ["wsgi.input"].read()]


def do_digest(environ, start_response, argument):
    """Of the body, read in pieces; and what kind of file it came in."""
    digest, size = hashlib.sha256(), 0
    while piece := environ["wsgi.input"].read(65536):
        digest.update(piece)
        size += len(piece)
    kind = "memory" if isinstance(environ["wsgi.input"], io.BytesIO) else "file"
    return _json(start_response, {"sha256": digest.hexdigest(), "size": size, "kind": kind})


def do_environ(environ, start_response, argument):
    return _json(start_response, {key: value for key, value in environ.items() if isinstance(value, str | bool | int)})


def do_lines(environ, start_response, argument):
    return _json(start_response, [line.decode() for line in environ["wsgi.input"]])


def do_stream(environ, start_response, argument):
    start_response("200 OK", _text)
    return (b"piece %d\n" % number for number in range(int(argument)))


def do_write(environ, start_response, argument):
    write = start_response("200 OK", _text)
    write(b"one ")
    write(b"two ")
    return [b"three"]


def do_large(environ, start_response, argument):
    start_response("200 OK", _text)
    return [b"x" * int(argument)]


def do_large_pieces(environ, start_response, argument):
    start_response("200 OK", [*_text, ("Content-Length", str(int(argument) * 65536))])
    return (bytes([number % 251]) * 65536 for number in range(int(argument)))


def do_file(environ, start_response, argument):
    start_response("200 OK", _text)
    return environ["wsgi.file_wrapper"](open(os.environ["TEST_FILE"], "rb"))


def do_file_part(environ, start_response, argument):
    file = open(os.environ["TEST_FILE"], "rb")
    file.seek(100)
    start_response("206 Partial Content", [*_text, ("Content-Length", argument)])
    return environ["wsgi.file_wrapper"](file)


def do_memory_file(environ, start_response, argument):
    start_response("200 OK", _text)
    return environ["wsgi.file_wrapper"](io.BytesIO(b"from memory"))


def do_gzip_file(environ, start_response, argument):
    import gzip

    packed = io.BytesIO(gzip.compress(b"unpacked"))
    start_response("200 OK", _text)
    return environ["wsgi.file_wrapper"](gzip.GzipFile(fileobj=packed))


def do_status(environ, start_response, argument):
    start_response(argument.replace("_", " "), [])
    return []


def do_header(environ, start_response, argument):
    """Sets the header that the query names: NAME=VALUE, percent-decoded."""
    from urllib.parse import unquote

    name, _, value = unquote(environ["QUERY_STRING"], "latin-1").partition("=")
    start_response("200 OK", [(name, value)])
    return [b"hello"]


def do_boom(environ, start_response, argument):
    raise RuntimeError("boom in the app")


def do_exit(environ, start_response, argument):
    sys.exit(3)


def do_boom_late(environ, start_response, argument):
    start_response("200 OK", _text)

    def pieces():
        yield b"first"
        raise RuntimeError("boom after the head")

    return pieces()


def do_recover(environ, start_response, argument):
    start_response("200 OK", _text)
    try:
        raise ValueError("found out late")
    except ValueError:
        start_response("418 Teapot", _text, sys.exc_info())
    return [b"recovered"]


def do_recover_too_late(environ, start_response, argument):
    write = start_response("200 OK", _text)
    write(b"out already")
    try:
        raise ValueError("found out too late")
    except ValueError:
        start_response("500 Sorry", _text, sys.exc_info())
    return [b"never"]


def do_twice(environ, start_response, argument):
    start_response("200 OK", _text)
    start_response("200 OK", _text)
    return [b"never"]


def do_silent(environ, start_response, argument):
    return [b"no start_response"]


def do_text(environ, start_response, argument):
    start_response("200 OK", _text)
    return ["no bytes"]


def do_short(environ, start_response, argument):
    start_response("200 OK", [("Content-Length", "100")])
    return [b"too short"]


def do_long(environ, start_response, argument):
    start_response("200 OK", [("Content-Length", "3")])
    return [b"too long"]


class Closing:
    """An iterable whose close() waits for a further request."""

    closing = threading.Event()
    released = threading.Event()

    def __iter__(self):
        yield b"answered"

    def close(self):
        Closing.closing.set()
        Closing.released.wait(20)


def do_closing(environ, start_response, argument):
    Closing.released.clear()
    start_response("200 OK", [("Content-Length", "8")])
    return Closing()


def do_release(environ, start_response, argument):
    closing = Closing.closing.wait(20)
    Closing.released.set()
    return _json(start_response, closing)


def do_close_fails(environ, start_response, argument):
    class Failing(list):
        def close(self):
            raise RuntimeError("boom in close")

    start_response("200 OK", _text)
    return Failing([b"all of it"])


def do_busy(environ, start_response, argument):
    """Says on a FIFO that it runs, then waits until another FIFO is written to."""
    started, go = argument.split("+")
    with open("/" + started.replace(":", "/"), "w") as fifo:
        fifo.write("x")
    with open("/" + go.replace(":", "/")) as fifo:
        fifo.read(1)
    start_response("200 OK", _text)
    return [b"done"]


def do_sleep(environ, start_response, argument):
    time.sleep(float(argument))
    start_response("200 OK", _text)
    return [b"slept"]


def do_bug(environ, start_response, argument):
    """As if the server had one, once."""
    from midstream.serve.http1 import Connection

    ended = Connection.ended

    def raises(self, broken, keep):
        Connection.ended = ended
        raise RuntimeError("a bug")

    Connection.ended = raises
    return do_hello(environ, start_response, argument)


def do_thread(environ, start_response, argument):
    return _json(start_response, threading.current_thread().name)


def do_tamper(environ, start_response, argument):
    environ.clear()
    start_response("200 OK", _text)
    return [b"cleared"]


def _json(start_response, value):
    body = json.dumps(value).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def validated(environ, start_response):
    """The app inside wsgiref's validator, which looks at both sides."""
    from wsgiref.validate import validator

    def inner(environ, start_response):
        if environ["REQUEST_METHOD"] == "POST":
            environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("200 OK", _text)
        return [b"valid"]

    return validator(inner)(environ, start_response)
