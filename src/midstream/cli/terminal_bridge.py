"""The terminal of this command, bound to a program on a host: keys go there, what it prints comes here.

Runs in the command line, over one connection to an agent (`console` in docs/control-protocol.md). The terminal is in raw
mode for the time, so ^C and ^Z are the program's; a line that begins with `~.` leaves, as in ssh.
"""

from __future__ import annotations

import base64
import os
import selectors
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from midstream.deploy import rpc
from midstream.deploy.sync_client import SyncClient
from midstream.errors import HostError

_PIECE_BYTES = 16 * 1024
_CALL = 1


class Left(Exception):
    """`~.` was typed."""


class Escape:
    """Finds `~.` at the beginning of a line in what is typed. `~~` is one `~`."""

    def __init__(self) -> None:
        self._at_begin = True
        self._tilde = False

    def __call__(self, typed: bytes) -> bytes:
        """What goes on to the program. Raises Left."""
        out = bytearray()
        for byte in typed:
            if self._tilde:
                self._tilde = False
                if byte == ord("."):
                    raise Left
                out += b"~" if byte == ord("~") else bytes((ord("~"), byte))
            elif self._at_begin and byte == ord("~"):
                self._tilde = True
                continue
            else:
                out.append(byte)
            self._at_begin = byte in b"\r\n"
        return bytes(out)


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)  # what was typed already is kept
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _Woken:
    """A descriptor that becomes readable when the window changed its size, or we are to end."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        numbers = (signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, lambda number, frame: None) for number in numbers}

    def take(self) -> set[int]:
        return set(os.read(self.read_fd, 4096))

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.read_fd)
        os.close(self._write_fd)


class Bridge:
    """One console. `run` blocks until the program has ended, and gives the agent's answer: `{code, text, ok}`."""

    def __init__(self, client: SyncClient, in_fd: int, out_fd: int) -> None:
        self._where = client.where
        self._socket, self._buffer, self._ping_s = client.take_over()
        self._in, self._out = in_fd, out_fd
        self._last_id = _CALL
        self._session: int | None = None
        self._escape = Escape()
        self._typed = bytearray()  # before the session was there
        self._answer: dict[str, Any] | None = None

    def run(self, app: str, argv: tuple[str, ...]) -> dict[str, Any]:
        """Raises what the agent refuses, HostError when it was lost, Left when the operator left."""
        rows, cols = self._size()
        term = os.environ.get("TERM", "")
        asked = {"app": app, "argv": list(argv), "rows": rows, "cols": cols, "term": term}
        self._send(_CALL, "console", asked)
        woken = _Woken()
        try:
            with selectors.DefaultSelector() as selector, _raw(self._in):
                for fd in (self._socket, self._in, woken.read_fd):
                    selector.register(fd, selectors.EVENT_READ)
                return self._converse(selector, woken)
        finally:
            woken.close()

    def _converse(self, selector: selectors.BaseSelector, woken: _Woken) -> dict[str, Any]:
        self._take_messages()
        pinged_s = time.monotonic()
        while self._answer is None:
            ready = selector.select(self._ping_s or None)
            for key, _ in ready:
                if key.fd == woken.read_fd:
                    self._wake(woken.take())
                elif key.fd == self._in:
                    self._type(os.read(self._in, _PIECE_BYTES))
                else:
                    self._hear()
            if self._ping_s and time.monotonic() - pinged_s >= self._ping_s:
                self._raw_send(b"\n")
                pinged_s = time.monotonic()
        return self._answer

    def _wake(self, numbers: set[int]) -> None:
        if numbers & {signal.SIGTERM, signal.SIGHUP}:
            raise Left
        if self._session is not None:
            rows, cols = self._size()
            self._request("console.resize", rows=rows, cols=cols)

    def _type(self, typed: bytes) -> None:
        if not typed:  # the terminal is gone
            raise Left
        self._typed += self._escape(typed)
        self._type_on()

    def _hear(self) -> None:
        try:
            data = self._socket.recv(256 * 1024)
        except OSError as error:
            raise self._lost(str(error)) from None
        if not data:
            raise self._lost("it closed the connection")
        self._buffer += data
        self._take_messages()

    def _take_messages(self) -> None:
        for line in rpc.split_lines(self._buffer):
            message = rpc.parse_line(line, where=self._where, methods={_CALL: "console"})
            if isinstance(message, rpc.Notice):
                self._notice(message)
            elif message.id in (_CALL, rpc.UNADDRESSED):
                if message.error is not None:
                    raise message.error
                self._answer = message.result or {}

    def _notice(self, notice: rpc.Notice) -> None:
        if notice.method != "console":
            return
        if self._session is None:
            self._session = int(notice.params["session"])
            self._wake(set())  # it may have been resized meanwhile
            self._type_on()
        if data := notice.params.get("data"):
            view = memoryview(base64.b64decode(data))
            while view:
                view = view[os.write(self._out, view) :]

    def _type_on(self) -> None:
        if self._session is not None and self._typed:
            data = base64.b64encode(self._typed).decode("ascii")
            self._typed.clear()
            self._request("console.write", data=data)

    def _request(self, method: str, **params: Any) -> None:
        self._last_id += 1
        self._send(self._last_id, method, {"session": self._session, **params})

    def _send(self, request_id: int, method: str, params: dict[str, Any]) -> None:
        self._raw_send(rpc.request_line(request_id, method, params))

    def _raw_send(self, line: bytes) -> None:
        try:
            self._socket.sendall(line)
        except OSError as error:
            raise self._lost(str(error)) from None

    def _size(self) -> tuple[int, int]:
        size = os.get_terminal_size(self._out)
        return size.lines, size.columns

    def _lost(self, why: str) -> HostError:
        return HostError(
            f"the console was cut off: {why}",
            where=self._where,
            serving="services do not depend on it",
            remedy="midstream console again; the program was hung up",
        )


def exit_code(answer: dict[str, Any]) -> int:
    """The program's own exit code; 128 + N when signal N ended it, as shells say."""
    code = answer.get("code")
    if isinstance(code, int):
        return code
    name = str(answer.get("text", "")).rpartition(" ")[2]
    number = signal.Signals.__members__.get(name)
    return 128 + number if number is not None else 1


def has_terminal() -> bool:
    """Whether stdin and stdout are one."""
    return sys.stdin.isatty() and sys.stdout.isatty()
