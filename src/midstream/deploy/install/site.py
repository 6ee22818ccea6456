"""Where an installation is on a host: the program, its short name, state and runtime of the agent. Runs on the host.

    /opt/midstream/VERSION-HASH/midstream.pyz     one folder for each version, never written again
    /opt/midstream/bin/midstream                  names the version that counts: replacing it is the switch
    /usr/local/bin/midstream                      a link to it, for the PATH
A user without root has the same in ~/.local/lib/midstream, with the link in ~/.local/bin.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from midstream.deploy.install.far_end import PREFIX, PREFIX_OF_USER
from midstream.deploy.install.image import FILE, version_in

_IN_WRAPPER = re.compile(r"/([^/\s\"']+)/" + re.escape(FILE))


@dataclass(frozen=True, slots=True)
class Site:
    """Absolute paths. `python`: the interpreter. `user`: whose installation it is."""

    uid: int
    user: str
    home: str
    python: str
    state: str
    runtime: str
    socket: str

    @property
    def rootless(self) -> bool:
        return self.uid != 0

    @property
    def prefix(self) -> str:
        return os.path.join(self.home, PREFIX_OF_USER) if self.rootless else PREFIX

    @property
    def wrapper(self) -> str:
        return f"{self.prefix}/bin/midstream"

    @property
    def link(self) -> str:
        return f"{self.home}/.local/bin/midstream" if self.rootless else "/usr/local/bin/midstream"

    @property
    def lock(self) -> str:
        return f"{self.prefix}/install.lock"

    def program(self, name: str) -> str:
        """The zipapp of a version."""
        return f"{self.prefix}/{name}/{FILE}"

    def run_argv(self) -> list[str]:
        """The command of a service manager. Root's places are the defaults; those of a user depend on his environment,
        which a service manager does not have."""
        own = ["--state", self.state, "--runtime", self.runtime, "--socket", self.socket] if self.rootless else []
        return [self.wrapper, "agent", "run", "--stand-by", *own]

    def wrapper_text(self, name: str) -> str:
        return f'#!/bin/sh\nexec {_quoted(self.python)} -I {_quoted(self.program(name))} "$@"\n'

    def name_in_wrapper(self) -> str:
        """The version that the short name stands for; "" when there is none, or it is none of ours."""
        try:
            with open(self.wrapper, encoding="utf-8", errors="replace") as file:
                found = _IN_WRAPPER.search(file.read(65536))
        except OSError:
            return ""
        return found[1] if found and version_in(found[1]) else ""


def _quoted(word: str) -> str:
    """For sh. Plain words stay plain, so that `_IN_WRAPPER` reads them back."""
    return word if re.fullmatch(r"[\w@%+=:,./-]+", word) else "'" + word.replace("'", "'\\''") + "'"


def name_of_program(path: str) -> str:
    """The version whose zipapp is at `path`; "" for a path that is no such one."""
    folder, base = os.path.split(path)
    name = os.path.basename(folder)
    return name if base == FILE and version_in(name) else ""
