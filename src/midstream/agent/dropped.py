"""Services that the configuration no longer names: forgotten once nothing of them is left. Runs in the agent's loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from midstream.errors import HostError

if TYPE_CHECKING:
    from midstream.agent.host import Host


def forget_dropped(host: Host, app: str) -> None:
    """Called when a generation is retired, when a deploy ends, and after a start: whichever is last finds them. In a
    deploy nothing is forgotten: it may be adding them. Their events stay, so `why` still answers."""
    record = host.apps.get(app)
    if record is None or app in host.intent_of:
        return
    committed = host.record(app, record.committed_generation)
    if committed is None:
        return
    for name, service in list(host.services.items()):
        if name[0] != app or name[1] in committed.spec.services:
            continue
        if service.generations or service.instances or service.handover is not None:
            continue
        try:
            host.store.drop_service(*name)
        except HostError:
            continue  # a full disk: the next deploy or start finds it again
        host.forget_service(name)
        host.note(*name, "forgotten", "the configuration no longer names it, and its last process is gone")
