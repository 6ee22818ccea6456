"""Builds that are made once and carried: which host runs which build step, and whose files go where.

Pure. A step `on = "once"` runs on the first host that has it, one `on = "deployer"` on the machine that deploys; the files
it names go to all hosts that have the step. The order of the file stays: a host's steps after such a step begin once it
has the files. So each carried step cuts the builds in two stretches (DESIGN 6; `core/plan_weave.py` makes the calls).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from midstream.core.spec import AppSpec, CommandStep

EACH, ONCE, DEPLOYER = "each", "once", "deployer"
HERE = ""  # the builder of a step on the deployer


@dataclass(frozen=True, slots=True)
class Carry:
    """One journey of built files. number: of the `[[build]]` table. builder: the host that makes them, HERE for the
    deployer. hosts: those that get them. files: paths inside the release."""

    number: int
    name: str
    builder: str
    hosts: tuple[str, ...]
    files: tuple[str, ...]


def carries(specs: Mapping[str, AppSpec]) -> tuple[Carry, ...]:
    """In the order of the file. A step `once` that only one host has is carried nowhere."""
    found: dict[int, Carry] = {}
    for spec in specs.values():
        for step in spec.build:
            if not step.files or step.on == EACH or step.number in found:
                continue
            having = tuple(host for host, one in specs.items() if _place(one, step.number) is not None)
            builder = HERE if step.on == DEPLOYER else having[0]
            hosts = tuple(host for host in having if host != builder)
            if hosts:
                found[step.number] = Carry(step.number, step.name, builder, hosts, step.files)
    return tuple(carry for _, carry in sorted(found.items()))


def stretch(specs: Mapping[str, AppSpec], host: str, before: Carry | None) -> tuple[int, ...]:
    """The indexes in `spec.build` of what the host runs before that carry and after the one before it; None: after the
    last. A host that does not have the carried step runs nothing before it: its steps come in a later stretch."""
    spec = specs[host]
    ends = [place + 1 for carry in carries(specs) if (place := _place(spec, carry.number)) is not None]
    if before is None:
        start, end = max(ends, default=0), len(spec.build)
    else:
        place = _place(spec, before.number)
        if place is None:
            return ()
        start, end = max((one for one in ends if one <= place), default=0), place + 1
    return tuple(index for index in range(start, end) if _runs_on(specs, host, spec.build[index]))


def steps_here(specs: Mapping[str, AppSpec], carry: Carry) -> tuple[CommandStep, ...]:
    """What the deployer runs for a carry whose builder it is."""
    spec = specs[carry.hosts[0]]
    return tuple(step for step in spec.build if step.on == DEPLOYER and step.number == carry.number)


def _place(spec: AppSpec, number: int) -> int | None:
    """Where the step with the files of that table is."""
    return next((at for at, step in enumerate(spec.build) if step.files and step.number == number), None)


def _runs_on(specs: Mapping[str, AppSpec], host: str, step: CommandStep) -> bool:
    if step.on == DEPLOYER:
        return False
    if step.on != ONCE:
        return True
    return host == next(one for one, spec in specs.items() if step in spec.build)
