"""The first article's case, replayed: two batch hosts, Sidekiq, and deploys under a stream of jobs.

    python tests/bench/article.py [--deploys N] [--only capistrano|agent|monit] [--no-storm] [--seed N] [--minutes M]

capistrano: real Capistrano and Monit, as people have it. agent: Midstream, Sidekiq as a service of the agent. monit:
Midstream, Sidekiq owned by Monit and held. The latter two under a storm of kills (Sidekiq, agent, deployer); exit 1 when
one of the numbers that have to be 0 is not. Needs root, Redis, Sidekiq, Monit, Capistrano and sshd; see docs/article.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import article_capistrano
import article_midstream
from article_counts import Counts
from fleet import why_no_fleet

CASES = ("capistrano", "agent", "monit")


def main() -> int:
    options = _options()
    if why := why_no_fleet() or article_capistrano.missing():
        print(f"this cannot be run here: {why}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing is left behind
    faults = 0
    for case in [options.only] if options.only else CASES:
        began_s = time.monotonic()
        print(f"== {case}", flush=True)
        if case == "capistrano":
            _tell_capistrano(article_capistrano.replay(options.deploys))
        else:
            until_s = began_s + options.minutes * 60 if options.minutes else float("inf")
            storm = article_midstream.replay(
                case,
                options.deploys,
                storm=options.storm,
                seed=options.seed,
                until_s=until_s,
                keep=options.keep and options.keep / case,
                tell=lambda line: print(line, file=sys.stderr, flush=True),
            )
            _tell_storm(storm)
            faults += sum(storm.faults().values())
        print(f"took {time.monotonic() - began_s:.0f} s; load {os.getloadavg()[0]:.1f}", flush=True)
    return 1 if faults else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--deploys", type=int, default=10, help="deploys of each case (default 10)")
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--storm", action=argparse.BooleanOptionalAction, default=True, help="kill things meanwhile")
    parser.add_argument("--seed", type=int, default=0, help="of the storm")
    parser.add_argument("--minutes", type=float, default=0, help="begin no further deploy of a case after that time")
    parser.add_argument("--keep", type=Path, help="a folder for the records of a case in which something was wrong")
    return parser.parse_args()


def _tell_capistrano(found: article_capistrano.Capistrano) -> None:
    hosts = 2 * found.deploys
    print(f"deploys                                    {found.deploys}, of which {found.failed} did not exit 0")
    print(f"host deploys that ended on stale code      {found.stale_hosts} of {hosts}")
    print(f"deploys with a stale host                  {found.stale_deploys} of {found.deploys}")
    print(f"deploys that left the hosts different      {found.different} of {found.deploys}")
    if found.counts:
        _tell_jobs(found.counts)
        print(f"jobs begun on old code after the switch    {len(found.counts.late)}")
        print(f"jobs lost                                  {len(found.counts.lost)}")
    print(f"median seconds of a deploy                 {statistics.median(found.seconds):.1f}")


def _tell_storm(found: article_midstream.Storm) -> None:
    print(f"deploys                                    {found.deploys}, exits {_counted(found.exits)}")
    print(f"releases committed                         {found.commits}")
    print(f"resume                                     {_counted(found.resumed) or '-'}")
    kinds = Counter(f"{strike.victim} {strike.signal}" for strike in found.strikes)
    print(f"strikes                                    {len(found.strikes)}: {_counted(kinds)}")
    print(f"  in phase                                 {_counted(Counter(s.phase for s in found.strikes))}")
    assert found.counts is not None
    _tell_jobs(found.counts)
    print(f"jobs in hand of a Sidekiq killed -9        {len(found.counts.in_hand)} (lost by Sidekiq, counted apart)")
    for what, number in found.faults().items():
        print(f"{what:54} {number}")
    if found.seconds:
        print(f"median seconds of a deploy that exits 0    {statistics.median(found.seconds):.1f}")
    for reason, number in found.reasons.most_common():
        print(f"  failed: {number} x {reason}")
    wrong = [*found.counts.strays[:10], *found.counts.late[:10], *found.counts.lost[:10]]
    for one in (*wrong, *found.unsettled, *found.different, *found.unexpected):
        print(f"  WRONG: {one}")


def _tell_jobs(counts: Counts) -> None:
    print(f"jobs                                       {counts.jobs}; Sidekiqs started {counts.boots}")
    print(f"  begun more than once                     {counts.again}, at most {counts.most_begun} times")


def _counted(values: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{key}: {number}" for key, number in sorted(values.items(), key=lambda item: str(item[0])))


if __name__ == "__main__":
    sys.exit(main())
