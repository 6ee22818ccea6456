"""The lease and what is in proportion to it."""

from __future__ import annotations

import pytest

from midstream.core.lease import Lease, lease_of
from midstream.errors import OperatorError


def test_what_is_usual() -> None:
    lease = lease_of({})
    assert lease == Lease(15.0) == lease_of({"MIDSTREAM_LEASE_S": ""})
    assert (lease.alive_s, lease.ping_s, lease.silence_s, lease.give_up_s) == (5, 4.0, 20, 30.0)


@pytest.mark.parametrize("lease_s", [1, 3.5, 15, 120, 3600])
def test_the_far_end_hears_several_words_before_it_gives_the_deployer_up(lease_s: float) -> None:
    lease = lease_of({"MIDSTREAM_LEASE_S": str(lease_s)})
    assert lease.lease_s == lease_s
    assert lease.silence_s > 3 * lease.ping_s
    assert lease.give_up_s > lease.lease_s, "else it gives up while its deploy is still open"


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "3601", "15s", "soon"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(OperatorError, match=r"MIDSTREAM_LEASE_S.*from 1 to 3600"):
        lease_of({"MIDSTREAM_LEASE_S": text})
