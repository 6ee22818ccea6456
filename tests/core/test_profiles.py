"""Profiles as data: which server a command runs, how its listeners get into it, what is unsafe about it."""

from __future__ import annotations

import shlex
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.spec import HandoverPolicy
from midstream.errors import OperatorError
from midstream.profiles import (
    GENERIC,
    SERVERS,
    Park,
    Proof,
    Takes,
    place_listeners,
    profile_named,
    recognise,
    unwrap,
    warnings,
)


def argv(line: str) -> tuple[str, ...]:
    return tuple(shlex.split(line))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("gunicorn shop.wsgi", "gunicorn"),
        ("/srv/shop/.venv/bin/gunicorn shop.wsgi -w 4", "gunicorn"),
        ("python -m gunicorn shop.wsgi", "gunicorn"),
        ("/usr/bin/python3.12 -X dev -m gunicorn shop.wsgi", "gunicorn"),
        ("python .venv/bin/gunicorn shop.wsgi", "gunicorn"),
        ("gunicorn --threads 1 shop.wsgi", "gunicorn"),
        ("gunicorn --threads 8 shop.wsgi", "gunicorn-gthread"),
        ("gunicorn --worker-class=gthread shop.wsgi", "gunicorn-gthread"),
        ("gunicorn -k gevent --threads 4 shop.wsgi", "gunicorn-gevent"),
        ("gunicorn -kasgi shop.asgi", "gunicorn-asgi"),
        ("gunicorn -k uvicorn.workers.UvicornWorker shop.asgi", "gunicorn-uvicorn"),
        ("gunicorn -k uvicorn_worker.UvicornH11Worker shop.asgi", "gunicorn-uvicorn"),
        ("uvicorn shop.asgi:app", "uvicorn"),
        ("uvicorn shop.asgi:app --workers 1", "uvicorn"),
        ("uvicorn shop.asgi:app --workers=12", "uvicorn-workers"),
        ("python3 -m uvicorn shop.asgi:app", "uvicorn"),
        ("hypercorn shop.asgi:app", "hypercorn"),
        ("granian --interface asgi shop.asgi:app", "granian"),
        ("uwsgi --ini uwsgi.ini", "uwsgi"),
        ("waitress-serve shop:app", "waitress"),
        ("puma -C config/puma.rb", "puma"),
        ("bundle exec puma", "puma"),
        ("bundle exec --gemfile Gemfile.next puma", "puma"),
        ("bundle exec ruby -S puma", "puma"),
        ("unicorn -c config/unicorn.rb", "unicorn"),
        ("unicorn_rails -c config/unicorn.rb", "unicorn"),
        ("node dist/server.js", "node"),
        ("node --enable-source-maps dist/server.js", "node"),
        ("midstream serve shop.wsgi:application --workers 4", "midstream-serve"),
        ("python -m midstream serve shop.wsgi:application", "midstream-serve"),
        ("midstream agent run", "generic"),
        ("python app.py", "generic"),
        ("python gunicorn.conf.py", "generic"),
        ("./bin/server", "generic"),
        ("env A=1 B=2 nice -n 5 gunicorn shop.wsgi", "gunicorn"),
        ("uv run --with x gunicorn shop.wsgi", "gunicorn"),
        ("poetry run uvicorn a:b", "uvicorn"),
        ("sh -c 'exec gunicorn --threads 3 shop.wsgi'", "gunicorn-gthread"),
        ("bash -lc 'PORT=1 puma'", "puma"),
        ("sh", "generic"),
        ("uv run", "generic"),
    ],
)
def test_a_command_is_recognised_through_paths_interpreters_and_wrappers(line: str, name: str) -> None:
    assert recognise(argv(line)).name == name


def test_a_shell_line_is_recognised() -> None:
    assert recognise(("exec bundle exec puma -C x",), shell=True).name == "puma"
    assert recognise(("A=1 gunicorn a:b | tee log",), shell=True).name == "gunicorn"
    assert recognise(("echo 'unbalanced",), shell=True) is GENERIC


@given(st.lists(st.text(max_size=12), max_size=6), st.booleans())
def test_any_command_at_all_has_a_profile_and_warnings(words: list[str], shell: bool) -> None:
    command = tuple(words)
    warnings(recognise(command, shell=shell), command, shell=shell)


