"""Names and identifiers: what may be called how, and the one textual form of each compound name.

Pure. Used by every program, the keeper included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}\Z")
_RELEASE = re.compile(r"[0-9]{14}\Z")
_ONE_SHOT = re.compile(r"\+[a-z][a-z0-9_.-]{0,47}\Z")


def is_name(text: str) -> bool:
    """Whether `text` may name an app or a service: lower case, digits, `_` and `-`, at most 48, a letter first."""
    return _NAME.match(text) is not None


def is_release(text: str) -> bool:
    """Whether `text` is a release id: 14 UTC digits, as Capistrano makes them."""
    return _RELEASE.match(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class SlotName:
    """One place for a process: `app/service/slot`. One-shots use a service that begins with `+`."""

    app: str
    service: str
    slot: int

    def __str__(self) -> str:
        return f"{self.app}/{self.service}/{self.slot}"


@dataclass(frozen=True, slots=True, order=True)
class SpawnKey:
    """Names one attempt to run one process, for ever: `app/service/generation/slot/attempt`.

    A spawn with a key that the keeper knows already is answered with what became of the first one.
    """

    app: str
    service: str
    generation: int
    slot: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.app}/{self.service}/{self.generation}/{self.slot}/{self.attempt}"

    @property
    def slot_name(self) -> SlotName:
        return SlotName(self.app, self.service, self.slot)

    @property
    def is_one_shot(self) -> bool:
        return self.service.startswith("+")

    def next_attempt(self) -> SpawnKey:
        return SpawnKey(self.app, self.service, self.generation, self.slot, self.attempt + 1)


def parse_key(text: str) -> SpawnKey:
    """The key that `str(key)` wrote. Raises ValueError for anything else."""
    parts = text.split("/")
    if len(parts) != 5:
        raise ValueError(f"not a spawn key: {text!r}")
    app, service, generation, slot, attempt = parts
    if not is_name(app) or not (is_name(service) or _ONE_SHOT.match(service)):
        raise ValueError(f"not a spawn key: {text!r}")
    if not (generation.isdecimal() and slot.isdecimal() and attempt.isdecimal()):
        raise ValueError(f"not a spawn key: {text!r}")
    return SpawnKey(app, service, int(generation), int(slot), int(attempt))
