"""The lock of all hosts of a stage for a command that is no deploy: taken before anything is done, in a deploy's order.

Each host has a thread with a blocking client. They take their turn at the lock by the hosts' addresses (`lock_order`), and
meet where none may go on before all have come. Whoever fails breaks that off for the others, who then do nothing. The agents
free the lock themselves when we are gone. Runs in the command line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from midstream.cli.ask import Answer, Answers, NothingToDo, in_threads
from midstream.core.plan import lock_order
from midstream.core.spec import AppSpec
from midstream.core.wire import to_wire
from midstream.deploy.record import new_deploy_id
from midstream.deploy.sync_client import SyncClient, connect
from midstream.deploy.transport import Host
from midstream.errors import MidstreamError

T = TypeVar("T")


class FleetLock:
    """`specs`: by host name. `user`: who is told to those who are refused meanwhile."""

    def __init__(self, specs: Mapping[str, AppSpec], user: str) -> None:
        self._specs = specs
        self._user = user
        self._id = new_deploy_id()
        self._order = lock_order(tuple(specs))
        self._changed = threading.Condition()
        self._locked = 0
        self._arrived: dict[str, int] = {}
        self._failed = False

    def ask(
        self, hosts: Sequence[Host], work: Callable[[SyncClient, str, dict[str, Any]], T], *, several: bool
    ) -> Answers[T]:
        """`work(client, host name, mark)` on all of them, once all are locked; the mark goes with each of its calls. Blocks
        until all are done. Where one fails before the last `meet`, the others have no answer."""

        def one(host: Host) -> Answer[T]:
            try:
                with connect(host) as client, self._of(client, host.name) as mark:
                    self.meet("locked")
                    return Answer(host.name, work(client, host.name, mark))
            except NothingToDo:
                return Answer(host.name)
            except MidstreamError as error:
                self._fail()
                return Answer(host.name, error=error)
            except BaseException:
                self._fail()
                raise

        return Answers(tuple(in_threads(hosts, one)), several)

    def meet(self, point: str) -> None:
        """Returns when all hosts have come to this point; NothingToDo when one has failed before."""
        with self._changed:
            self._arrived[point] = self._arrived.get(point, 0) + 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._failed or self._arrived[point] == len(self._order))
            if self._arrived[point] < len(self._order):
                raise NothingToDo

    def _fail(self) -> None:
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    @contextmanager
    def _of(self, client: SyncClient, host: str) -> Iterator[dict[str, Any]]:
        spec = self._specs[host]
        mark = {"deploy_id": self._id, "token": self._take(client, host, spec)}
        outcome = "failed"
        try:
            yield mark
            outcome = "done"
        finally:
            client.call("deploy.finish", outcome=outcome, **mark)

    def _take(self, client: SyncClient, host: str, spec: AppSpec) -> Any:
        place = self._order.index(host)
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._locked == place)
            if self._failed:
                raise NothingToDo
        asked = {"deploy_id": self._id, "spec": to_wire(spec), "kind": "configure", "user": self._user}
        answer = client.call("deploy.open", until="check", **asked)
        with self._changed:
            self._locked += 1
            self._changed.notify_all()
        return answer["token"]
