"""The choices about releases: ids, rollback target, cleanup, the lines of revisions.log, and the layout's names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.git_errors import explain, redact_url, without_password
from midstream.core.layout import (
    CurrentKind,
    Layout,
    check_deploy_to,
    check_linked,
    check_relative,
    classify_current,
    release_of,
)
from midstream.core.names import is_release
from midstream.core.releases import (
    common_target,
    deployed_line,
    deployed_releases,
    is_revision_line,
    next_release_id,
    release_id,
    removable,
    rollback_target,
    rolled_back_line,
)
from midstream.core.submodules import absolute_url
from midstream.errors import HostError, OperatorError

IDS = [f"2026010100000{n}" for n in range(9)]
SHA = "0123456789abcdef0123456789abcdef01234567"


def test_a_release_id_is_the_utc_second() -> None:
    assert release_id(0) == "19700101000000"
    assert release_id(1_795_287_901.9) == "20261121190501"


@pytest.mark.parametrize(
    ("release", "following"),
    [("20261121190501", "20261121190502"), ("20261231235959", "20270101000000"), ("20240228235959", "20240229000000")],
)
def test_the_next_release_id_is_one_second_later(release: str, following: str) -> None:
    assert next_release_id(release) == following


def test_an_id_that_is_no_moment_has_no_next() -> None:
    with pytest.raises(ValueError):
        next_release_id("20261399999999")


@given(st.integers(0, 4_000_000_000))
def test_ids_sort_as_moments_do(moment: int) -> None:
    assert release_id(moment) < release_id(moment + 1) == next_release_id(release_id(moment))


class TestRollbackTarget:
    def test_it_is_the_last_proven_before_the_committed_one(self) -> None:
        """Not the newest: releases made after the committed one (a failed deploy) are passed over."""
        assert rollback_target(IDS[:6], committed=IDS[3], proven=IDS[:4]) == IDS[2]

    def test_a_failed_release_in_between_is_passed_over(self) -> None:
        assert rollback_target(IDS[:4], committed=IDS[3], proven={IDS[0], IDS[1], IDS[3]}) == IDS[1]

    def test_a_bad_one_is_never_chosen(self) -> None:
        assert rollback_target(IDS[:4], committed=IDS[3], proven=IDS, bad={IDS[2]}) == IDS[1]

    def test_one_that_is_gone_from_the_disk_is_never_chosen(self) -> None:
        assert rollback_target([IDS[0], IDS[3]], committed=IDS[3], proven=IDS) == IDS[0]

    def test_names_that_are_no_releases_are_passed_over(self) -> None:
        assert rollback_target([IDS[0], "2020", "zzz", IDS[3]], committed=IDS[3], proven=[*IDS, "zzz"]) == IDS[0]

    def test_without_one_it_says_what_there_is(self) -> None:
        with pytest.raises(OperatorError) as raised:
            rollback_target([IDS[3], IDS[4]], committed=IDS[3], proven=IDS[:4])
        assert IDS[4] in raised.value.detail
        assert IDS[3] in raised.value.serving

    def test_a_named_one_must_exist(self) -> None:
        assert rollback_target(IDS, committed=IDS[3], proven=[], named=IDS[7]) == IDS[7]
        for named in ("20990101000000", "current"):
            with pytest.raises(OperatorError, match="no release"):
                rollback_target([*IDS, "current"], committed=IDS[3], proven=IDS, named=named)

    def test_a_named_one_must_not_be_bad(self) -> None:
        with pytest.raises(OperatorError, match="marked bad"):
            rollback_target(IDS, committed=IDS[3], proven=IDS, bad={IDS[2]}, named=IDS[2])

    @given(
        st.sets(st.sampled_from(IDS)),
        st.sampled_from(IDS),
        st.sets(st.sampled_from(IDS)),
        st.sets(st.sampled_from(IDS)),
    )
    def test_for_any_history(self, disk: set[str], committed: str, proven: set[str], bad: set[str]) -> None:
        allowed = {release for release in disk & proven - bad if release < committed}
        try:
            target = rollback_target(disk, committed=committed, proven=proven, bad=bad)
        except OperatorError:
            assert not allowed
        else:
            assert target == max(allowed)


class TestRemovable:
    def test_the_newest_good_ones_stay(self) -> None:
        assert removable(IDS, keep=3, committed=IDS[-1]) == IDS[:-3]

    def test_failed_releases_do_not_use_up_what_is_kept(self) -> None:
        """Capistrano counts them: five failed deploys in a row leave no good release but the current one."""
        removed = removable(IDS, keep=3, committed=IDS[8], bad=IDS[3:8])
        assert not {IDS[1], IDS[2], IDS[8]} & set(removed)
        assert removed == [IDS[0], *IDS[3:8]]

    def test_the_newest_failure_after_the_committed_one_stays_to_be_looked_at(self) -> None:
        assert removable(IDS, keep=2, committed=IDS[5], bad=[IDS[6], IDS[7], IDS[8]]) == [*IDS[:4], IDS[6], IDS[7]]

    def test_live_committed_current_and_rollback_target_stay_however_old(self) -> None:
        stay = {"live": [IDS[0]], "committed": IDS[1], "current": IDS[2], "previous_good": IDS[3]}
        assert removable(IDS, keep=1, **stay) == IDS[4:8]  # type: ignore[arg-type]

    def test_a_bad_release_with_a_live_process_stays(self) -> None:
        assert IDS[0] not in removable(IDS, keep=1, committed=IDS[8], live=[IDS[0]], bad=[IDS[0]])

    def test_names_of_others_are_never_chosen(self) -> None:
        assert removable(["backup", "2020", ".old", "20260101000000x", *IDS[:2]], keep=1) == [IDS[0]]

    @given(
        st.sets(st.sampled_from(IDS)),
        st.integers(0, 5),
        st.sets(st.sampled_from(IDS)),
        st.sets(st.sampled_from(IDS)),
        st.sampled_from([None, *IDS]),
        st.sampled_from([None, *IDS]),
    )
    def test_for_any_history(
        self, disk: set[str], keep: int, live: set[str], bad: set[str], committed: str | None, previous: str | None
    ) -> None:
        removed = set(removable(disk, keep=keep, live=live, committed=committed, previous_good=previous, bad=bad))
        assert not removed & (live | {committed, previous})
        assert removed <= disk
        good = disk - bad
        assert len(good - removed) >= min(keep, len(good))
        assert all(release not in removed for release in sorted(good)[len(good) - keep :] if keep)
        # Once is enough: what is left is what should be left.
        assert not removable(disk - removed, keep=keep, live=live, committed=committed, previous_good=previous, bad=bad)


class TestRevisionsLog:
    def test_the_two_forms_are_capistranos_to_the_letter(self) -> None:
        line = deployed_line("main", SHA, IDS[0], "ann")
        assert line == f"Branch main (at {SHA}) deployed as release {IDS[0]} by ann"
        assert rolled_back_line("ann", IDS[0]) == f"ann rolled back to release {IDS[0]}"

    def test_the_user_may_be_empty(self) -> None:
        assert deployed_line("main", SHA, IDS[0], "") == f"Branch main (at {SHA}) deployed as release {IDS[0]} by "
        assert rolled_back_line("", IDS[0]) == f" rolled back to release {IDS[0]}"
        assert is_revision_line(deployed_line("main", SHA, IDS[0], ""))
        assert is_revision_line(rolled_back_line("", IDS[0]))

    @given(st.text(), st.text())
    def test_no_name_makes_a_second_line(self, branch: str, user: str) -> None:
        for line in (deployed_line(branch, SHA, IDS[0], user), rolled_back_line(user, IDS[0])):
            assert is_revision_line(line)
            assert len(line.splitlines()) == 1

    def test_other_lines_are_refused(self) -> None:
        for line in ("", "hello", deployed_line("main", SHA, "2026", "ann"), rolled_back_line("ann", IDS[0]) + "\nx"):
            assert not is_revision_line(line)

    def test_what_was_deployed_is_read_back(self) -> None:
        log = "\n".join(
            [
                deployed_line("main", SHA, IDS[0], "ann"),
                "noise",
                rolled_back_line("bob", IDS[3]),
                f"Branch x (at {SHA[:7]}) deployed as release {IDS[1]} by ",
            ]
        )
        assert deployed_releases(log) == {IDS[0]: ("main", SHA), IDS[1]: ("x", SHA[:7])}


class TestLayout:
    layout = Layout("/srv/shop")

    @pytest.mark.parametrize(
        ("target", "resolved", "exists", "kind"),
        [
            (None, None, False, CurrentKind.MISSING),
            (f"/srv/shop/releases/{IDS[0]}", IDS[0], True, CurrentKind.OK),
            (f"releases/{IDS[0]}", IDS[0], True, CurrentKind.RELATIVE),
            (f"/srv/shop/releases/{IDS[0]}/", IDS[0], True, CurrentKind.SLASH),
            (f"/srv/shop//releases/{IDS[0]}", IDS[0], True, CurrentKind.SLASH),
            (f"/data/shop/releases/{IDS[0]}", IDS[0], True, CurrentKind.OTHER_PATH),
            ("/opt/elsewhere", None, True, CurrentKind.FOREIGN),
            (f"/srv/shop/releases/{IDS[0]}", None, False, CurrentKind.DANGLING),
        ],
    )
    def test_kinds_of_current(self, target: str | None, resolved: str | None, exists: bool, kind: CurrentKind) -> None:
        assert classify_current(self.layout, target, resolved, exists) is kind

    def test_the_release_in_a_link(self) -> None:
        for target in (f"/srv/shop/releases/{IDS[0]}", f"releases/{IDS[0]}/", f"./releases//{IDS[0]}"):
            assert release_of(self.layout, target) == IDS[0]
        for target in ("/srv/other/releases/" + IDS[0], "releases/current", f"releases/{IDS[0]}/public", "../shop"):
            assert release_of(self.layout, target) is None

    @pytest.mark.parametrize(
        "path", ["", "/", "srv/shop", "/srv/shop/", "/srv/../etc", "//srv/shop", "/srv/./x", "/a\0b"]
    )
    def test_a_deploy_to_that_is_not_plain_is_refused(self, path: str) -> None:
        with pytest.raises(OperatorError):
            check_deploy_to(path)

    @pytest.mark.parametrize("path", ["", ".", "..", "../x", "a/../../x", "/etc", "a//b", "a/", "./a", "a\0"])
    def test_a_relative_path_that_is_not_plain_is_refused(self, path: str) -> None:
        with pytest.raises(OperatorError, match="linked_dirs"):
            check_relative(path, "linked_dirs")

    def test_linked_paths_in_each_other_are_refused(self) -> None:
        """Capistrano's `rm -rf tmp/pids` would go through the new link `tmp` and delete the shared folder."""
        check_linked(["log", "tmp/pids", "tmp-x", "tmp/cache"], [".env", "config/db.yml"])
        for dirs, files in ((["tmp", "tmp/pids"], []), (["tmp/a/b", "tmp"], []), (["config"], ["config/db.yml"])):
            with pytest.raises(OperatorError, match="inside"):
                check_linked(dirs, files)
        with pytest.raises(OperatorError, match="twice"):
            check_linked(["log"], ["log"])


