"""Proof that a new generation answers, although it shares its listener with the old one (DESIGN 8).

What lives here: the identified probe and the reading of what a tree does with a listener. What must not:
starting throw-away instances, deciding what a verdict leads to (the handover's). Runs in the agent.

Who answers is known before the answer counts: connect, send all of the request but its last byte, wait until
the accepted socket is held by some process, see whose it is, send the last byte, read the answer. What the
old generation accepted is finished as well, so that it sees a good request, and ignored. Each probe keeps a
worker waiting for a few milliseconds, so they run one after the other, never many at a time.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from midstream.agent.health import (
    Address,
    HealthResult,
    connect,
    connect_reason,
    parse_address,
    read_verdict,
    request_bytes,
)
from midstream.core.spec import HealthSpec
from midstream.linux.sockets import listeners_of, peer_inode, sockets_of_tree, watches
from midstream.profiles import Profile, Takes, unwrap

_FIRST_WAIT_S = 0.001
_LONGEST_WAIT_S = 0.02


class Verdict(enum.Enum):
    """PROVED: the new generation answered the check well. REFUTED: it answered badly. UNDECIDED: it was not
    seen to answer within the bounds, which says nothing about it."""

    PROVED = "proved"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class ProofResult:
    """reason: for the operator. probes: how many were sent. old: how many of them the old generation
    answered. health: the answer that decided."""

    verdict: Verdict
    reason: str
    probes: int = 0
    old: int = 0
    health: HealthResult | None = None


class Holding(enum.Enum):
    """What a tree does with a listener. NOT_HELD: it does not have it open. HELD: it has, which a wrapper or a server
    that knows nothing of it does as well. ACCEPTING: an epoll of the tree watches it; a server that uses select or a
    blocking accept is only HELD. UNKNOWN: the tree could not be read."""

    NOT_HELD = "not_held"
    HELD = "held"
    ACCEPTING = "accepting"
    UNKNOWN = "unknown"


def holding(pids: Collection[int], listener_inode: int) -> Holding:
    """What the processes in `pids` (one instance's tree) do with the listener. Returns at once."""
    held = sockets_of_tree(pids).holds(listener_inode)
    if held is None:
        return Holding.UNKNOWN
    if not held:
        return Holding.NOT_HELD
    return Holding.ACCEPTING if watches(pids, listener_inode) else Holding.HELD


def bound_itself(pids: Collection[int], given: Collection[int]) -> list[str]:
    """What the processes listen on besides the sockets (inodes) that they were given, control sockets (`*.ctl`, as gunicorn
    27 makes one) left out. Returns at once."""
    mine = (address for inode, address in listeners_of(pids).items() if inode not in given)
    return sorted(address for address in mine if not address.endswith(".ctl"))


def why_not_accepting(
    profile: Profile, argv: tuple[str, ...], pids: Collection[int], given: Collection[int], *, shell: bool = False
) -> str:
    """A sentence on why an instance does not serve the listeners (inodes in `given`) that it was given: what it bound
    instead, and the wrapper that swallowed them. That its tree has them open proves little: a server that does not
    know of descriptor 3 passes it on all the same. Returns at once."""
    inner = unwrap(argv, shell)
    own = bound_itself(pids, given)
    said = f"it listens on {', '.join(own)}, which it bound itself, " if own else "it accepts nothing "
    said += "instead of the listener that it was given"
    swallowed = [f"`{' '.join(one.words)}` {one.why}" for one in inner.wrappers if not one.keeps_pid]
    if inner.shell and not inner.shell_execs:
        swallowed.append(
            "the shell in between changes the pid, so LISTEN_PID names the wrong process: begin with `exec`"
        )
    if swallowed:
        return f"{said}: {'; '.join(swallowed)}"
    cure = {
        Takes.FD_ARGUMENT: f"see that `{' '.join(profile.listener_option)}` reaches it",
        Takes.LISTEN_FDS: "it has to take descriptor 3 and the following, as LISTEN_FDS and LISTEN_PID say, or `{fd}`",
        Takes.NONE: f"{profile.name} takes none: leave `listen` out, so that it is replaced on its own address",
    }[profile.takes_listener]
    return f"{said}: {cure}"


def tree_membership(pids_of_tree: Callable[[], Collection[int]]) -> Callable[[int], bool | None]:
    """An `is_new` for `identified_check`: whether a socket inode is held inside the tree that `pids_of_tree`
    names now (asked each time, because workers come and go). A process that may not be read gives None."""

    def is_new(inode: int) -> bool | None:
        return sockets_of_tree(pids_of_tree()).holds(inode)

    return is_new


async def identified_check(
    spec: HealthSpec,
    address: Address | str,
    is_new: Callable[[int], bool | None],
    *,
    attempts: int = 20,
    timeout_s: float = 10.0,
    is_old: Callable[[int], bool | None] | None = None,
) -> ProofResult:
    """Asks the shared listener until the new generation has answered once, at most `attempts` times and
    `timeout_s` seconds. is_new: whether an accepted socket's inode is held inside the new generation; None:
    cannot be told. is_old: the same for the old one; without it, whatever is not new counts as old. Never
    raises for what the service does.

    A good answer of the new generation proves it, a bad one refutes it at once.
    """
    where = parse_address(address) if isinstance(address, str) else address
    deadline_s = time.monotonic() + timeout_s
    probes = old = 0
    trouble = ""
    while probes < attempts and (left_s := deadline_s - time.monotonic()) > 0:
        probes += 1
        probe = await _probe(spec, where, is_new, is_old, min(left_s, spec.timeout_s))
        if probe.new and probe.health is not None:
            verdict = Verdict.PROVED if probe.health.ok else Verdict.REFUTED
            return ProofResult(verdict, probe.health.reason, probes, old, probe.health)
        old += probe.new is False
        trouble = probe.trouble or trouble
        await asyncio.sleep(0)
    reason = f"{probes} probes of {where}: the old generation answered {old}, none was seen to reach the new one"
    return ProofResult(Verdict.UNDECIDED, f"{reason}; {trouble}" if trouble else reason, probes, old)


@dataclass(frozen=True, slots=True)
class _Probe:
    new: bool | None
    health: HealthResult | None = None
    trouble: str = ""


async def _probe(
    spec: HealthSpec,
    address: Address,
    is_new: Callable[[int], bool | None],
    is_old: Callable[[int], bool | None] | None,
    timeout_s: float,
) -> _Probe:
    """One request whose server is known before it is complete."""
    loop = asyncio.get_running_loop()
    new: bool | None = None
    try:
        async with asyncio.timeout(timeout_s):
            with await connect(address) as connection:
                request = request_bytes(spec, address) if spec.http else b""
                await loop.sock_sendall(connection, request[:-1])
                new = await _whose(connection, is_new, is_old)
                if not spec.http:
                    accepted = HealthResult(True, f"{address} was accepted", answered=True)
                    return _Probe(new, accepted)
                await loop.sock_sendall(connection, request[-1:])
                return _Probe(new, await read_verdict(spec, address, connection))
    except TimeoutError:
        reason = f"no answer within {timeout_s:g} s"
        # The new one took the request and gave nothing back: its answer, unless our own deadline cut the time short.
        said = f"the new generation accepted a request at {address}: {reason}"
        silent = new and timeout_s >= spec.timeout_s
        return _Probe(new, HealthResult(False, said) if silent else None, reason)
    except OSError as error:
        reason = connect_reason(error, address)
        return _Probe(new, HealthResult(False, reason) if new else None, reason)


async def _whose(
    connection: socket.socket,
    is_new: Callable[[int], bool | None],
    is_old: Callable[[int], bool | None] | None,
) -> bool | None:
    """Waits until somebody has accepted the connection, then says whether it was the new generation; None:
    cannot be told. That a queue was left is told to nobody, so this looks, with pauses growing to 20 ms,
    until the caller's time-out."""
    wait_s = _FIRST_WAIT_S
    while True:
        inode = peer_inode(connection)
        if inode is not None:
            break
        if _spoke(connection):  # accepted, answered or closed again between two looks
            return None
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
    new = is_new(inode)
    if new or is_old is None:
        return new
    return False if is_old(inode) else None


def _spoke(connection: socket.socket) -> bool:
    """Whether the other end has sent something or has gone."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
