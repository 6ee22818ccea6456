"""What an agent tells of output: without the values of secrets, whatever one of them has in common with another."""

from __future__ import annotations

import pytest

from midstream.agent.work import without_secrets

KEY = "-----BEGIN KEY-----\nabcdefgh\nijklmnopqrs\n-----END KEY-----"


@pytest.mark.parametrize(
    ("secrets", "line", "told"),
    [
        ({"A": "hunter2"}, "it is hunter2, hunter2", "it is [secret], [secret]"),
        ({"A": "abcd", "B": "abcd-efgh"}, "B is abcd-efgh", "B is [secret]"),  # not `[secret]-efgh`
        ({"A": KEY, "B": "x ijklmnopqrs y"}, "B is x ijklmnopqrs y", "B is [secret]"),
        ({"A": KEY}, "abcdefgh and ijklmnopqrs", "[secret] and [secret]"),
        ({"A": "abc", "B": "", "C": "1\n2"}, "abc 1 2", "abc 1 2"),  # too short: half the text would go
    ],
)
def test_no_part_of_a_value_is_left(secrets: dict[str, str], line: str, told: str) -> None:
    assert without_secrets(line, secrets) == told