class TestGitErrors:
    @pytest.mark.parametrize(
        ("stderr", "kind", "word"),
        [
            ("Host key verification failed.\nfatal: Could not read from remote repository.", HostError, "host key"),
            ("git@x: Permission denied (publickey).\nfatal: Could not read from remote", HostError, "no key"),
            ("ssh: Could not resolve hostname nope: Name or service not known", HostError, "reached"),
            ("fatal: unable to access 'http://x/': Failed to connect to x port 80", HostError, "reached"),
            ("fatal: '/nope' does not appear to be a git repository", OperatorError, "not a git repository"),
            ("fatal: couldn't find remote ref nope", OperatorError, "does not have topic"),
            ("fatal: could not read Username for 'https://x': terminal prompts disabled", HostError, "password"),
            ("fatal: write error: No space left on device", HostError, "no space"),
            ("fatal: detected dubious ownership in repository at '/x'", HostError, "another user"),
            ("something new", HostError, "git failed"),
        ],
    )
    def test_each_failure_says_whose_it_is(self, stderr: str, kind: type, word: str) -> None:
        error = explain(stderr, repository="git@x:shop.git", wanted="topic")
        assert type(error) is kind
        assert word in error.what
        assert error.remedy

    def test_passwords_in_addresses_are_not_printed(self) -> None:
        error = explain("fatal: unable to access 'https://u:hunter2@h/x.git/'", repository="https://u:hunter2@h/x.git")
        assert "hunter2" not in str(error)
        assert without_password("https://u:p@h/x") == "https://u@h/x"
        assert without_password("git@h:x") == "git@h:x"
        assert redact_url("https://u:p@h/x and git@h:x") == "https://u:…@h/x and git@h:x"


