"""Settings of `midstream serve`: one table; command line over environment over file over default; all mistakes at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from midstream.errors import OperatorError
from midstream.serve import options, settings_checks
from midstream.serve.foreign_options import INSTEAD, PASSED_OVER
from midstream.serve.options import Action, Invocation
from midstream.serve.setting_values import read, read_bind, show
from midstream.serve.settings import TABLE, Kind, Setting, Settings

APP = "shop.wsgi:application"

# Three values of each kind, as text, that differ from each other and from every default.
SAMPLES: dict[Kind, tuple[str, str, str]] = {
    Kind.TEXT: ("/one", "/two", "/three"),
    Kind.WHOLE: ("17", "18", "19"),
    Kind.SECONDS: ("17", "18s", "1m59s"),
    Kind.SIZE: ("17KB", "18KB", "19456"),
    Kind.MODE: ("017", "0027", "077"),
    Kind.PATH: ("/run/one", "/run/two", "/run/three"),
    Kind.WITHIN: ("one", "two", "three"),
    Kind.OUTPUT: ("/log/one", "-", "/log/three"),
    Kind.BIND: ("127.0.0.1:27", "127.0.0.1:28", "unix:/run/thirteen"),
    Kind.BINDS: ("127.0.0.1:17", "127.0.0.1:18", "unix:/run/three"),
    Kind.MANY_PATHS: ("/run/one", "/run/two", "/run/three"),
    Kind.MANY_WITHIN: ("one", "two", "three"),
    Kind.STATUSES: ("201", "202", "203"),
}
SAMPLES_BY_NAME = {
    "app": ("one:app", "two:app", "three:app"),
    "env": ("A=1", "A=2", "A=3"),
    "forwarded_allow_ips": ("10.0.0.1", "10.0.0.0/8", "unix"),
    "hosts": ("one.example", "two.example", ".three.example"),
    "health_headers": ("A: 1", "A: 2", "A: 3"),
    "health_host": ("one", "two", "three"),
    "release_header": ("X-One", "X-Two", "X-Three"),
    "access_log_format": ("json", "%(h)s", "apache"),
    "error_log": ("/log/one", "/log/two", "/log/three"),
}


def invoke(*argv: str, folder: str = "/srv", **environment: str) -> Invocation:
    return options.read(argv, environment, folder)


def settings_of(*argv: str, **environment: str) -> Settings:
    return invoke(APP, *argv, **environment).settings


def complaint(*argv: str, **environment: str) -> str:
    with pytest.raises(OperatorError) as caught:
        invoke(*argv, **environment)
    assert caught.value.exit_code == 2
    return str(caught.value)


def samples_of(setting: Setting) -> tuple[str, str, str]:
    if setting.kind is Kind.CHOICE:
        others = [choice for choice in setting.choices if choice and choice != setting.default]
        return (others[0], others[-1], others[0])
    return SAMPLES_BY_NAME.get(setting.name) or SAMPLES[setting.kind]


VALUED = [setting for setting in TABLE if setting.kind is not Kind.FLAG]
FLAGS = [setting for setting in TABLE if setting.kind is Kind.FLAG]
named = pytest.mark.parametrize("setting", VALUED, ids=lambda setting: setting.name)


def test_each_setting_is_declared_once_with_names_of_its_own() -> None:
    names = [name for setting in TABLE for name in {setting.key, setting.name, setting.gunicorn} - {""}]
    assert len(set(names)) == len(names)
    words = [option for setting in TABLE for option in setting.options]
    assert len(set(words)) == len(words)
    assert not set(words) & {*INSTEAD, *PASSED_OVER}
    for setting in TABLE:
        assert setting.help and not setting.help.endswith(".")
        if not setting.repeats and setting.kind is not Kind.PATH:
            assert read(setting, show(setting, setting.default), "/") == setting.default


def test_what_one_version_sends_the_version_before_and_after_it_understand() -> None:
    sent = settings_of("--workers", "3", "--env", "A=1").to_json()
    assert Settings.from_json(json.loads(json.dumps(sent))) == settings_of("--workers", "3", "--env", "A=1")
    assert Settings.from_json({**sent, "of_a_later_version": [1]}).workers == 3
    older = {name: value for name, value in sent.items() if name != "linger_s"}
    assert Settings.from_json(older).linger_s == Settings().linger_s


@pytest.mark.parametrize(
    ("name", "value"),
    [("workers", "3"), ("workers", True), ("bind", "tcp://127.0.0.1:1"), ("env", [1]), ("preload", 1), ("app", None)],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        Settings.from_json({name: value})


@named
def test_command_line_over_environment_over_file_over_default(setting: Setting, tmp_path: Path) -> None:
    first, second, third = samples_of(setting)
    app = () if setting.name == "app" else (APP,)
    beside = ("--certfile", "/c.pem") if setting.name in ("keyfile", "ca_certs") else ()
    file = tmp_path / "serve.toml"
    file.write_text(f"{setting.key} = {json.dumps(third)}\n")
    wanted = [_value(setting, text) for text in (first, second, third)]
    said = (first,) if setting.name == "app" else (setting.options[0], first)
    config = ("-c", str(file))
    in_all = invoke(*app, *beside, *said, *config, **{setting.variable: second})
    in_two = invoke(*app, *beside, *config, **{setting.variable: second})
    in_one = invoke(*app, *beside, *config)
    found = [getattr(one.settings, setting.name) for one in (in_all, in_two, in_one)]
    assert found == wanted
    assert in_two.sources[setting.name] == setting.variable
    assert in_one.sources[setting.name] == f"{file}: {setting.key}"
    assert len({str(value) for value in wanted} | {str(setting.default)}) >= 2


def _value(setting: Setting, text: str) -> Any:
    return read(setting, text, "/srv")


@pytest.mark.parametrize("setting", FLAGS, ids=lambda setting: setting.name)
def test_a_flag_is_switched_on_and_off_everywhere(setting: Setting, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(f"{setting.key} = {'false' if setting.default else 'true'}\n")
    option, off = setting.options[0], f"--no-{setting.options[0][2:]}"
    assert getattr(invoke(APP, "-c", str(file)).settings, setting.name) is not setting.default
    assert getattr(invoke(APP, "-c", str(file), **{setting.variable: "1"}).settings, setting.name) is True
    assert getattr(invoke(APP, option, **{setting.variable: "no"}).settings, setting.name) is True
    assert getattr(invoke(APP, off, **{setting.variable: "yes"}).settings, setting.name) is False


def test_every_alias_and_gunicorns_key_means_the_setting(tmp_path: Path) -> None:
    for setting in VALUED:
        if setting.name in ("app", "keyfile", "ca_certs"):
            continue
        first = samples_of(setting)[0]
        for option in setting.options:
            assert getattr(settings_of(option, first), setting.name) == _value(setting, first), option
        if setting.gunicorn:
            file = tmp_path / "serve.toml"
            file.write_text(f"{setting.gunicorn} = {json.dumps(first)}\n")
            assert getattr(settings_of("-c", str(file)), setting.name) == _value(setting, first), setting.gunicorn


def test_the_file_that_is_printed_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    argv = [APP, "--certfile", "/c.pem", "--env", 'A="\\é\t', "--no-preload"]
    for setting in VALUED:
        if setting.name not in ("app", "env", "certfile", "access_log_format"):
            argv += [setting.options[-1], samples_of(setting)[0]]
    asked = invoke(*argv)
    file = tmp_path / "serve.toml"
    file.write_text("\n".join(line.removeprefix("# ") for line in options.as_toml(asked).splitlines()))
    assert invoke("-c", str(file)).settings == asked.settings
    assert set(asked.sources) >= {setting.name for setting in VALUED} - {"access_log_format"}


def test_tables_of_the_file_are_prefixes_or_values(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        'app = "shop:app"\nworkers = 3\ntimeout = 90\numask = "027"\nbind = ["127.0.0.1:1", "unix:/run/x"]\n'
        '[health]\npath = "/up"\nheader = { X-Forwarded-Proto = "https" }\nstatus = [200, 204]\n[env]\nA = "1"\nB = "2"\n'
    )
    found = invoke("-c", str(file)).settings
    assert (found.workers, found.timeout_s, found.umask) == (3, 90.0, 0o27)
    assert found.bind == ("tcp://127.0.0.1:1", "unix:///run/x")
    assert (found.health_path, found.health_status) == ("/up", (200, 204))
    assert found.health_headers == ("X-Forwarded-Proto: https",)
    assert found.env == ("A=1", "B=2")


def test_all_mistakes_are_told_at_once_with_the_nearest_option() -> None:
    text = complaint(APP, "--wokers", "4", "--threads", "0", "--timeout", "soon", "--host", "::", "--umask", "999")
    for part in (
        "5 mistakes",
        "no option --wokers; did you mean --workers?",
        "--threads: expected 1 to 1024, not 0",
        "--timeout: expected a duration",
        "--host is not an option here: --bind HOST:PORT",
        "--umask: expected an octal mode",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ((), "say which app: midstream serve MODULE:NAME"),
        (("one:app", "two:app"), "one app is served, not 2"),
        ((APP, "--workers"), "--workers: needs a value"),
        (("shop/wsgi.py",), "expected MODULE:NAME"),
        ((APP, "--keyfile", "k"), "--keyfile: needs --certfile"),
        ((APP, "--bind", "::1:80"), "stands in brackets"),
        ((APP, "--bind", "shop.example:80"), "must be a numeric address"),
        ((APP, "-b", ":1", "-b", "0.0.0.0:1"), "named twice"),
        ((APP, "--bind", "unix:"), "needs a path"),
        ((APP, "--health-path", "up"), "expected a path such as /up"),
        ((APP, "--health-header", "x"), 'expected "NAME: VALUE"'),
        ((APP, "--access-log-format", "commbined"), "expected combined, apache, json or atoms"),
        ((APP, "--access-log-format", "%(h)s %s"), "is no atom"),
        ((APP, "--forwarded-allow-ips", "proxy"), "expected addresses, networks"),
        ((APP, "--allowed-hosts", "https://x"), "is no name of a host"),
        ((APP, "--release-header", "X Release"), "is no name of a header"),
        ((APP, "--env", "A"), "expected NAME=VALUE"),
        ((APP, "--ask", "nothing"), "invalid choice"),
        ((APP, "-k", "gevent"), "no gevent"),
        ((APP, "-c", "gunicorn.conf.py"), "Python files are not run"),
        ((APP, "-c", "/nonexistent/serve.toml"), "No such file"),
        ((APP, "--error-log", "a\nb"), "a line break"),
    ],
)
def test_a_mistake_says_where_and_what_was_expected(argv: tuple[str, ...], part: str) -> None:
    text = complaint(*argv)
    assert part in text and "--help" in text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("wokers = 3\n", "no key wokers; did you mean workers?"),
        ("workers = 1.5\n", "workers: expected a whole number"),
        ("umask = 27\n", "in quotes in TOML"),
        ("keepalive = 1\nkeep_alive = 2\n", "are the same setting"),
        ("workers = \n", "this is not TOML"),
        ("[health]\npaht = '/up'\n", "no key health.paht"),
    ],
)
def test_a_mistake_in_the_file_names_file_and_key(content: str, part: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(content)
    text = complaint(APP, "-c", str(file))
    assert part in text and str(file) in text


def test_variables_that_are_nearly_settings_are_told_and_do_not_stop_it() -> None:
    notes = invoke(APP, MIDSTREAM_SERVE_WOKERS="3", MIDSTREAM_SERVE_GENERATION="4").notes
    assert notes == ("MIDSTREAM_SERVE_WOKERS in the environment is no setting; did you mean MIDSTREAM_SERVE_WORKERS?",)


def test_variables_of_other_servers_and_platforms_count_below_our_own() -> None:
    found = settings_of(WEB_CONCURRENCY="5", PORT="99", FORWARDED_ALLOW_IPS="*")
    assert (found.workers, found.bind, found.forwarded_allow_ips) == (5, ("tcp://0.0.0.0:99",), ("*",))
    assert settings_of(WEB_CONCURRENCY="5", MIDSTREAM_SERVE_WORKERS="6").workers == 6
    assert settings_of("-b", ":98", PORT="99").bind == ("tcp://0.0.0.0:98",)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", "tcp://127.0.0.1:8000"),
        (":8000", "tcp://0.0.0.0:8000"),
        ("localhost:1", "tcp://localhost:1"),
        ("127.0.0.1", "tcp://127.0.0.1:8000"),
        ("[::1]:1", "tcp://[::1]:1"),
        ("tcp://[::]:1", "tcp://[::]:1"),
        ("unix:/run/a.sock", "unix:///run/a.sock"),
        ("unix:a.sock", "unix:///srv/a.sock"),
        ("unix:///run/a.sock", "unix:///run/a.sock"),
        ("fd://3", "fd://3"),
    ],
)
def test_binds_as_people_write_them(text: str, address: str) -> None:
    assert read_bind(text, "/srv") == address


def test_gunicorns_worker_classes_become_interface_and_threads() -> None:
    assert settings_of("-k", "sync").threads == 1
    assert settings_of("-k", "sync", "--threads", "8").threads == 8
    assert settings_of("-k", "uvicorn.workers.UvicornWorker").interface == "asgi"
    assert settings_of("-k", "gthread") == settings_of()


def test_the_folder_is_the_one_that_was_named_not_where_the_symlink_led(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "current").symlink_to("1")
    monkeypatch.chdir(tmp_path / "current")
    folder = options.start_folder({"PWD": str(tmp_path / "current")})
    assert folder == str(tmp_path / "current") != os.getcwd()
    assert invoke(APP, folder=folder).settings.chdir == folder
    assert options.start_folder({"PWD": "/"}) == os.getcwd() == options.start_folder({})
    assert invoke(APP, "--chdir", "../current", folder=folder).settings.chdir == f"{folder}/../current"


def test_asking_needs_no_app_and_reload_for_development_shows_new_code_at_once() -> None:
    asked = invoke("--ask", "status", "--bind", ":1")
    assert (asked.action, asked.asked, asked.settings.bind) == (Action.ASK, "status", ("tcp://0.0.0.0:1",))
    assert settings_of("--reload").linger_s == 0
    assert settings_of("--reload", "--linger", "5").linger_s == 5


def test_what_is_allowed_and_probably_not_meant_is_noted() -> None:
    assert any("a request on its way is lost" in note for note in invoke(APP, "--linger", "0").notes)
    assert any("nginx keeps connections" in note for note in invoke(APP, "--keep-alive", "5").notes)
    assert any("--worker-tmp-dir" in note for note in invoke(APP, "--worker-tmp-dir", "/dev/shm").notes)
    assert any("always -" in n for n in invoke(APP, "--access-log", "-", "--access-log-format", "%({x}i)s").notes)
    assert list(settings_checks.notes(Settings())) == []


def test_every_option_of_gunicorn_is_understood_or_answered() -> None:
    config = pytest.importorskip("gunicorn.config")
    known = {option for setting in TABLE for option in setting.options} | {*PASSED_OVER, *INSTEAD}
    known |= {"-c", "--config", "--print-config", "-k", "--worker-class"}
    # A server for tasks beside the web, HTTP/2 and others that no other server knows by such a name.
    rare = (
        "--dirty-",
        "--http2-",
        "--asgi-",
        "--uwsgi-",
        "--websocket-",
        "--control-socket-",
        "--enable-backlog",
        "--paste-",
    )
    missing = [
        option
        for setting in config.KNOWN_SETTINGS
        for option in setting.cli or ()
        if option not in known and not option.startswith(rare)
    ]
    assert missing == []


def test_every_option_of_uvicorn_is_understood_or_answered() -> None:
    main = pytest.importorskip("uvicorn.main").main
    known = {option for setting in TABLE for option in setting.options} | {*PASSED_OVER, *INSTEAD, "--version"}
    known |= {f"--no-{setting.options[0][2:]}" for setting in FLAGS}
    words = [word for parameter in main.params for word in (*parameter.opts, *parameter.secondary_opts)]
    missing = [word for word in words if word.startswith("--") and word not in known]
    assert missing == []
