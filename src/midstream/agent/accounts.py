"""Who may do what: users, owners, grants (DESIGN 4, Trust).

Lives here: the rules, each a function that raises NotAllowedError with the remedy. Not here: any effect. Runs in the
agent. When the agent is not root there is one user, and all of his apps are his own.

A grant is a root-owned file `/etc/midstream/apps.d/APP.toml`, written by `midstream agent allow …`. It counts for that
owner in that folder, for nobody else who has an app of the name:

    owner = "deploy"            # who may deploy the app
    deploy_to = "/srv/shop"     # where
    run_as = ["www-data"]       # users its services may run as, besides the owner
    groups = ["video"]
    ports = [80, 443]           # below 1024
    paths = ["/run/shop"]       # folders for unix sockets outside deploy_to
    raise_limits = true         # rlimits above the hard ones, negative nice
    monit = ["sidekiq"]         # services of root's Monit that its deploys may hold and restart ("NAME@CONTROL-FILE" for
                                # those of another one than the control file that Monit finds itself)
"""

from __future__ import annotations

import functools
import grp
import json
import os
import pwd
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

from midstream.core.layout import Layout
from midstream.core.placeholders import fill
from midstream.core.spec import AppSpec, HoldSpec, ListenSpec, ServiceSpec
from midstream.core.wire import WireError, from_wire
from midstream.errors import NotAllowedError, OperatorError
from midstream.linux.root_owned import is_root_owned

GRANTS_FOLDER = "/etc/midstream/apps.d"
GRANTS_VARIABLE = (
    "MIDSTREAM_GRANTS"  # set by `agent run --grants`; it comes with the keeper's environment, so from root
)


@dataclass(frozen=True, slots=True)
class Account:
    """A user to run as; gid and groups as at login."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of the control socket, by SO_PEERCRED."""

    pid: int
    uid: int
    gid: int

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"


@dataclass(frozen=True, slots=True)
class Grant:
    owner: str = ""
    deploy_to: str = ""
    run_as: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()
    raise_limits: bool = False
    monit: tuple[str, ...] = ()


def account_of_uid(uid: int) -> Account:
    """Blocking (nsswitch), at most once a second for each. A uid without a name gets one that says so."""
    return _account_lately(uid, int(time.monotonic()))


@functools.lru_cache(maxsize=64)
def _account_lately(uid: int, _second: int) -> Account:
    """A thousand services start as one user: asked each time, the databases were a seventh of the agent's work."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(str(uid), uid, uid, (uid,), "/", "/bin/sh")
    return _account(entry)


def account_named(name: str, where: str) -> Account:
    """Raises OperatorError for a user that this host does not have."""
    try:
        return _account(pwd.getpwnam(name))
    except KeyError:
        raise OperatorError(
            f"there is no user {name!r} on this host", where=where, remedy=f"create it (adduser {name}), or change it"
        ) from None


def _account(entry: pwd.struct_passwd) -> Account:
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, entry.pw_shell)


def gid_named(name: str, where: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise OperatorError(
            f"there is no group {name!r} on this host",
            where=where,
            remedy="make it (groupadd), or name one that this host has",
        ) from None


def grants_folder() -> str:
    """Where grants are on this host."""
    return os.environ.get(GRANTS_VARIABLE) or GRANTS_FOLDER


def read_grant(app: str, folder: str = "") -> Grant | None:
    """The grant of the app, None where there is none. A file that others than root may write is refused."""
    folder = folder or grants_folder()
    path = os.path.join(folder, f"{app}.toml")
    try:
        _require_roots(os.lstat(folder), folder)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise NotAllowedError(
            f"the grant cannot be read: {error.strerror}",
            where=path,
            remedy="the file has to be root's, and readable by the agent: look at its permissions",
        ) from error
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(file.fileno())
        _require_roots(found, path)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise NotAllowedError(
                "the grant is no plain file with one name, so it grants nothing",
                where=path,
                remedy="write it anew: midstream agent allow",
            )
        import tomllib  # most agents read no grant in their life: 0.2 MB

        try:
            body = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise NotAllowedError(
                f"the grant is not valid TOML: {error}",
                where=path,
                remedy="mend it, or have it written anew: midstream agent allow --help",
            ) from error
    try:
        return from_wire(Grant, body)
    except WireError as error:
        raise NotAllowedError(
            f"the grant is not valid: {error}",
            where=path,
            remedy="mend it, or have it written anew: midstream agent allow --help",
        ) from error


def _require_roots(found: os.stat_result, path: str) -> None:
    if found.st_uid != 0 or stat.S_ISLNK(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotAllowedError(
            "the grant may be written by others than root, so it grants nothing",
            where=path,
            remedy=f"chown root:root {path} && chmod go-w {path}",
        )


def _grant_to(spec: AppSpec, owner: Account, folder: str) -> Grant:
    """What root allowed this owner for this app in this folder; nothing where the grant is somebody else's."""
    grant = read_grant(spec.app, folder)
    if grant is None or grant.owner != owner.name or grant.deploy_to.rstrip("/") != spec.deploy_to:
        return Grant()
    return grant


