"""The WSGI app that the Python servers run in the tests: `/` says $MIDSTREAM_RELEASE, `/slow?ms=` waits,
`/held?FILE` waits until that file is there."""

import os
import time
from urllib.parse import parse_qs

RELEASE = os.environ.get("MIDSTREAM_RELEASE", "?")


def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(int(parse_qs(environ["QUERY_STRING"])["ms"][0]) / 1000)
    while environ["PATH_INFO"] == "/held" and not os.path.exists(environ["QUERY_STRING"]):
        time.sleep(0.02)
    body = f"{RELEASE}\n".encode()
    start_response("200 OK", [("Content-Length", str(len(body))), ("X-Release", RELEASE)])
    return [body]
