"""The small app that servers are measured with, once for WSGI and once for Rack: it says which version it is.

It takes a third of a second of CPU time to load, as an app does that imports something.
"""

from __future__ import annotations

from pathlib import Path

WSGI = """\
import os, time

end = time.process_time() + 0.3
while time.process_time() < end:
    pass
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "VERSION")) as file:
    VERSION = file.read().strip()


def app(environ, start_response):
    body = b"hello\\n"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6"), ("X-Release", VERSION)])
    return [body]
"""

RACK = """\
clock = -> { Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID) }
stop = clock.call + 0.3
nil while clock.call < stop
version = File.read(File.join(__dir__, "VERSION")).strip
headers = { "content-type" => "text/plain", "content-length" => "6", "x-release" => version }
run ->(_env) { [200, headers.dup, ["hello\\n"]] }
"""

FILES = {"app.py": WSGI, "config.ru": RACK}


def write_app(folder: Path, version: int) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in (FILES | {"VERSION": f"{version}\n"}).items():
        (folder / name).write_text(text)
