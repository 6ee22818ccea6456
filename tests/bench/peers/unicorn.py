"""Unicorn: USR2, and the hook of its own example that lets the new master send QUIT to the old one."""

from __future__ import annotations

import os
import signal
import time

from sandbox import Sandbox

from peers import program, said_version
from peers.apps import write_app

# By which a new master retires the old one, as Unicorn's own example has it.
RETIRE_THE_OLD = """\
before_fork do |server, _worker|
  old = "#{{server.config[:pid]}}.oldbin"
  if File.exist?(old) && server.pid != old
    begin
      Process.kill(:QUIT, File.read(old).to_i)
    rescue Errno::ENOENT, Errno::ESRCH
    end
  end
end
"""
CONFIG = (
    """\
worker_processes 2
working_directory "{folder}/app"
listen "127.0.0.1:{port}"
pid "{folder}/unicorn.pid"
preload_app true
"""
    + RETIRE_THE_OLD
)


class Unicorn:
    name = "unicorn USR2"
    program = "unicorn"

    def missing(self) -> str:
        return "" if program("unicorn") else "unicorn is not installed"

    def version(self) -> str:
        return said_version(program("unicorn"))

    def launch(self, box: Sandbox, port: int) -> None:
        write_app(box.folder / "app", 0)
        (box.folder / "unicorn.rb").write_text(CONFIG.format(folder=box.folder, port=port))
        argv = [program("unicorn"), "-E", "production", "-c", str(box.folder / "unicorn.rb"), "config.ru"]
        box.launch("unicorn", argv, box.folder / "app")

    def handover(self, box: Sandbox, version: int) -> float:
        write_app(box.folder / "app", version)
        pid = int((box.folder / "unicorn.pid").read_text())
        began = time.monotonic()
        os.kill(pid, signal.SIGUSR2)
        return began