def require_owner(peer: Peer, owner_uid: int, agent_uid: int, app: str) -> None:
    """Root may do all; a user acts on the apps that he owns; without root there is only the agent's own user."""
    if peer.uid in (0, owner_uid) and (agent_uid == 0 or peer.uid in (0, agent_uid)):
        return
    raise NotAllowedError(
        f"{peer.name} may not act on app {app!r}: it belongs to {account_of_uid(owner_uid).name}",
        remedy=f"run it as {account_of_uid(owner_uid).name} or root",
    )


def owner_for_new_app(peer: Peer, spec: AppSpec, agent_uid: int, folder: str = "") -> int:
    """The uid that will own an app which this host does not know yet. Raises NotAllowedError.

    Root may name any `user`. A user becomes owner where a grant says so, or where the folder (or the nearest one above
    that exists) is his own: then nothing is done there that he could not do himself.
    """
    if agent_uid != 0:
        if peer.uid not in (0, agent_uid):
            raise NotAllowedError(
                f"this agent serves {account_of_uid(agent_uid).name} only",
                remedy="name your own agent's socket (--socket), or ask root to install one for all: midstream agent install",
            )
        return agent_uid
    if peer.uid == 0:
        if spec.user:
            return account_named(spec.user, "user").uid
        return _owner_of(spec.deploy_to)
    folder = folder or grants_folder()
    grant = read_grant(spec.app, folder)
    if grant is not None:
        if grant.owner == peer.name and grant.deploy_to.rstrip("/") == spec.deploy_to:
            return peer.uid
        raise NotAllowedError(
            f"the grant of app {spec.app!r} is for {grant.owner} in {grant.deploy_to}, not for {peer.name} in"
            f" {spec.deploy_to}",
            where=f"{folder}/{spec.app}.toml",
            remedy=f"as root: midstream agent allow {peer.name}:{spec.app}:{spec.deploy_to}; "
            f"or deploy as {grant.owner} to {grant.deploy_to}",
        )
    if _owner_of(spec.deploy_to) == peer.uid:
        return peer.uid
    raise NotAllowedError(
        f"{peer.name} may not deploy to {spec.deploy_to}",
        remedy=f"as root: midstream agent allow {peer.name}:{spec.app}:{spec.deploy_to}",
    )


def may_make_as_root(peer: Peer, spec: AppSpec, owner: Account, folder: str = "") -> bool:
    """Whether root himself chose `deploy_to`: by asking, or by a grant."""
    return peer.uid == 0 or bool(_grant_to(spec, owner, folder).deploy_to)


def _owner_of(path: str) -> int:
    """Who owns the folder, or the nearest existing one above it; links on the way are followed, as the kernel will."""
    path = os.path.realpath(path)
    while True:
        try:
            return os.lstat(path).st_uid
        except (FileNotFoundError, NotADirectoryError):
            above = os.path.dirname(path)
            if above == path:
                return 0
            path = above


def check_spec(spec: AppSpec, owner_uid: int, peer: Peer, agent_uid: int, folder: str = "") -> None:
    """Whether the configuration asks for no more than who sent it may have. Raises NotAllowedError naming the key.

    Checked at every deploy. At a rollback `peer` is the owner, whoever asked: the stored configuration lies in his folder.
    """
    if agent_uid != 0:
        for service in spec.services.values():
            _rootless(service, agent_uid)
        return
    owner = account_of_uid(owner_uid)
    if spec.user and owner_uid != 0 and account_named(spec.user, "user").uid != owner_uid:
        raise NotAllowedError(
            f"app {spec.app!r} belongs to {owner.name}; its configuration asks for user {spec.user!r}",
            where="user",
            remedy=f"leave `user` out, or begin anew as root: midstream app remove {spec.app}",
        )
    for hold in spec.holds:
        account_for_hold(spec, hold, owner_uid, peer, agent_uid, folder)
    if peer.uid == 0:
        return
    folder = folder or grants_folder()
    grant = _grant_to(spec, owner, folder)
    for service in spec.services.values():
        _check_service(spec, service, owner, grant, f"{folder}/{spec.app}.toml")


