"""The rules on users, owners and grants, each attacked. Values only, but for the files of grants."""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midstream.agent.accounts import (
    Peer,
    account_for_hold,
    check_spec,
    owner_for_new_app,
    read_grant,
    require_owner,
)
from midstream.cli.grants import joined, parse_allowance, write_grant
from midstream.core.spec import AppSpec, HoldSpec, LimitsSpec, ListenSpec, LogSpec, ServiceSpec
from midstream.errors import NotAllowedError, OperatorError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="grants belong to root")

NOBODY = pwd.getpwnam("nobody").pw_uid
GAMES = pwd.getpwnam("games").pw_uid
ROOT = Peer(1, 0, 0)
USER = Peer(1, NOBODY, NOBODY)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ms-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def grants(folder: Path) -> Path:
    made = folder / "apps.d"
    made.mkdir(mode=0o755)
    return made


@pytest.fixture
def home(folder: Path) -> Path:
    made = folder / "home"
    made.mkdir()
    os.chown(made, NOBODY, NOBODY)
    return made


def _spec(deploy_to: Path | str = "/srv/shop", **service: Any) -> AppSpec:
    return AppSpec("shop", str(deploy_to), "", services={"web": ServiceSpec("web", ("true",), **service)})


def _grant(grants: Path, text: str = "", owner: str = "nobody", deploy_to: str = "/srv/shop") -> Path:
    path = grants / "shop.toml"
    path.write_text(f'owner = "{owner}"\ndeploy_to = "{deploy_to}"\n{text}\n')
    return path


BEYOND = {
    "root": ({"user": "root"}, 'run_as = ["root"]'),
    "another user": ({"user": "games"}, 'run_as = ["games"]'),
    "a group": ({"group": "shadow"}, 'groups = ["shadow"]'),
    "more groups": ({"groups": ("nogroup", "disk")}, 'groups = ["disk"]'),
    "port 80": ({"listen": (ListenSpec("tcp://0.0.0.0:80"),)}, "ports = [80]"),
    "port 443 of IPv6": ({"listen": (ListenSpec("tcp://[::]:443"),)}, "ports = [443]"),
    "a socket elsewhere": ({"listen": (ListenSpec("unix:///run/shop/web.sock"),)}, 'paths = ["/run/shop"]'),
    "a socket above": ({"listen": (ListenSpec("unix:///srv/shop/../x/web.sock"),)}, 'paths = ["/srv/x"]'),
    "a socket beside": ({"listen": (ListenSpec("unix:///srv/shop2/web.sock"),)}, 'paths = ["/srv/shop2"]'),
    "a socket by a placeholder": ({"listen": (ListenSpec("unix://{shared}/../../x.sock"),)}, 'paths = ["/srv"]'),
    "another's socket": ({"listen": (ListenSpec("unix:///srv/shop/s", owner="games"),)}, 'run_as = ["games"]'),
    "a group's socket": ({"listen": (ListenSpec("unix:///srv/shop/s", owner=":shadow"),)}, 'groups = ["shadow"]'),
    "priority": ({"limits": LimitsSpec(nice=-1)}, "raise_limits = true"),
    "an unknown limit": ({"limits": LimitsSpec(rlimits={"wonder": (1, 1)})}, "raise_limits = true"),
}


@pytest.mark.parametrize("what", BEYOND)
def test_what_goes_beyond_the_user_needs_its_grant(grants: Path, what: str) -> None:
    """Refused without a grant, with one that allows something else, and with one for another owner or folder."""
    service, line = BEYOND[what]
    spec = _spec(**service)
    everything_else = "\n".join(
        other for _, other in BEYOND.values() if other.split(" ")[0] != line.split(" ")[0] and "ports" not in other
    )
    unique = "\n".join({item.split(" ")[0]: item for item in everything_else.splitlines()}.values())
    for text, owner, deploy_to in (
        ("", "nobody", "/srv/shop"),
        (unique, "nobody", "/srv/shop"),
        (line, "games", "/srv/shop"),
        (line, "nobody", "/srv/other"),
    ):
        _grant(grants, text, owner, deploy_to)
        with pytest.raises(NotAllowedError) as refused:
            check_spec(spec, NOBODY, USER, 0, str(grants))
        assert line.split(" ")[0] in refused.value.remedy
    _grant(grants, line)
    check_spec(spec, NOBODY, USER, 0, str(grants))


def test_hard_limits_above_those_of_the_host_need_a_grant(grants: Path) -> None:
    have = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if have == resource.RLIM_INFINITY:
        pytest.skip("no limit to be raised")
    for hard in (have + 1, -1):
        with pytest.raises(NotAllowedError):
            spec = _spec(limits=LimitsSpec(rlimits={"nofile": (1024, hard)}))
            check_spec(spec, NOBODY, USER, 0, str(grants))
    check_spec(_spec(limits=LimitsSpec(rlimits={"nofile": (64, have)})), NOBODY, USER, 0, str(grants))