@pytest.mark.parametrize(
    ("repository", "url", "absolute"),
    [
        ("git@example.com:team/shop.git", "../lib.git", "git@example.com:team/lib.git"),
        ("git@example.com:shop.git", "../lib.git", "git@example.com:lib.git"),
        ("https://example.com/team/shop", "../../other/lib", "https://example.com/other/lib"),
        ("/srv/git/shop.git/", "./lib", "/srv/git/shop.git/lib"),
        ("/srv/git/shop.git", "https://example.com/lib", "https://example.com/lib"),
    ],
)
def test_addresses_of_submodules(repository: str, url: str, absolute: str) -> None:
    assert absolute_url(repository, url) == absolute


def test_ids_are_releases() -> None:
    assert all(is_release(release) for release in IDS)


class TestCommonTarget:
    R1, R2, R3 = "20261121190501", "20261121190502", "20261121190503"

    def test_it_is_the_newest_that_all_have_and_tells_what_was_passed_over(self) -> None:
        R1, R2, R3 = self.R1, self.R2, self.R3
        all_have = {"a": [R1, R2, R3], "b": [R1, R2, R3]}
        assert common_target(all_have, {"a": R3, "b": R3}) == (R2, {})
        assert common_target({"a": [R1, R2, R3], "b": [R1, R3]}, {"a": R3, "b": R3}) == (R1, {R2: ["b"]})

    def test_a_host_that_is_behind_may_stay_where_it_is(self) -> None:
        R1, R2, R3 = self.R1, self.R2, self.R3
        for first, other in (("a", "b"), ("b", "a")):
            proven = {first: [R1, R2, R3], other: [R1]}
            assert common_target(proven, {first: R3, other: R1}) == (R1, {R2: [other]})

    def test_it_says_who_lacks_what_when_there_is_none(self) -> None:
        R1, R2, R3 = self.R1, self.R2, self.R3
        with pytest.raises(OperatorError, match="that all hosts have") as refused:
            common_target({"a": [R1, R3], "b": [R2, R3]}, {"a": R3, "b": R3})
        assert f"{R2} is not on a" in refused.value.detail and f"{R1} is not on b" in refused.value.detail
        assert "--without" in refused.value.remedy and R3 in refused.value.serving
        with pytest.raises(OperatorError, match="no proven release yet"):
            common_target({"a": [], "b": []}, {"a": "", "b": ""})
