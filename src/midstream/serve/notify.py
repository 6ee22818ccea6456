"""Telling a service manager how it goes: sd_notify(3), and its watchdog. Master, or the zygote that runs alone.

What lives here: the datagrams. What must not: when they are sent. Nothing blocks: a manager that does not read misses one.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """address: NOTIFY_SOCKET, "" when nobody wants to know. watchdog_s: how often WATCHDOG=1 is due; 0.0: never."""

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        self.watchdog_s = _watchdog_s(environment, pid) / 2
        self._status = ""

    def send(self, *lines: str) -> None:
        """Each line is NAME=VALUE."""
        if self._sock is None:
            return
        try:
            self._sock.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, self._address)
        except OSError:
            pass  # its socket is full or gone: it serves all the same

    def status(self, text: str) -> None:
        """Said when it is another than before."""
        if text != self._status:
            self._status = text
            self.send("STATUS=" + text.replace("\n", " "))

    def reloading(self) -> None:
        """systemd's Type=notify-reload wants the moment, too."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def without_variables(environment: MutableMapping[str, str]) -> None:
    """What is meant for us alone is not handed on."""
    for name in (*VARIABLES, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        environment.pop(name, None)


def _watchdog_s(environment: Mapping[str, str], pid: int) -> float:
    value = environment.get("WATCHDOG_USEC", "")
    whose = environment.get("WATCHDOG_PID", str(pid))
    return int(value) / 1_000_000 if value.isascii() and value.isdecimal() and whose == str(pid) else 0.0
