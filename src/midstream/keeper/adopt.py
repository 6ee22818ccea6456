"""What a new keeper finds of the one before it: processes, sockets, channels, orders, the agent.

Processes are named by pid, start ticks and boot id, from the records in the runtime folder; those without a record (the
folder was full) by the environment they were stamped with. Their end is seen through a pidfd. Listeners are taken from
a live process of ours by pidfd_getfd; what nobody of ours holds is left to the agent, which holds a duplicate of each.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from midstream.core.messages import ListenerSpec, ProcessKind, ProcessState
from midstream.core.names import parse_key
from midstream.core.wire import WireError, from_wire
from midstream.keeper.layout import unslug
from midstream.keeper.refusal import Refused
from midstream.keeper.table import Row
from midstream.linux import listen, process, tree
from midstream.linux.process import ProcStat

if TYPE_CHECKING:
    from midstream.keeper.keeper import Keeper


def adopt(keeper: Keeper) -> None:
    """Take over whatever is there. What cannot be read is skipped, with a note for the agent."""
    keeper.layout.forget_other_boots(keeper.boot_id)
    _adopt_recorded(keeper)
    stamped = _stamped(keeper)
    _adopt_unrecorded(keeper, stamped)
    _adopt_channels(keeper)
    _adopt_sockets(keeper, [pid for found in stamped.values() for pid in found])
    keeper.children.orders.load()
    _adopt_agent(keeper)


# Processes


def _adopt_recorded(keeper: Keeper) -> None:
    for name, text in keeper.layout.records("pids"):
        try:
            row = row_of_record(text, keeper.boot_id)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            keeper.layout.note(f"process record {name} is unreadable: {error}")
            continue
        if row is not None:
            _adopt_row(keeper, row)


def row_of_record(text: bytes, boot_id: str) -> Row | None:
    """The row that a record describes: its head, `PID START_TICKS`, and one line more when it has ended.

    None for another boot's. Raises ValueError, KeyError, TypeError or AttributeError for one that was cut short.
    """
    first, _, rest = text.partition(b"\n")
    head, pid, ticks = first.rsplit(b" ", 2)
    fields: dict[str, Any] = json.loads(head)
    if fields["boot"] != boot_id:
        return None
    parse_key(fields["key"])
    row = Row(fields["key"], ProcessKind(fields["kind"]), str(fields["by"]), fields["cgroup"])
    row.pid, row.start_ticks, row.started_s = int(pid), int(ticks), float(fields["started"])
    row.state = ProcessState.RUNNING
    if rest.strip():
        end = json.loads(rest)
        row.state = ProcessState(end["state"])
        row.code, row.signum, row.ended_s = end["code"], end["signum"], float(end["ended"])
        row.error, row.error_stage = str(end["error"]), str(end["stage"])
    return row


def _adopt_row(keeper: Keeper, row: Row) -> None:
    """Follow it when it lives or is a zombie still; otherwise nobody saw how it ended."""
    pidfd = process.open_pidfd(row.pid, row.start_ticks) if row.is_live else None
    if pidfd is not None:
        row.pidfd = pidfd
        keeper.table.adopt(row)
        keeper.children.watch_adopted(row)
    elif row.is_live:
        keeper.table.ended(row, ProcessState.LOST)
    else:
        keeper.table.adopt(row)


def _stamped(keeper: Keeper) -> dict[str, dict[int, ProcStat]]:
    """Live processes that carry this keeper's stamp, by key."""
    found: dict[str, dict[int, ProcStat]] = {}
    for stat in tree.snapshot().values():
        stamp = tree.stamp_of(stat.pid)
        if stamp is not None and stamp[0] == keeper.children.keeper_id:
            found.setdefault(stamp[1], {})[stat.pid] = stat
    return found


def _adopt_unrecorded(keeper: Keeper, stamped: dict[str, dict[int, ProcStat]]) -> None:
    for key, stats in stamped.items():
        if key in keeper.table.rows:
            continue
        try:
            kind = ProcessKind.ONE_SHOT if parse_key(key).is_one_shot else ProcessKind.INSTANCE
        except ValueError:
            continue
        # The first process leads its session (we called setsid) and is below no other of its key.
        tops = [stat for stat in stats.values() if stat.ppid not in stats]
        first = min(tops or stats.values(), key=lambda stat: (stat.sid != stat.pid, stat.start_ticks, stat.pid))
        row = Row(key, kind, "agent")
        row.pid, row.start_ticks, row.state = first.pid, first.start_ticks, ProcessState.RUNNING
        _adopt_row(keeper, row)


# What was held


def _adopt_channels(keeper: Keeper) -> None:
    for name in sorted(os.listdir(f"{keeper.layout.runtime}/out")):
        try:
            keeper.held.open_channel(unslug(name), None, None)
        except Refused as error:
            keeper.layout.note(f"channel {name}: {error.what}")


def _adopt_sockets(keeper: Keeper, pids: list[int]) -> None:
    wanted: dict[int, ListenerSpec] = {}
    for name, text in keeper.layout.records("held"):
        try:
            record = json.loads(text)
            if name.startswith("notify."):
                _adopt_notify(keeper, str(record["name"]))
            else:
                spec = from_wire(ListenerSpec, record["spec"])
                wanted[int(record["inode"])] = spec
                keeper.held.lost_listeners[spec.name] = spec
        except (WireError, ValueError, KeyError, TypeError) as error:
            keeper.layout.note(f"record {name} is unreadable: {error}")
    for pid in pids if wanted else ():
        _recover_listeners(keeper, pid, wanted)


def _adopt_notify(keeper: Keeper, name: str) -> None:
    """Its socket lives with the agent, or with nobody: then a new one takes the path, so that no sender is refused."""
    keeper.held.lost_notify.add(name)
    path = keeper.layout.notify_path(name)
    if listen.unix_inode(path) is None:
        try:
            owner = os.lstat(path)
            keeper.held.open_notify(name, owner.st_uid, owner.st_gid)
        except (OSError, Refused) as error:
            keeper.layout.note(f"notify socket {name}: {error}")


def _recover_listeners(keeper: Keeper, pid: int, wanted: dict[int, ListenerSpec]) -> None:
    here = wanted.keys() & process.socket_inodes(pid)
    pidfd = process.open_pidfd(pid) if here else None
    if pidfd is None:
        return
    try:
        for inode in here:
            fd = process.fd_of_socket(pid, pidfd, inode)
            if fd is None:
                continue
            try:
                keeper.held.hold_listener(wanted[inode], fd)
                del wanted[inode]
            except Refused as error:
                os.close(fd)
                keeper.layout.note(error.what)
    finally:
        os.close(pidfd)


def _adopt_agent(keeper: Keeper) -> None:
    """The agent that was attached may live: then it will attach again, and no second one is started."""
    try:
        with open(f"{keeper.layout.runtime}/agent.json", "rb") as file:
            found = json.loads(file.read())
        argv = [str(word) for word in found["argv"]]
        pid, ticks = int(found["pid"]), int(found["start_ticks"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not keeper.agent.argv:
        keeper.agent.command(argv)
    if pid and keeper.agent.is_agent(pid):
        keeper.agent.expect(pid, ticks)
