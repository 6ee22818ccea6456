"""`midstream.toml` on disk: found, read, its surroundings looked up; secrets read and never repeated."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from midstream.core.config_mistakes import ConfigError
from midstream.core.config_tables import SecretSource
from midstream.deploy import config_file
from midstream.deploy.config_file import open_project, read_secrets, surroundings_of
from midstream.errors import EXIT_USAGE, OperatorError

SERVICE = '[services.web]\ncommand = "a"\n'


def repository(folder: Path, branch: str = "main") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for words in (
        ("init", "-q", "-b", branch),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first"),
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True, env=environ)
    return folder


def test_the_repository_around_the_file_is_the_default(tmp_path: Path) -> None:
    folder = repository(tmp_path / "shop")
    (folder / "midstream.toml").write_text(SERVICE)
    project = open_project(folder=folder)
    where = project.destination()
    assert (where.app, where.repository, where.branch, where.config_path) == (
        "shop",
        str(folder),
        "main",
        "midstream.toml",
    )
    assert project.load().resolve().services["web"].command == ("a",)


def test_a_file_in_a_sub_folder_deploys_that_folder(tmp_path: Path) -> None:
    folder = repository(tmp_path / "all") / "apps" / "shop"
    folder.mkdir(parents=True)
    (folder / "own.toml").write_text(SERVICE)
    where = open_project("own.toml", folder=folder).destination()
    assert (where.repository, where.config_path) == (str(tmp_path / "all"), "apps/shop/own.toml")
    assert open_project(folder / "own.toml").load().resolve().repo_tree == "apps/shop"


def test_master_is_the_branch_where_there_is_no_main(tmp_path: Path) -> None:
    assert surroundings_of(repository(tmp_path / "old", "master")).branch == "master"
    assert surroundings_of(repository(tmp_path / "new", "main")).branch == ""


def test_the_repository_that_git_hooks_name_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = repository(tmp_path / "other")
    folder = repository(tmp_path / "shop")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert surroundings_of(folder).repository == str(folder)


def test_a_folder_without_git_has_no_default_and_the_mistake_says_so(tmp_path: Path) -> None:
    (tmp_path / "midstream.toml").write_text(SERVICE)
    with pytest.raises(ConfigError, match="git init"):
        open_project(folder=tmp_path).load()


def test_apps_of_a_user_are_put_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    home = str(tmp_path)
    assert surroundings_of(tmp_path, {"HOME": home}).apps_folder == f"{home}/.local/share/midstream/apps"
    data = {"HOME": home, "XDG_DATA_HOME": "/data"}
    assert surroundings_of(tmp_path, data).apps_folder == "/data/midstream/apps"
    assert surroundings_of(tmp_path, {"HOME": home, "XDG_DATA_HOME": "rel"}).apps_folder.startswith(home)


def test_without_a_file_the_remedy_is_init(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        open_project(folder=tmp_path)
    assert "midstream init" in caught.value.remedy
    assert caught.value.exit_code == EXIT_USAGE


def test_a_byte_order_mark_is_no_mistake_and_latin_1_is_one(tmp_path: Path) -> None:
    file = tmp_path / "midstream.toml"
    file.write_bytes(b"\xef\xbb\xbf" + SERVICE.encode())
    assert open_project(file).text == SERVICE
    file.write_bytes(b"# one\n# \xe4\n")
    with pytest.raises(OperatorError, match=r"midstream\.toml:2: not UTF-8"):
        open_project(file)


def test_the_file_of_a_revision_may_be_missing_or_be_bytes(tmp_path: Path) -> None:
    folder = repository(tmp_path / "shop")
    (folder / "midstream.toml").write_text(SERVICE)
    project = open_project(folder=folder)
    assert project.load(None, revision="abc").notes
    spec = project.load(b'[services.web]\ncommand = "b"\n', revision="abc").resolve()
    assert spec.services["web"].command == ("b",)
    with pytest.raises(OperatorError, match=r"midstream\.toml in abc:1: not UTF-8"):
        project.load(b"\xff", revision="abc")


# secrets


def test_secrets_are_read_from_files_variables_and_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("from file\n")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "key").write_text("from home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    sources = {
        "A": SecretSource(file="key"),
        "B": SecretSource(file="~/key"),
        "C": SecretSource(env="SOURCE"),
        "D": SecretSource(command=("printf", "%s\\n\\n", "from command")),
    }
    assert read_secrets(sources, tmp_path, {**os.environ, "SOURCE": "from env"}) == {
        "A": "from file",
        "B": "from home",
        "C": "from env",
        "D": "from command\n",
    }


def test_all_secrets_that_cannot_be_read_are_named_and_none_is_shown(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "nul").write_bytes(b"hunter2\0")
    (tmp_path / "binary").write_bytes(b"hunter2\xff")
    sources = {
        "MISSING": SecretSource(file="nothing"),
        "EMPTY": SecretSource(file="empty"),
        "NUL": SecretSource(file="nul"),
        "BINARY": SecretSource(file="binary"),
        "UNSET": SecretSource(env="NOT_SET"),
        "FAILED": SecretSource(command=("sh", "-c", "echo hunter2; exit 3")),
        "NO_PROGRAM": SecretSource(command=("midstream-no-such-program",)),
    }
    with pytest.raises(OperatorError) as caught:
        read_secrets(sources, tmp_path, {"PATH": os.environ["PATH"]})
    text = str(caught.value)
    assert "hunter2" not in text
    for expected in (
        f"MISSING: {tmp_path}/nothing: No such file or directory",
        "EMPTY: it is empty",
        "NUL: it has a NUL byte",
        "BINARY: it is not UTF-8",
        "UNSET: the variable NOT_SET is not set",
        "FAILED: `sh` ended with 3",
        "NO_PROGRAM: `midstream-no-such-program` cannot be run",
    ):
        assert expected in text
    assert caught.value.exit_code == EXIT_USAGE


def test_a_secret_command_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_file, "SECRET_COMMAND_TIMEOUT_S", 0.2)
    with pytest.raises(OperatorError, match=r"did not end within 0\.2 s|a secret cannot be read") as caught:
        read_secrets({"A": SecretSource(command=("sleep", "600"))}, tmp_path)
    assert "did not end within 0.2 s" in caught.value.detail
