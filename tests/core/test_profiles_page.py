"""`docs/servers.md` says what the profiles say. `python tests/core/test_profiles_page.py` prints the table anew."""

from __future__ import annotations

from pathlib import Path

from midstream.profiles import SERVERS, Profile, Takes

PAGE = Path(__file__).parents[2] / "docs/servers.md"
HEADING = (
    "| profile | takes a listener | a second one | park | drain | quick | handover | proof | late requests in a drain |"
)
TAKES = {
    Takes.LISTEN_FDS: "LISTEN_FDS",
    Takes.FD_ARGUMENT: "in the command",
    Takes.NONE: "no",
}
LATE = {True: "answered", False: "connection closed", None: "-"}


def row(profile: Profile) -> str:
    park = profile.park.value + (f" ({profile.park_signal}, {profile.unpark_signal})" if profile.park_signal else "")
    cells = (
        f"`{profile.name}`",
        TAKES[profile.takes_listener],
        "yes" if profile.second_listener else "no",
        park,
        profile.drain_signal,
        profile.quick_signal,
        profile.default_policy.value,
        profile.proof.value,
        LATE[profile.answers_late],
    )
    return f"| {' | '.join(cells)} |"


def table() -> str:
    rule = "|" + "---|" * (HEADING.count("|") - 1)
    return "\n".join([HEADING, rule, *(row(profile) for profile in SERVERS)])


def test_the_table_of_the_page_is_that_of_the_profiles() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")


def test_the_page_speaks_of_every_profile_with_notes() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    missing = [(profile.name, note) for profile in SERVERS for note in profile.notes if note not in page]
    assert not missing


if __name__ == "__main__":
    print(table())
