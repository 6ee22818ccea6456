"""What each server loses at its own graceful stop, while a second generation serves the same listener.

    python tests/bench/servers_loss.py [PROFILE ...] [--handovers 10]

For each server: two generations share one listener on the loopback; the newer one is ready, then the older
one gets its drain signal; repeated. All the while 8 keep-alive and 4 closing clients ask, each again 0 to 20
ms after its answer, every tenth request takes 100 ms. A client that sees its connection closed or is told
`Connection: close` makes a new one, as HTTP demands; a request counts as lost when it was sent and not
answered. Prints a table for docs/servers.md. A benchmark, no test: it asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "process"))

from profile_servers import DRAIN_SERVER, Child, Yard, listener_at, program, yard_in
from server_commands import APPS, CASES, COMPARED, OWN_ADDRESS, Case

from midstream.agent.health import address_of, check
from midstream.agent.proof import Verdict, identified_check, tree_membership
from midstream.core.spec import HealthSpec
from midstream.profiles import profile_named

KEEP_ALIVE_CLIENTS = 8
CLOSING_CLIENTS = 4
SPEC = HealthSpec(http="/")


@dataclass
class Tally:
    requests: int = 0
    lost_kept: int = 0  # on a kept-alive connection, after its first answer
    lost_first: int = 0  # the first request of a connection
    refused: int = 0
    worst_s: float = 0.0
    how: dict[str, int] = field(default_factory=dict)


class Load:
    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.tally = Tally()
        self.tasks: list[asyncio.Task[None]] = []
        self.stopping = False

    def start(self) -> None:
        for index in range(KEEP_ALIVE_CLIENTS + CLOSING_CLIENTS):
            self.tasks.append(asyncio.create_task(self.client(index < KEEP_ALIVE_CLIENTS, index)))

    async def stop(self) -> Tally:
        self.stopping = True
        await asyncio.gather(*self.tasks)
        return self.tally

    async def client(self, keep: bool, seed: int) -> None:
        dice = random.Random(seed)
        while not self.stopping:
            try:
                reader, writer = await asyncio.open_connection(*self.address)
            except OSError:
                self.tally.refused += 1
                await asyncio.sleep(0.02)
                continue
            answered = 0
            while not self.stopping and not reader.at_eof():
                begun = time.monotonic()
                try:
                    more = await self.ask(reader, writer, "/slow?ms=100" if dice.random() < 0.1 else "/", keep)
                except (OSError, asyncio.IncompleteReadError) as error:
                    self.lost(answered, error)
                    break
                self.tally.worst_s = max(self.tally.worst_s, time.monotonic() - begun)
                answered += 1
                if not more:
                    break
                await asyncio.sleep(dice.random() * 0.02)
            writer.close()
            await asyncio.sleep(dice.random() * 0.02)

    def lost(self, answered: int, error: Exception) -> None:
        if answered:
            self.tally.lost_kept += 1
        else:
            self.tally.lost_first += 1
        name = type(error).__name__
        self.tally.how[name] = self.tally.how.get(name, 0) + 1

    async def ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, keep: bool) -> bool:
        """Sends one request and reads its answer; whether the connection may be used again."""
        self.tally.requests += 1
        wanted = "keep-alive" if keep else "close"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {wanted}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length:")[2].split("\r\n")[0])
        await reader.readexactly(length)
        return keep and "connection: close" not in head


async def ended(child: Child) -> None:
    """Waits for its end; what drains longer than 20 s is killed, as a stop time-out does."""
    end_s = time.monotonic() + 20
    while not child.ended():
        await asyncio.sleep(0.02)
        if time.monotonic() > end_s:
            child.destroy()


async def handovers(case: Case, yard: Yard, count: int) -> tuple[Tally, float]:
    """Tally and the longest time a generation took to stop."""
    profile = profile_named(case.profile)
    listener = listener_at(backlog=2048)
    private = listener_at() if profile.second_listener else None
    folder = DRAIN_SERVER.parent if case.profile == "generic" else APPS

    async def generation(number: int) -> Child:
        env = {"MIDSTREAM_RELEASE": str(number), "PYTHONDONTWRITEBYTECODE": "1"}
        child = yard.serve(case.command, {"web": listener}, private=private, env=env, cwd=folder)
        while True:
            proof = await identified_check(
                SPEC, address_of(private or listener), tree_membership(child.tree), attempts=500, timeout_s=20
            )
            if proof.verdict is Verdict.PROVED:
                return child
            if child.ended():
                raise SystemExit(child.output())

    child = await generation(0)
    load = Load(listener.getsockname())
    load.start()
    longest = 0.0
    for number in range(1, count + 1):
        newer = await generation(number)
        await asyncio.sleep(0.3)  # so that connections are spread over both
        begun = time.monotonic()
        child.signal(profile.drain_signal)
        await ended(child)
        longest = max(longest, time.monotonic() - begun)
        child = newer
    tally = await load.stop()
    listener.close()
    return tally, longest


async def replacements(case: Case, yard: Yard, count: int) -> tuple[Tally, float]:
    """For a server that takes no listener: stopped, then started, on an address of its own."""
    profile = profile_named(case.profile)
    with listener_at() as probe:
        address = probe.getsockname()

    async def generation() -> Child:
        command = tuple(word.replace("{port}", str(address[1])) for word in case.command)
        child = yard.serve(command, {}, env={"MIDSTREAM_RELEASE": "1", "PYTHONDONTWRITEBYTECODE": "1"}, cwd=APPS)
        while not (await check(SPEC, f"tcp://127.0.0.1:{address[1]}")).ok:
            await asyncio.sleep(0.02)
            if child.ended():
                raise SystemExit(child.output())
        return child

    child = await generation()
    load = Load(address)
    load.start()
    longest = 0.0
    for _ in range(count):
        await asyncio.sleep(0.3)
        begun = time.monotonic()
        child.signal(profile.drain_signal)
        await ended(child)
        longest = max(longest, time.monotonic() - begun)
        child = await generation()
    return await load.stop(), longest


def version_of(name: str) -> str:
    """Of the Python package, else what the program says."""
    try:
        return version(name)
    except PackageNotFoundError:
        said = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"[0-9]+(\.[0-9]+)+", said)
        return found.group() if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profiles", nargs="*")
    parser.add_argument("--handovers", type=int, default=10)
    options = parser.parse_args()
    print("| profile | version | requests | lost on kept-alive | lost on new | refused | worst answer | longest stop |")
    print("|---|---|---|---|---|---|---|---|")
    for case in (*CASES, *COMPARED, *OWN_ADDRESS):
        if options.profiles and (case.label or case.profile) not in options.profiles:
            continue
        if program(case.needs) is None:
            print(f"| {case.label or case.profile} | not installed | | | | | | |")
            continue
        run = replacements if case in OWN_ADDRESS else handovers
        with tempfile.TemporaryDirectory() as folder, yard_in(Path(folder)) as yard:
            tally, longest = asyncio.run(run(case, yard, options.handovers))
        print(
            f"| {case.label or case.profile} | {version_of(case.needs.removesuffix('-serve'))} | {tally.requests} | "
            f"{tally.lost_kept} "
            f"| {tally.lost_first} | {tally.refused} | {tally.worst_s * 1000:.0f} ms | {longest:.1f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