PLACED = [
    ("gunicorn a:b --bind 0.0.0.0:80", "gunicorn a:b --bind 0.0.0.0:80"),
    ("uvicorn a:b", "uvicorn a:b --fd 3"),
    ("uvicorn a:b --fd {fd}", "uvicorn a:b --fd 3"),
    ("uvicorn a:b --fd={fd:web}", "uvicorn a:b --fd=3"),
    ("uvicorn a:b --uds /run/a.sock --log-level info", "uvicorn a:b --log-level info --fd 3"),
    ("uvicorn a:b --host=0.0.0.0 --port 80", "uvicorn a:b --fd 3"),
    ("hypercorn a:b -b 0.0.0.0:80", "hypercorn a:b --bind fd://3 --bind fd://4"),
    ("hypercorn a:b --bind fd://{fd}", "hypercorn a:b --bind fd://3 --bind fd://4"),
    ("puma -C x", "puma -C x --bind-to-activated-sockets only"),
    ("node server.js {fd}", "node server.js 3"),
    ("node -e 'listen({fd:3})'", "node -e 'listen({fd:3})'"),
    ("./serve --run {run}/x --fd {fd}", "./serve --run {run}/x --fd 3"),
]


@pytest.mark.parametrize(("line", "expected"), PLACED)
def test_listeners_are_put_where_the_server_takes_them(line: str, expected: str) -> None:
    command = argv(line)
    assert place_listeners(recognise(command), command, {"web": 3}, private=4) == argv(expected)


def test_unicorn_binds_nothing_of_its_own() -> None:
    placed = place_listeners(profile_named("unicorn"), argv("unicorn -l /run/u.sock -p8080 -c u.rb"), {"web": 3})
    assert placed[:4] == ("unicorn", "-c", "u.rb", "-e")
    assert "bind_new_listeners!" in placed[4]


def test_uwsgi_keeps_its_protocol_and_gets_a_graceful_term() -> None:
    graceful = ("--hook-master-start", "unix_signal:15 gracefully_kill_them_all", "--die-on-term")
    for line, option in (("--http :80", "--http-socket"), ("-s /run/u", "--socket"), ("", "--http-socket")):
        placed = place_listeners(profile_named("uwsgi"), argv(f"uwsgi --master {line}"), {"web": 3})
        assert placed == ("uwsgi", "--master", option, "fd://3", *graceful)


def test_a_graceful_hook_of_the_operator_is_left_alone() -> None:
    own = "uwsgi --master --hook-master-start 'unix_signal:15 gracefully_kill_them_all' --die-on-term"
    assert place_listeners(profile_named("uwsgi"), argv(own), {"web": 3}) == (*argv(own), "--http-socket", "fd://3")


def test_several_listeners_are_all_placed() -> None:
    hypercorn = profile_named("hypercorn")
    assert place_listeners(hypercorn, ("hypercorn", "a:b"), {"web": 3, "admin": 4}, private=5)[2:] == argv(
        "--bind fd://3 --bind fd://4 --bind fd://5"
    )
    named = argv("hypercorn a:b --bind fd://{fd:admin}")
    assert place_listeners(hypercorn, named, {"web": 3, "admin": 4})[2:] == argv("--bind fd://4 --bind fd://3")
    assert place_listeners(GENERIC, argv("x {fd} {fd:admin}"), {"web": 3, "admin": 4}) == argv("x 3 4")


def test_without_listeners_a_command_stays_as_it_is() -> None:
    assert place_listeners(profile_named("uvicorn"), argv("uvicorn a:b --port 80"), {}) == argv("uvicorn a:b --port 80")


def test_a_graceful_term_is_added_where_there_is_no_listener_as_well() -> None:
    assert "--die-on-term" in place_listeners(profile_named("uwsgi"), argv("uwsgi --master --http :80"), {})
    assert place_listeners(profile_named("uwsgi"), ("exec uwsgi --ini x",), {}, shell=True) == ("exec uwsgi --ini x",)


