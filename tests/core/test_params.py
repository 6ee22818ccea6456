"""Parameters of the control socket: what does not fit is refused with its name and with what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from midstream.agent import params
from midstream.errors import OperatorError

_READ: dict[str, tuple[Callable[[dict[str, Any]], object], list[Any], list[tuple[Any, object]]]] = {
    "text": (lambda given: params.text(given, "it"), [None, "", 1, ["a"]], [("a", "a")]),
    "whole": (lambda given: params.whole(given, "it", 0, 9), [None, -1, 10, True, 1.0, "1"], [(0, 0), (9, 9)]),
    "whole with a default": (lambda given: params.whole(given, "it", 0, 9, 4), [10, False], [(None, 4), (0, 0)]),
    "seconds": (
        lambda given: params.seconds(given, "it", 4.0),
        [-1, math.nan, math.inf, 1e8, "1", True],
        [(None, 4.0), (0, 4.0), (2, 2.0), (0.5, 0.5)],
    ),
    "shaped": (
        lambda given: params.shaped(tuple[str, ...], given["it"], "do", "it"),
        [None, "a", [1], {}],
        [([], ()), (["a", "b"], ("a", "b"))],
    ),
}


@pytest.mark.parametrize("kind", _READ)
def test_what_fits_is_read_and_what_does_not_is_refused_with_a_remedy(kind: str) -> None:
    read, bad, good = _READ[kind]
    for value, wanted in good:
        found = read({"it": value})
        assert found == wanted and type(found) is type(wanted)
    for value in bad:
        with pytest.raises(OperatorError) as refused:
            read({"it": value})
        assert refused.value.where == "it" and refused.value.remedy


def test_data_is_base64_and_has_its_size() -> None:
    assert params.data({"data": "AAE="}, 2) == b"\0\1"
    assert params.data({}, 2) == b""
    for bad in ("AAEC", "%", 1, ["AAE="], "AA"):
        with pytest.raises(OperatorError) as refused:
            params.data({"data": bad}, 2)
        assert refused.value.where == "data" and refused.value.remedy
