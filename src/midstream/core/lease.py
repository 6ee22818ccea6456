"""How long a deploy whose deployer is silent stays open, and the other patiences that have to fit it.

One knob, MIDSTREAM_LEASE_S, in the environment of the agent and of the deployer; the rest is in proportion to it. An operator
raises it where connections come and go; tests lower it, since most of what they do about dead deployers is to wait.
Pure: the environment comes in as an argument. Used by the agent and the deployer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from midstream.errors import OperatorError

VARIABLE = "MIDSTREAM_LEASE_S"
USUAL_S = 15.0
_SHORTEST_S, _LONGEST_S = 1.0, 3600.0


@dataclass(frozen=True, slots=True)
class Lease:
    """lease_s: from the loss of the last connection of a deploy to its going back."""

    lease_s: float = USUAL_S

    @property
    def alive_s(self) -> int:
        """How often ssh asks whether the far end is there; two answers missing, and the connection is lost."""
        return max(1, round(self.lease_s / 3))

    @property
    def ping_s(self) -> float:
        """How often the deployer says that it is still there."""
        return self.lease_s * 4 / 15

    @property
    def silence_s(self) -> int:
        """After how long without a word the far end takes the deployer for gone: five times what is between two words."""
        return max(2, round(self.lease_s * 4 / 3))

    @property
    def give_up_s(self) -> float:
        """For how long the deployer tries to reach an agent that it lost. By then the lease has run out over there."""
        return self.lease_s * 2


def lease_of(env: Mapping[str, str]) -> Lease:
    """What MIDSTREAM_LEASE_S says, 15 s when it says nothing. Raises OperatorError for what is no number of 1 to 3600."""
    text = env.get(VARIABLE, "")
    try:
        lease_s = float(text) if text else USUAL_S
    except ValueError:
        lease_s = float("nan")
    if not _SHORTEST_S <= lease_s <= _LONGEST_S:
        raise OperatorError(
            f"{VARIABLE}={text} is no number of seconds from {_SHORTEST_S:g} to {_LONGEST_S:g}",
            where="environment",
            remedy=f"take it away; the lease is {USUAL_S:g} s then",
        )
    return Lease(lease_s)
