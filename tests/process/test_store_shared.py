"""A thousand services of one release and one plan are held with one of each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from midstream.agent.store import Store
from midstream.core.generation import Generation, GenerationPlan, GenerationState
from midstream.core.service import Service


def _service(name: str, release: str, plan: GenerationPlan) -> Service:
    return Service("shop", name, generations=(Generation(3, release, GenerationState.COMMITTED, plan, since_s=7.5),))


def test_services_are_read_as_they_were_stored_and_share_what_is_equal(tmp_path: Path) -> None:
    plan = GenerationPlan(instances=2, ok_codes=(0, 3))
    stored = [
        _service("a", "20260101000000", plan),
        _service("b", "20260101000000", replace(plan)),
        _service("c", "20260102000000", replace(plan, instances=3)),
        Service("shop", "d"),
    ]
    store = Store(str(tmp_path))
    for service in stored:
        store.put_service(service)
    read = store.services()
    store.close()
    assert read == stored
    (first,), (second,), (third,) = (service.generations for service in read[:3])
    assert first.plan is second.plan and first.release is second.release
    assert third.plan is not first.plan