def test_an_unknown_listener_name_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(OperatorError, match="'admin'") as caught:
        place_listeners(GENERIC, argv("x {fd:admin}"), {"web": 3})
    assert "{fd:web}" in caught.value.remedy
    with pytest.raises(OperatorError, match="a listener") as caught:
        place_listeners(GENERIC, argv("x {fd}"), {})
    assert "listen" in caught.value.remedy


def test_an_option_cannot_be_added_inside_a_shell_line() -> None:
    uvicorn = profile_named("uvicorn")
    with pytest.raises(OperatorError, match="shell line") as caught:
        place_listeners(uvicorn, ("exec uvicorn a:b",), {"web": 3}, shell=True)
    assert "--fd" in caught.value.remedy
    assert place_listeners(uvicorn, ("exec uvicorn a:b --fd {fd}",), {"web": 3}, shell=True) == (
        "exec uvicorn a:b --fd 3",
    )
    assert place_listeners(profile_named("gunicorn"), ("exec gunicorn a:b",), {"web": 3}, shell=True)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("gunicorn a:b --daemon", "foreground"),
        ("gunicorn a:b -D", "foreground"),
        ("gunicorn a:b --pid=/run/x", "pid file"),
        ("gunicorn a:b --reuse-port", "ignores the listener"),
        ("gunicorn a:b --reload", "development"),
        ("uvicorn a:b --reload", "development"),
        ("hypercorn a:b -w 4", "one worker"),
        ("unicorn -D", "foreground"),
        ("uwsgi --daemonize /var/log/x", "foreground"),
        ("uv run gunicorn a:b", "LISTEN_PID"),
        ("npx server", "LISTEN_PID"),
        ("sudo -u www gunicorn a:b", "descriptors"),
        ("sh -c 'gunicorn a:b'", "exec"),
    ],
)
def test_what_is_unsafe_is_said(line: str, word: str) -> None:
    command = argv(line)
    found = warnings(recognise(command), command)
    assert any(word in sentence for sentence in found), found


@pytest.mark.parametrize(
    "line",
    ["gunicorn a:b -w 4", "hypercorn a:b -w 1", "bundle exec puma", "sh -c 'exec gunicorn a:b'", "env A=1 uvicorn a:b"],
)
def test_what_is_safe_gives_no_warning(line: str) -> None:
    command = argv(line)
    assert warnings(recognise(command), command) == ()


def test_a_wrapper_that_keeps_the_pid_lets_options_be_appended() -> None:
    assert unwrap(argv("env A=1 uvicorn a:b")).whole
    assert not unwrap(argv("sh -c 'exec uvicorn a:b'")).whole


@pytest.mark.parametrize("profile", SERVERS, ids=lambda profile: profile.name)
def test_a_profile_is_consistent(profile) -> None:  # type: ignore[no-untyped-def]
    """What the agent relies on without looking at names."""
    signals = (profile.drain_signal, profile.stop_signal, profile.quick_signal)
    optional = (profile.park_signal, profile.unpark_signal, profile.reload_signal)
    assert all(hasattr(signal, f"SIG{name}") for name in signals)
    assert all(hasattr(signal, f"SIG{name}") for name in optional if name)
    assert (profile.park is Park.PAUSE) == bool(profile.park_signal) == bool(profile.unpark_signal)
    assert (profile.takes_listener is Takes.NONE) == (profile.proof is Proof.OWN)
    assert (profile.takes_listener is Takes.NONE) == (profile.default_policy is HandoverPolicy.REPLACE)
    assert (profile.proof is Proof.SECOND) == profile.second_listener
    assert (profile.takes_listener is Takes.FD_ARGUMENT) <= bool(profile.listener_option)
    assert bool(profile.reload_signal) == bool(profile.reload_unsafe) or profile.name == "midstream-serve"
    assert profile.keep_alive_loss
    assert profile.policy(False) is HandoverPolicy.REPLACE


def test_names_of_profiles_are_unique_and_an_unknown_one_names_the_others() -> None:
    assert len({profile.name for profile in SERVERS}) == len(SERVERS)
    assert all(profile_named(profile.name) is profile for profile in SERVERS)
    with pytest.raises(OperatorError) as caught:
        profile_named("gunicron")
    assert "gunicorn-gthread" in caught.value.remedy