def test_log_file_of_its_own_choosing_is_refused(grants: Path) -> None:
    _grant(grants, "raise_limits = true")
    with pytest.raises(NotAllowedError):
        check_spec(_spec(log=LogSpec(path="/etc/cron.d/shop")), NOBODY, USER, 0, str(grants))


def test_what_is_the_users_own_needs_no_grant(grants: Path) -> None:
    spec = _spec(
        user="nobody",
        group="nogroup",
        listen=(ListenSpec("tcp://0.0.0.0:8000"), ListenSpec("unix://{shared}/web.sock", owner="nobody:nogroup")),
        limits=LimitsSpec(nice=5),
    )
    check_spec(spec, NOBODY, USER, 0, str(grants))
    check_spec(replace(spec, user="nobody"), NOBODY, USER, 0, str(grants))


def test_app_of_a_user_is_never_run_as_another_whoever_asks(grants: Path) -> None:
    """Its folder is his: root would be working in it."""
    for peer in (USER, ROOT):
        with pytest.raises(NotAllowedError):
            check_spec(replace(_spec(), user="root"), NOBODY, peer, 0, str(grants))


def test_root_may_do_all(grants: Path) -> None:
    for service, _ in BEYOND.values():
        check_spec(_spec(**service), NOBODY, ROOT, 0, str(grants))


def test_others_act_on_no_app() -> None:
    require_owner(USER, NOBODY, 0, "shop")
    require_owner(ROOT, NOBODY, 0, "shop")
    with pytest.raises(NotAllowedError):
        require_owner(Peer(1, GAMES, GAMES), NOBODY, 0, "shop")
    with pytest.raises(NotAllowedError):
        require_owner(USER, 0, 0, "shop")
    with pytest.raises(NotAllowedError):  # an agent without root is its own user's, whatever its table says
        require_owner(USER, NOBODY, GAMES, "shop")


def test_new_app_belongs_to_who_owns_the_folder(grants: Path, home: Path, folder: Path) -> None:
    assert owner_for_new_app(USER, _spec(home / "a" / "b"), 0, str(grants)) == NOBODY
    assert owner_for_new_app(ROOT, _spec(home), 0, str(grants)) == NOBODY
    with pytest.raises(NotAllowedError):
        owner_for_new_app(USER, _spec(folder / "new"), 0, str(grants))
    with pytest.raises(NotAllowedError):
        owner_for_new_app(Peer(1, GAMES, GAMES), _spec(home), 0, str(grants))


def test_link_to_roots_folder_makes_nobody_its_owner(grants: Path, home: Path, folder: Path) -> None:
    (home / "link").symlink_to(folder)
    os.lchown(home / "link", NOBODY, NOBODY)
    for path in (home / "link", home / "link" / "new"):
        with pytest.raises(NotAllowedError):
            owner_for_new_app(USER, _spec(path), 0, str(grants))


def test_granted_name_is_for_its_owner_and_folder_alone(grants: Path, home: Path) -> None:
    _grant(grants)
    assert owner_for_new_app(USER, _spec(), 0, str(grants)) == NOBODY
    with pytest.raises(NotAllowedError):
        owner_for_new_app(USER, _spec(home), 0, str(grants))
    _grant(grants, owner="games")
    with pytest.raises(NotAllowedError):
        owner_for_new_app(USER, _spec(home), 0, str(grants))


@pytest.mark.parametrize("spoilt", ["owner", "group", "world", "folder", "link", "hard link", "fifo", "toml", "key"])
def test_grant_that_is_not_roots_alone_grants_nothing(grants: Path, home: Path, spoilt: str) -> None:
    path = _grant(grants, "ports = [80]")
    check_spec(_spec(listen=(ListenSpec("tcp://0.0.0.0:80"),)), NOBODY, USER, 0, str(grants))
    text = path.read_text()
    match spoilt:
        case "owner":
            os.chown(path, NOBODY, -1)
        case "group":
            path.chmod(0o664)
        case "world":
            path.chmod(0o646)
        case "folder":
            grants.chmod(0o777)
        case "link":
            (home / "his.toml").write_text(text)
            path.unlink()
            path.symlink_to(home / "his.toml")
        case "hard link":
            os.link(path, grants / "other")
        case "fifo":
            path.unlink()
            os.mkfifo(path, 0o600)
        case "toml":
            path.write_bytes(b"\xff\xfe = [")
        case "key":
            path.write_text(text + "run_as_root = true\n")
    with pytest.raises(NotAllowedError):
        check_spec(_spec(listen=(ListenSpec("tcp://0.0.0.0:80"),)), NOBODY, USER, 0, str(grants))
    with pytest.raises(NotAllowedError):
        read_grant("shop", str(grants))


# -- writing them


def test_allow_writes_a_grant_that_is_read_back(grants: Path) -> None:
    app, grant = parse_allowance(
        "nobody:shop:/srv/shop:run-as=games,daemon:port=80,443:group=disk:path=/run/shop:raise-limits"
    )
    path = Path(write_grant(app, grant, str(grants)))
    assert path.stat().st_mode & 0o777 == 0o644
    assert read_grant("shop", str(grants)) == grant
    assert grant.run_as == ("games", "daemon") and grant.ports == (80, 443) and grant.raise_limits


