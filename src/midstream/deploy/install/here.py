"""Installing and upgrading on this host: the story, step by step. Runs on the host, as root or as the user himself.

Every step looks first and changes only what is not so yet, in one atomic act; so a run may be killed at any instant, and
the next one goes on from there. Until the new agent answers, the short name stands for the old version. One run at a time:
the lock is the kernel's, and gone with its holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from midstream.deploy.install import folders, upgrade
from midstream.deploy.install.changes import Change, Changes
from midstream.deploy.install.image import is_newer, version_in
from midstream.deploy.install.owned_files import Found, found_at, link_at, make_link, marked, replace_file
from midstream.deploy.install.request import UPGRADE, Request, Result, ServiceKind
from midstream.deploy.install.service import Service, enable_lingering, is_lingering
from midstream.deploy.install.site import Site, name_of_program
from midstream.errors import AttentionError, HostError, LockedError, OperatorError
from midstream.linux.root_owned import is_root_owned

KEPT_VERSIONS = 2
_STARTS_S = 30.0


@dataclass(slots=True)
class Installation:
    """`source`: the file that this very program runs from. plan_grant: `--allow` TEXT -> the change that it means."""

    request: Request
    site: Site
    service: Service
    source: str
    changes: Changes
    plan_grant: Callable[[str], Change]
    name: str = field(init=False)
    _defined: bool = field(default=False, init=False)  # a definition was written: the service manager has to read it

    def __post_init__(self) -> None:
        self.name = self.request.name

    def carry_out(self) -> Result:
        """Raises MidstreamError; what had run before goes on then, unless the error says otherwise."""
        grants = [self.plan_grant(text) for text in self.request.allow]
        for folder in self.request.folders:
            folders.require_user(folder.owner)
        if self.request.action == UPGRADE and not self.site.name_in_wrapper() and upgrade.hello(self.site) is None:
            raise _not_installed(self.site)
        self._refuse_strangers()
        with self._lock():
            answer = upgrade.hello(self.site)
            before = str((answer or {}).get("version", ""))
            if self.site.rootless:
                self._linger()
            if newer := self._newer(before):
                self.changes.note(
                    "program", f"{newer} is there, newer than this command's {self.request.version}: left"
                )
                self.name = self.site.name_in_wrapper()
            else:
                self._install()
            for grant in grants:
                self.changes.make(grant)
            self._folders()
            self._agent(answer)
            if not newer:
                self._switch()
                self._clean_up()
            return self._result(before)

    # ------------------------------------------------------------------ before anything is changed

    def _refuse_strangers(self) -> None:
        """Raises OperatorError that names the files which somebody else has put where ours belong."""
        if not self.site.rootless and not is_root_owned(self.site.prefix):
            raise HostError(
                "others than root may change what root would run",
                where=self.site.prefix,
                serving="nothing was changed",
                remedy=f"chown root: and chmod go-w {self.site.prefix}, and the folders above it",
            )
        wrapper = found_at(self.site.wrapper, self._wrapper())
        foreign = [self.site.wrapper] if wrapper in (Found.FOREIGN, Found.CHANGED) else []
        foreign += [item.path for item in self.service.files() if found_at(item.path, item.text) is Found.FOREIGN]
        foreign += [path for path, target in self.service.links() if link_at(path, target) is Found.FOREIGN]
        if foreign:
            raise OperatorError(
                "files are in the way that `agent install` did not write, or that were changed since",
                where=", ".join(foreign),
                serving="nothing was changed",
                remedy="move them away, and run this again",
            )

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        if self.request.dry_run:
            yield
            return
        try:
            os.makedirs(self.site.prefix, mode=0o755, exist_ok=True)
            fd = os.open(self.site.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(
                f"it cannot be written: {error.strerror}",
                where=self.site.prefix,
                serving="nothing was changed",
                remedy="make room, or mend the rights of the folder",
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise LockedError(
                "another installation is running on the host",
                where=self.site.lock,
                serving="nothing was changed",
                remedy="wait for it, then run this again",
            ) from None
        finally:
            os.close(fd)

    def _newer(self, running: str) -> str:
        """The version on the host when it is newer than what was sent; else ""."""
        there = version_in(self.site.name_in_wrapper())
        return next((version for version in (there, running) if there and is_newer(version, self.request.version)), "")

    # ------------------------------------------------------------------ the steps

    def _linger(self) -> None:
        if is_lingering(self.site):
            self.changes.make(Change("lingering", f"nothing ends the processes of {self.site.user} at log-out"))
        else:
            enabled = f"enabled: nothing ends the processes of {self.site.user} at log-out"
            self.changes.make(Change("lingering", enabled, lambda: enable_lingering(self.site)))

    def _install(self) -> None:
        path = self.site.program(self.name)
        there = os.path.realpath(self.source) == os.path.realpath(path)
        self.changes.make(Change("program", path, None if there else lambda: self._place(path)))
        if not self.site.name_in_wrapper():
            self._switch()
        self._link()
        for item in self.service.files():
            found = found_at(item.path, item.text)
            if found is Found.CHANGED:
                self.changes.note("service", f"{item.path} was changed by hand: left as it is")
                continue
            write = partial(replace_file, item.path, item.text.encode(), item.mode)
            self.changes.make(Change("service", item.path, None if found is Found.SAME else write))
            self._defined = self._defined or found is not Found.SAME

    def _place(self, path: str) -> None:
        with open(self.source, "rb") as file:
            data = file.read()
        replace_file(path, data, 0o644)
        replace_file(f"{path}.sha256", f"{hashlib.sha256(data).hexdigest()}\n".encode(), 0o644)

    def _wrapper(self) -> str:
        return marked(self.site.wrapper_text(self.name))

    def _switch(self) -> None:
        """From here on the short name, and with it the next start, stands for the new version."""
        path, text = self.site.wrapper, self._wrapper()
        same = found_at(path, text) is Found.SAME
        self.changes.make(Change("command", path, None if same else lambda: replace_file(path, text.encode(), 0o755)))

    def _link(self) -> None:
        path, target = self.site.link, self.site.wrapper
        found = link_at(path, target)
        if found is Found.FOREIGN:
            self.changes.note("command", f"{path} is somebody else's and stays; call {target}")
        else:
            self.changes.make(Change("command", path, None if found is Found.SAME else lambda: make_link(path, target)))

    def _folders(self) -> None:
        for folder in self.request.folders:
            owner = folders.owner_of(folder.path)
            if owner is None:
                text = f"{folder.path} for {folder.owner}"
                self.changes.make(Change("folder", text, partial(folders.make_folder, folder.path, folder.owner)))
            elif owner == folder.owner:
                self.changes.make(Change("folder", f"{folder.path} is {owner}'s"))
            else:
                self.changes.note("folder", f"{folder.path} is {owner}'s, not {folder.owner}'s: left as it is")

    def _agent(self, answer: dict[str, Any] | None) -> None:
        """Started, or replaced by the new version; and looked after by the service manager."""
        if answer is None:
            self.changes.make(Change("agent", f"started by {self.service.kind.value}", self._start))
            return
        running = upgrade.agent_command(self.site)
        program = running.program if running is not None else ""
        goal = self.site.program(self.name)
        if not self.name or program == goal:
            self.changes.make(Change("agent", f"{answer.get('version')} runs (pid {answer.get('pid')})"))
        else:
            old = name_of_program(program) or f"{answer.get('version')} ({program})"
            self.changes.make(
                Change("agent", f"{old} -> {self.name}, under its services", lambda: self._upgrade(goal, old))
            )
        kind = self.service.kind
        watched = f"{kind.value} starts it at boot, and watches it"
        if kind is not ServiceKind.PLAIN:
            is_on = self.service.is_on() and not self._defined
            on = None if is_on else self.service.turn_on
            self.changes.make(Change("service", watched, on))

    def _upgrade(self, goal: str, old: str) -> str:
        hello = upgrade.upgrade(self.site, goal)
        keeper = hello.get("keeper", {})
        return f"{old} -> {self.name} (pid {hello.get('pid')}; keeper {keeper.get('version')}, pid {keeper.get('pid')})"

    def _start(self) -> str:
        """Raises HostError; then the short name stands for what it stood for before."""
        former = self.site.name_in_wrapper()
        if self.name and former != self.name:
            self._switch()
        try:
            self.service.turn_on()
            hello = upgrade.wait_for_agent(self.site, _STARTS_S)
            if hello is None:
                raise HostError(
                    f"the agent does not come up: no answer within {_STARTS_S:g} s",
                    where=self.site.socket,
                    detail=self.service.last_words(),
                    remedy=f"run it in the foreground: {self.site.wrapper} agent run",
                )
        except HostError:
            if former and os.path.exists(self.site.program(former)):
                text = marked(self.site.wrapper_text(former))
                replace_file(self.site.wrapper, text.encode(), 0o755)
            raise
        return f"{hello.get('version')} started by {self.service.kind.value} (pid {hello.get('pid')})"

    def _clean_up(self) -> None:
        """Versions that nothing runs from, but for the newest; and what killed runs left."""
        prefix = self.site.prefix
        with contextlib.suppress(FileNotFoundError):
            found = [entry for entry in os.scandir(prefix) if version_in(entry.name)]
            running = upgrade.agent_command(self.site)
            used = {self.name, name_of_program(running.program) if running else ""}
            spare = sorted((e for e in found if e.name not in used), key=lambda e: e.stat().st_mtime, reverse=True)
            for entry in spare[KEPT_VERSIONS - 1 :]:
                self.changes.make(Change("program", f"{entry.name} removed", partial(_remove, entry.path)))
            if self.request.dry_run:
                return
            for folder in (
                f"{prefix}/bin",
                *(entry.path for entry in found if entry not in spare[KEPT_VERSIONS - 1 :]),
            ):
                for left in (entry for entry in os.scandir(folder) if entry.name.endswith(".new")):
                    os.unlink(left.path)

    # ------------------------------------------------------------------ the end

    def _result(self, before: str) -> Result:
        """What answers now. Raises AttentionError when it is not what was installed."""
        site, kind = self.site, self.service.kind.value
        if not shutil.which("git"):
            self.changes.note("git", "git is missing: deploys need it (Debian: apt-get install git)")
        if self.request.dry_run:
            return Result(before, before, self.changes.count, kind, site.rootless)
        hello = upgrade.wait_for_agent(site, 5.0)
        if hello is None or hello.get("uid") != site.uid:
            raise AttentionError(
                "after the installation no agent answers" if hello is None else "somebody else's agent answers",
                where=site.socket,
                detail=self.service.last_words(),
                remedy="see its log",
            )
        keeper = hello.get("keeper", {})
        version = str(hello.get("version", ""))
        cgroup = str(keeper.get("cgroup") or "")
        if not cgroup:
            self.changes.note("checked", f"no cgroups ({keeper.get('note')}): processes are found by ancestry instead")
        text = f"agent {version} and keeper {keeper.get('version')} (pid {keeper.get('pid')}) run as {site.user}"
        self.changes.make(Change("checked", f"{text}, cgroup {cgroup}" if cgroup else text))
        if todo := self.service.note():
            self.changes.note("boot", todo)
        return Result(
            before, version, self.changes.count, kind, site.rootless, int(hello["pid"]), int(keeper.get("pid") or 0)
        )


def _not_installed(site: Site) -> OperatorError:
    return OperatorError(
        "midstream is not installed on the host",
        where=site.prefix,
        serving="nothing was changed",
        remedy="midstream agent install HOST",
    )


def _remove(path: str) -> None:
    shutil.rmtree(path)
