"""The repository as the deployer sees it, with real git: what a name means, what is said when it means nothing, and
packs that a host's mirror takes."""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from step_programs import Repository, Steps, git

from midstream.deploy.source import Source
from midstream.errors import HostError, OperatorError


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "origin")
    repository.commit({"midstream.toml": 'app = "shop"\n', "app.py": "1\n", "café/x": "y"}, "First")
    return repository


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.file.allow")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "always")


@pytest.fixture
def address(repository: Repository, tmp_path: Path) -> Iterator[str]:
    """The repository at a URL, so that it goes through the cache: git's dumb HTTP, from a server of our own."""
    bare = tmp_path / "served" / "shop.git"
    git("clone", "--quiet", "--bare", repository.path, bare, cwd=tmp_path)
    git("update-server-info", cwd=bare)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/shop.git"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def push(repository: Repository, tmp_path: Path) -> None:
    bare = tmp_path / "served" / "shop.git"
    git("push", "--quiet", "--mirror", bare, cwd=repository.path)
    git("update-server-info", cwd=bare)


class TestResolve:
    def test_a_branch_of_a_local_repository(self, repository: Repository) -> None:
        with Source(str(repository.path)) as source:
            target = source.resolve("main")
        assert (target.sha, target.tree) == (repository.head(), repository.tree())
        assert (target.branch, target.subject) == ("main", "First")
        assert target.time_s == 1_700_000_060
        assert source.notes == []

    def test_a_local_repository_is_not_written_to_and_has_no_cache(
        self, repository: Repository, tmp_path: Path
    ) -> None:
        before = {path: path.stat().st_mtime_ns for path in repository.path.rglob("*")}
        with Source(str(repository.path)) as source:
            sha = source.resolve("main").sha
            assert source.pack(sha, []) is not None
        assert {path: path.stat().st_mtime_ns for path in repository.path.rglob("*")} == before
        assert not (tmp_path / "cache").exists()

    def test_tags_revisions_and_beginnings_of_them(self, repository: Repository) -> None:
        first = repository.head()
        git("tag", "-a", "-m", "one", "v1", cwd=repository.path)
        repository.commit({"app.py": "2\n"})
        with Source(str(repository.path)) as source:
            for name in ("v1", first, first[:8], "refs/tags/v1"):
                assert source.resolve(name).sha == first
            assert source.resolve("HEAD").sha == repository.head()

    def test_a_branch_comes_before_a_tag_of_the_same_name(self, repository: Repository) -> None:
        git("tag", "main", cwd=repository.path)
        second = repository.commit({"app.py": "2\n"})
        with Source(str(repository.path)) as source:
            assert source.resolve("main").sha == second

    def test_uncommitted_changes_are_noted(self, repository: Repository) -> None:
        (repository.path / "app.py").write_text("changed\n")
        (repository.path / "new.py").write_text("new\n")
        with Source(str(repository.path)) as source:
            target = source.resolve("main")
        assert target.sha == repository.head()
        assert len(source.notes) == 1 and "2 files" in source.notes[0] and target.sha[:12] in source.notes[0]

    def test_an_unknown_branch_names_the_nearest(self, repository: Repository) -> None:
        git("branch", "feature/checkout", cwd=repository.path)
        with Source(str(repository.path)) as source, pytest.raises(OperatorError) as raised:
            source.resolve("feature/chekout")
        assert "feature/checkout" in raised.value.detail and "feature/checkout" in raised.value.remedy

    @pytest.mark.parametrize("name", ["", "--all", "a..b", "^main", "main:app.py", "@{-1}", "deadbeef", "*"])
    def test_a_name_that_means_something_else_to_git_means_nothing(self, repository: Repository, name: str) -> None:
        with Source(str(repository.path)) as source, pytest.raises(OperatorError, match="has no branch"):
            source.resolve(name)

    def test_no_repository(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(OperatorError, match="not a git repository"):
            Source(str(tmp_path / "empty")).resolve("main")
        with pytest.raises(OperatorError, match="no folder"):
            Source(str(tmp_path / "gone")).resolve("main")

    def test_a_repository_without_a_commit(self, tmp_path: Path) -> None:
        git("init", "--quiet", str(tmp_path / "new"), cwd=tmp_path)
        with pytest.raises(OperatorError, match="no branch yet"):
            Source(str(tmp_path / "new")).resolve("main")

    def test_a_shallow_clone_is_refused_before_a_host_is_asked(self, repository: Repository, tmp_path: Path) -> None:
        """CI checks out shallowly; a host would be sent commits whose parents do not exist."""
        repository.commit({"app.py": "2\n"})
        git("clone", "--quiet", "--depth=1", f"file://{repository.path}", tmp_path / "shallow", cwd=tmp_path)
        with pytest.raises(OperatorError, match="shallow") as raised:
            Source(str(tmp_path / "shallow")).resolve("main")
        assert "unshallow" in raised.value.remedy


class TestCache:
    def test_a_repository_at_an_address_is_cached_and_followed(
        self, repository: Repository, address: str, tmp_path: Path
    ) -> None:
        with Source(address) as source:
            assert source.resolve("main").sha == repository.head()
        assert len(list((tmp_path / "cache/midstream/repos").iterdir())) == 1
        second = repository.commit({"app.py": "2\n"}, "Second")
        push(repository, tmp_path)
        with Source(address) as source:
            target = source.resolve("main")
            assert (target.sha, target.subject) == (second, "Second")
            assert source.resolve(second[:10]).sha == second

    def test_a_branch_that_was_pushed_over_or_deleted(
        self, repository: Repository, address: str, tmp_path: Path
    ) -> None:
        git("branch", "topic", cwd=repository.path)
        push(repository, tmp_path)
        with Source(address) as source:
            source.resolve("topic")
        git("branch", "-D", "topic", cwd=repository.path)
        git("commit", "--quiet", "--amend", "-m", "Rewritten", cwd=repository.path)
        git("branch", "topic/more", cwd=repository.path)
        push(repository, tmp_path)
        with Source(address) as source:
            assert source.resolve("main").subject == "Rewritten"
            assert source.resolve("topic/more").sha == repository.head()
            with pytest.raises(OperatorError, match="has no branch") as raised:
                source.resolve("topic")
            assert "topic/more" in raised.value.detail

    def test_a_full_revision_in_the_cache_needs_no_network(
        self, repository: Repository, address: str, tmp_path: Path
    ) -> None:
        sha = repository.head()
        with Source(address) as source:
            source.resolve("main")
        (tmp_path / "served").rename(tmp_path / "gone")
        with Source(address) as source:
            assert source.resolve(sha).sha == sha

    def test_an_unreachable_repository_is_the_networks_fault_and_its_password_stays_secret(self) -> None:
        with pytest.raises(HostError, match="cannot be reached") as raised:
            Source("http://ann:hunter2@127.0.0.1:9/shop.git").resolve("main")
        assert "hunter2" not in str(raised.value)

    def test_an_address_like_an_option_is_none(self, tmp_path: Path) -> None:
        with pytest.raises((OperatorError, HostError)):
            Source(f"ext::touch% {tmp_path}/pwned").resolve("main")
        assert not (tmp_path / "pwned").exists()

    def test_a_cache_that_cannot_be_written_is_named(self, address: str, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file")
        with pytest.raises(HostError, match="cannot be written"):
            Source(address).resolve("main")


class TestContent:
    def test_files_of_a_revision(self, repository: Repository) -> None:
        first = repository.head()
        repository.commit({"midstream.toml": 'app = "other"\n'})
        with Source(str(repository.path)) as source:
            assert source.show(first, "midstream.toml") == b'app = "shop"\n'
            assert source.show(first, "café/x") == b"y"
            assert source.show(first, "nope.toml") is None
            assert source.show(first, "nope/nope.toml") is None
            assert source.show(first, "café") is None
            with pytest.raises(OperatorError):
                source.show("1" * 40, "midstream.toml")

    def test_commits_between(self, repository: Repository) -> None:
        first = repository.head()
        second, third = repository.commit({"app.py": "2"}, "Second: ü"), repository.commit({"app.py": "3"}, "Third")
        with Source(str(repository.path)) as source:
            commits = source.log(first, third)
            assert [(commit.sha, commit.subject) for commit in commits] == [(third, "Third"), (second, "Second: ü")]
            assert commits[0].author == "Ann Author" and commits[0].time_s == 1_700_000_180
            assert source.log(third, first) == source.log("1" * 40, third) == source.log("--all", third) == []


class TestPack:
    def test_a_host_takes_it(self, repository: Repository, tmp_path: Path) -> None:
        steps = Steps(tmp_path / "shop")
        steps.run("prepare")
        with Source(str(repository.path)) as source:
            for content in ("2\n", "3\n"):
                repository.commit({"app.py": content})
                target = source.resolve("main")
                pack = source.pack(target.sha, steps.run("inspect")["have"])
                assert pack is not None and os.path.getsize(pack.path) == pack.size_bytes
                steps.run("receive", pack=Path(pack.path), revision=target.sha, tree=target.tree)
            assert source.pack(target.sha, steps.run("inspect")["have"]) is None
        assert pack is not None and not os.path.exists(pack.path)

    def test_one_upon_a_revision_is_not_made_where_that_is_not_known(self, repository: Repository) -> None:
        """It would bring the whole history, of whatever size, while the host only checks."""
        first = repository.commit({"big": os.urandom(300_000)})
        second = repository.commit({"app.py": "2\n"})
        with Source(str(repository.path)) as source:
            little = source.pack_upon(second, first)
            assert little is not None and little.size_bytes < 10_000 and source.pack(second, [first]) is little
            assert source.pack_upon(second, second) is None
            assert [source.pack_upon(second, revision) for revision in ("1" * 40, "--all", "main", "")] == [None] * 4

    def test_it_brings_only_what_is_missing(self, repository: Repository) -> None:
        first = repository.commit({"big": os.urandom(300_000)})
        second = repository.commit({"app.py": "2\n"})
        with Source(str(repository.path)) as source:
            everything, little = source.pack(second, []), source.pack(second, [first, "1" * 40, "--all"])
            assert everything is not None and little is not None
            assert everything.size_bytes > 300_000 and little.size_bytes < 2_000
            assert source.pack(second, []) is everything

    def test_going_back_needs_nothing(self, repository: Repository) -> None:
        first = repository.head()
        second = repository.commit({"app.py": "2\n"})
        with Source(str(repository.path)) as source:
            assert source.pack(first, [second]) is None
            assert source.pack(first, [first]) is None

    def test_one_that_takes_for_ever_is_given_up(
        self, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        slow = tmp_path / "slow" / "git"
        slow.parent.mkdir()
        real = shutil.which("git")
        slow.write_text(f'#!/bin/sh\ncase " $* " in *" pack-objects "*) exec sleep 600;; esac\nexec {real} "$@"\n')
        slow.chmod(0o755)
        monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
        monkeypatch.setattr("midstream.deploy.source.PACK_S", 0.2)
        with (
            Source(str(repository.path)) as source,
            pytest.raises(HostError, match=r"did not end within 0\.2 s") as failed,
        ):
            source.pack(source.resolve("main").sha, [])
        assert 'source = "fetch"' in failed.value.remedy

    def test_it_brings_the_objects_of_submodules(self, repository: Repository, tmp_path: Path) -> None:
        """So a host needs no key for them either."""
        inner, library = Repository(tmp_path / "inner"), Repository(tmp_path / "library")
        inner.commit({"deepest": "inner\n"})
        library.commit({"code": "library\n"})
        git("submodule", "--quiet", "add", "../inner", "vendored/inner", cwd=library.path)
        library.commit({})
        git("submodule", "--quiet", "add", str(library.path), "lib", cwd=repository.path)
        sha = repository.commit({})
        steps = Steps(tmp_path / "shop")
        steps.run("prepare")
        with Source(str(repository.path)) as source:
            pack = source.pack(source.resolve("main").sha, [], submodules=True)
            assert pack is not None
            for path in (inner.path, library.path):
                path.rename(path.with_name(path.name + "-gone"))
            steps.run("receive", pack=Path(pack.path), revision=sha, submodules=True)
        steps.run("make_release", deploy_id="d", release="20260101000000", revision=sha, submodules=True)
        release = steps.deploy_to / "releases/20260101000000"
        assert (release / "lib/code").read_text() == "library\n"
        assert (release / "lib/vendored/inner/deepest").read_text() == "inner\n"