def test_allow_adds_and_never_changes_hands(grants: Path) -> None:
    write_grant(*parse_allowance("nobody:shop:/srv/shop:port=80"), str(grants))
    write_grant(*parse_allowance("nobody:shop:/srv/shop:port=443:run-as=games"), str(grants))
    found = read_grant("shop", str(grants))
    assert found is not None and found.ports == (80, 443) and found.run_as == ("games",)
    with pytest.raises(OperatorError):
        write_grant(*parse_allowance("games:shop:/srv/shop"), str(grants))
    assert joined(None, found) == found


@pytest.mark.parametrize(
    "text",
    [
        "nobody",
        "nobody:shop",
        "nobody:Shop:/srv/shop",
        "nobody:../shop:/srv/shop",
        "nosuchuser:shop:/srv/shop",
        "nobody:shop:srv/shop",
        "nobody:shop:/srv/../etc",
        "nobody:shop:/",
        "nobody:shop:/srv/shop:port=8000",
        "nobody:shop:/srv/shop:port=x",
        "nobody:shop:/srv/shop:run-as=",
        "nobody:shop:/srv/shop:run-as=nosuchuser",
        "nobody:shop:/srv/shop:group=nosuchgroup",
        "nobody:shop:/srv/shop:everything",
    ],
)
def test_what_allow_does_not_understand_is_refused(text: str) -> None:
    with pytest.raises(OperatorError):
        parse_allowance(text)


# -- services of root's Monit

_HOLD = HoldSpec("monit", "jobs", "after check", "after finishing")


def _held_by(control: str = "") -> AppSpec:
    return replace(_spec(), holds=(replace(_HOLD, control=control),))


def test_roots_monit_is_told_nothing_without_a_grant_that_names_the_service(grants: Path) -> None:
    for text in ("", 'monit = ["other"]', 'run_as = ["root"]'):
        _grant(grants, text)
        with pytest.raises(NotAllowedError) as refused:
            check_spec(_held_by(), NOBODY, USER, 0, str(grants))
        assert 'monit = ["jobs"]' in refused.value.remedy
    _grant(grants, 'monit = ["jobs"]')
    check_spec(_held_by(), NOBODY, USER, 0, str(grants))
    assert account_for_hold(_held_by(), _HOLD, NOBODY, USER, 0, str(grants)).uid == 0


def test_a_grant_of_monit_is_for_its_owner_and_folder_alone(grants: Path) -> None:
    for owner, deploy_to in (("games", "/srv/shop"), ("nobody", "/srv/other")):
        _grant(grants, 'monit = ["jobs"]', owner, deploy_to)
        with pytest.raises(NotAllowedError):
            check_spec(_held_by(), NOBODY, USER, 0, str(grants))


def test_a_control_file_that_the_grant_does_not_name_is_not_read_as_root(grants: Path) -> None:
    """Monit quotes from a file what it does not understand: /etc/shadow would be read out."""
    _grant(grants, 'monit = ["jobs"]')
    with pytest.raises(NotAllowedError):
        check_spec(_held_by("/etc/shadow"), NOBODY, USER, 0, str(grants))
    _grant(grants, 'monit = ["jobs@/etc/monit/shop.rc"]')
    check_spec(_held_by("/etc/monit/shop.rc"), NOBODY, USER, 0, str(grants))
    with pytest.raises(NotAllowedError):
        check_spec(_held_by(), NOBODY, USER, 0, str(grants))


def test_a_users_own_monit_is_spoken_to_as_that_user_whoever_deploys(grants: Path, home: Path) -> None:
    """Also by a link that leads to root's: the file is then read with the user's rights."""
    control = home / "monitrc"
    control.write_text("set daemon 5\n")
    os.chown(control, NOBODY, NOBODY)
    link = home / "link"
    link.symlink_to("/etc/shadow")
    for path in (control, link):
        for peer in (USER, ROOT):
            hold = replace(_HOLD, control=str(path))
            assert account_for_hold(_held_by(str(path)), hold, NOBODY, peer, 0, str(grants)).uid == NOBODY


def test_root_needs_no_grant_and_a_rootless_agent_is_its_own_user(grants: Path) -> None:
    check_spec(_held_by(), NOBODY, ROOT, 0, str(grants))
    assert account_for_hold(_held_by(), _HOLD, NOBODY, ROOT, 0, str(grants)).uid == 0
    assert account_for_hold(_held_by(), _HOLD, NOBODY, Peer(1, NOBODY, NOBODY), NOBODY, str(grants)).uid == NOBODY


def test_a_grant_of_monit_is_written_and_joined(grants: Path, home: Path) -> None:
    for text in ("monit=jobs", "monit=mail@/etc/monit/shop.rc"):
        app, grant = parse_allowance(f"nobody:shop:{home}:{text}")
        write_grant(app, grant, str(grants))
    found = read_grant("shop", str(grants))
    assert found is not None and found.monit == ("jobs", "mail@/etc/monit/shop.rc")