def account_for_hold(
    spec: AppSpec, hold: HoldSpec, owner_uid: int, peer: Peer, agent_uid: int, folder: str = ""
) -> Account:
    """As whom the supervisor of a hold is spoken to: as its control file's owner, who is root or the app's own user.

    Root's Monit does what it is told to any of its services, so root alone, or a grant that names the service, may have
    it told; and only by a control file that nobody but root can change: the program reads it with root's rights. Another
    file than the one that Monit finds itself has to stand in the grant too (Monit quotes what it does not understand).
    Raises NotAllowedError.
    """
    if agent_uid != 0:
        return account_of_uid(agent_uid)
    owner = account_of_uid(owner_uid)
    if hold.control and not is_root_owned(hold.control):
        return owner  # whatever lies there is read with his rights
    folder = folder or grants_folder()
    wanted = f"{hold.service}@{hold.control}" if hold.control else hold.service
    if peer.uid != 0 and wanted not in _grant_to(spec, owner, folder).monit:
        raise NotAllowedError(
            f"holding {hold.service!r} of root's Monit needs a grant",
            where="holds",
            remedy=f"as root, put `monit = [{json.dumps(wanted)}]` into {folder}/{spec.app}.toml"
            f" (owner = {owner.name!r}, deploy_to = {spec.deploy_to!r}); a Monit of {owner.name}'s own is named by"
            ' `control = "…"`',
        )
    return account_of_uid(0)


def _rootless(service: ServiceSpec, agent_uid: int) -> None:
    where = f"services.{service.name}"
    if service.user and account_named(service.user, f"{where}.user").uid != agent_uid:
        raise NotAllowedError(
            f"the agent runs as {account_of_uid(agent_uid).name}, not as root: it cannot start {service.name!r} as"
            f" {service.user!r}",
            where=f"{where}.user",
            remedy="leave `user` out, or run the agent as root",
        )


def _check_service(spec: AppSpec, service: ServiceSpec, owner: Account, grant: Grant, grant_file: str) -> None:
    where = f"services.{service.name}"

    def refuse(key: str, what: str, line: str) -> None:
        raise NotAllowedError(
            f"{what} needs a grant",
            where=f"{where}.{key}",
            remedy=f"as root, put `{line}` into {grant_file} (owner = {owner.name!r}, deploy_to = {spec.deploy_to!r})",
        )

    if service.user and service.user != owner.name and service.user not in grant.run_as:
        refuse("user", f"running as {service.user!r}", f'run_as = ["{service.user}"]')
    runs_as = account_named(service.user, f"{where}.user") if service.user else owner
    allowed = _group_names({*owner.groups, *runs_as.groups}) | set(grant.groups)
    for group in (*([service.group] if service.group else []), *service.groups):
        if group not in allowed:
            refuse("groups", f"group {group!r}", f'groups = ["{group}"]')
    for listen in service.listen:
        _check_listen(spec, listen, owner, grant, allowed, refuse)
    limits = service.limits
    raised = limits.nice is not None and limits.nice < 0
    raised = raised or any(_above_hard(name, pair[1]) for name, pair in limits.rlimits.items())
    if raised and not grant.raise_limits:
        refuse("limits", "raising limits or priority", "raise_limits = true")
    if service.log.path:
        raise NotAllowedError(
            "a log file of its own choosing is for apps that root deploys",
            where=f"{where}.log.path",
            remedy="leave it out: midstream logs shows the agent's own; or deploy it as root",
        )


def _check_listen(
    spec: AppSpec,
    listen: ListenSpec,
    owner: Account,
    grant: Grant,
    groups: set[str],
    refuse: Callable[[str, str, str], None],
) -> None:
    address = fill(listen.address, {"deploy_to": spec.deploy_to, "shared": Layout(spec.deploy_to).shared})
    if address.startswith("tcp://"):
        port = int(address.rsplit(":", 1)[1])
        if 0 < port < 1024 and port not in grant.ports:
            refuse("listen", f"port {port}, below 1024,", f"ports = [{port}]")
        return
    path = os.path.normpath(address.removeprefix("unix://"))
    homes = (spec.deploy_to, *grant.paths)
    if not any(path.startswith(home.rstrip("/") + "/") for home in homes):
        refuse("listen", f"a socket at {path}", f'paths = ["{os.path.dirname(path)}"]')
    user, _, group = listen.owner.partition(":")
    if user and user != owner.name and user not in grant.run_as:
        refuse("listen", f"a socket owned by {user!r}", f'run_as = ["{user}"]')
    if group and group not in groups:
        refuse("listen", f"a socket of group {group!r}", f'groups = ["{group}"]')


def _group_names(gids: set[int]) -> set[str]:
    return {grp.getgrgid(gid).gr_name for gid in gids if _has_group(gid)}


def _has_group(gid: int) -> bool:
    try:
        grp.getgrgid(gid)
    except KeyError:
        return False
    return True


def _above_hard(name: str, hard: int) -> bool:
    import resource  # only here; the table of names is the module itself

    number = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        return True
    have = resource.getrlimit(number)[1]
    return have != resource.RLIM_INFINITY and (hard == -1 or hard > have)
