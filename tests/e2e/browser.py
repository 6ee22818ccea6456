"""A real Chromium without a window, driven over its DevTools protocol, for tests of what people do in a browser.

What lives here: the program (Debian's `chromium`), messages on its pipe, and what a person does: go, fill in, choose a file,
press. What failed is kept in `trouble`: requests that got no answer, answers of 400 and more, errors of scripts. Nothing
here sleeps; everything waits for an event, bounded by LIMIT_S.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT_S = 60.0
PROGRAM = "chromium"
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
)


@dataclass
class Browser:
    """One browser with its own profile. Use `browser`, which ends it."""

    process: subprocess.Popen[bytes]
    to_it: int
    from_it: int
    events: list[dict[str, Any]] = field(default_factory=list)
    _buffer: bytes = b""
    _number: int = 0

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """One command and its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.to_it, json.dumps(message).encode() + b"\0")
        until_s = time.monotonic() + LIMIT_S
        while True:
            answer = self._receive(until_s)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def event(self, since: int, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event from number `since` on that is it; waits for it."""
        until_s = time.monotonic() + LIMIT_S
        while True:
            for one in self.events[since:]:
                if is_it(one):
                    return one
            since = len(self.events)
            self._receive(until_s)

    def _receive(self, until_s: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            readable, _, _ = select.select([self.from_it], [], [], max(0.0, until_s - time.monotonic()))
            assert readable, f"the browser says nothing more; its last events: {self.events[-3:]}"
            data = os.read(self.from_it, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def page(self) -> Page:
        """A new tab."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Network", "Runtime", "DOM"):
            page.call(f"{domain}.enable")
        return page

    @property
    def trouble(self) -> list[str]:
        """What went wrong in all tabs so far, but for requests that a page which was left did not need any more."""
        self.call("Browser.getVersion")  # events that are on their way come before this answer
        urls = {
            one["params"]["requestId"]: one["params"]["request"]["url"]
            for one in self.events
            if one["method"] == "Network.requestWillBeSent"
        }
        found = []
        for one in self.events:
            told = one["params"]
            if one["method"] == "Network.loadingFailed" and not told.get("canceled"):
                found.append(f"{urls.get(told['requestId'])}: {told['errorText']}")
            elif one["method"] == "Network.responseReceived" and told["response"]["status"] >= 400:
                found.append(f"{told['response']['url']}: {told['response']['status']}")
            elif one["method"] == "Runtime.exceptionThrown":
                found.append(str(told["exceptionDetails"]))
        return found


@dataclass
class Page:
    """A tab."""

    browser: Browser
    session: str

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def run(self, script: str) -> Any:
        """The value of an expression; awaited, if it is a promise."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, f"{script}: {done['exceptionDetails']}"
        return done["result"].get("value")

    def go(self, url: str) -> dict[str, Any]:
        return self._loading(lambda: self.call("Page.navigate", url=url))

    def press(self, selector: str) -> dict[str, Any]:
        """A click that leads to another page; the answer with which that began."""
        return self._loading(lambda: self.run(f"document.querySelector({json.dumps(selector)}).click()"))

    def fill(self, selector: str, text: str) -> None:
        """As typed, in place of what stood there."""
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def choose(self, selector: str, file: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    @property
    def text(self) -> str:
        return str(self.run("document.body.innerText"))

    def _loading(self, act: Callable[[], object]) -> dict[str, Any]:
        """The answer (status, headers, url) to the page that is loaded after it."""
        since = len(self.browser.events)
        act()
        self.browser.event(since, self._is("Page.loadEventFired"))
        answers = [
            one["params"]["response"]
            for one in self.browser.events[since:]
            if self._is("Network.responseReceived")(one) and one["params"]["type"] == "Document"
        ]
        return dict(answers[-1])

    def _is(self, method: str) -> Callable[[dict[str, Any]], bool]:
        return lambda one: one["method"] == method and one.get("sessionId") == self.session


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile in a folder of its own (a short path: there will be sockets in it). It, all its processes
    and the folder are gone afterwards in any case."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    home = Path(tempfile.mkdtemp(prefix="ms-chromium-", dir="/tmp"))
    # It reads descriptor 3 and writes descriptor 4.
    command = ["bash", "-c", f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$0" "$@"']
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, shutil.which(PROGRAM) or PROGRAM, *OPTIONS, f"--user-data-dir={home}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[theirs_in, theirs_out],
            env={**os.environ, "HOME": str(home), "TMPDIR": str(home)},
            start_new_session=True,
        )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(process, ours_out, ours_in)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
        shutil.rmtree(home, ignore_errors=True)
