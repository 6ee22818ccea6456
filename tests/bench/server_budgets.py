"""The tables of the web servers, and the budgets in them: what is promised of `midstream serve`, in the design's words.

The design has none for ASGI; ours is that the limits, the deadlines and the drain around uvicorn's classes cost at most
15 % of what uvicorn itself takes.
"""

from __future__ import annotations

from budgets import Budget, Section
from workloads import HELLOS, PAYLOADS, Workload

GRANIAN, SYNC, GTHREAD, UVICORN = "granian", "gunicorn sync", "gunicorn gthread", "uvicorn"
# (metric, most times of the peer's)
_LIMITS: dict[str, tuple[tuple[str, float], ...]] = {
    "wsgi_c4_us": ((GRANIAN, 0.9),),
    "wsgi_c16_us": ((GRANIAN, 1.5),),
    "wsgi_c4_logged_us": ((GRANIAN, 0.8),),
    "wsgi_c16_logged_us": ((GRANIAN, 0.8),),
    "wsgi_closing_us": ((GRANIAN, 1.6), (SYNC, 0.4)),
    **{f"asgi_{key}_us": ((UVICORN, 1.15),) for key in ("c4", "c16", "c4_logged", "c16_logged", "closing")},
}
_COMPARED = {"wsgi": GRANIAN, "asgi": UVICORN}


def _budgets(workloads: tuple[Workload, ...], interface: str, unit: str) -> tuple[Budget, ...]:
    return tuple(
        budget
        for workload in workloads
        if interface in workload.interfaces
        for budget in _of(f"{interface}_{workload.key}_{unit}", workload.title, _COMPARED[interface])
    )


def _of(metric: str, title: str, compared: str) -> list[Budget]:
    if metric in _LIMITS:
        return [Budget(metric, title, f"≤ {most:g} of {peer}", most, peer) for peer, most in _LIMITS[metric]]
    return [Budget(metric, title, "", None, compared)]


STALLED = {
    "none": "nobody stalled",
    "heads": "1,000 stand still in the middle of their request's head",
    "readers": "1,000 do not read their answer of 1 MB",
}


def _stalled(interface: str) -> tuple[Budget, ...]:
    return (
        *(Budget(f"{interface}_stalled_{key}_ms", f"{title}, ms", "") for key, title in STALLED.items()),
        *(
            Budget(f"{interface}_stalled_{key}_ratio", f"{key}, against none stalled", "unchanged: ≤ 1.25", 1.25)
            for key in ("heads", "readers")
        ),
    )


SERVER_SECTIONS = (
    Section("WSGI and Rack, hello: CPU per request, µs", _budgets(HELLOS, "wsgi", "us")),
    Section("WSGI and Rack, hello: requests a second", _budgets(HELLOS, "wsgi", "rps"), note="More is better."),
    Section("WSGI, other work: CPU per request, µs", _budgets(PAYLOADS, "wsgi", "us")),
    Section("WSGI, other work: requests a second", _budgets(PAYLOADS, "wsgi", "rps"), note="More is better."),
    Section("ASGI, hello: CPU per request, µs", _budgets(HELLOS, "asgi", "us")),
    Section("ASGI, hello: requests a second", _budgets(HELLOS, "asgi", "rps"), note="More is better."),
    Section("ASGI, other work: CPU per request, µs", _budgets(PAYLOADS, "asgi", "us")),
    Section("ASGI, other work: requests a second", _budgets(PAYLOADS, "asgi", "rps"), note="More is better."),
    Section(
        "Slow requests beside fast ones",
        (
            Budget("fast_p99_ms", "p99 of the fast ones, ms", "not slower than gthread", 1.0, GTHREAD),
            Budget("fast_p50_ms", "median of the fast ones, ms", ""),
        ),
        note="2 workers, 16 keep-alive clients, together 200 requests a second, 5 % of which take 100 ms.",
    ),
    Section(
        "Stalled clients, WSGI: p99 of the others",
        _stalled("wsgi"),
        note="2 workers, 16 keep-alive clients, together 400 requests a second. Some 2,000 ms and more: nobody was answered.",
    ),
    Section("Stalled clients, ASGI: p99 of the others", _stalled("asgi"), note="As above."),
    Section(
        "Memory (PSS) of a preloaded Django project, MB",
        tuple(
            Budget(f"preloaded_{count}_mb", f"{count} worker{'s'[: count - 1]}", "", None, "gunicorn --preload")
            for count in (1, 2, 4, 8)
        ),
        note="All processes together, after some requests to each worker.",
    ),
    Section(
        "Upgrades under load, each by the server's own means",
        (
            Budget("upgrade_count", "upgrades", ""),
            Budget("upgrade_vain", "asked for in vain", "0", 0.0),
            Budget("upgrade_failed", "failed requests", "0", 0.0, worst=True),
            Budget("upgrade_requests", "of requests", ""),
            Budget("upgrade_gap_ms", "longest time without an answer (on new connections, or on kept ones), ms", ""),
            Budget("upgrade_worst_ms", "slowest answer, ms", ""),
            Budget("upgrade_s", "until only new code answers (median), s", ""),
        ),
        by_subject=True,
        note="2 workers; 8 keep-alive clients (400 requests a second), 4 that close (100 a second), 2 that ask for what takes "
        "0.2 s, one that uploads slowly. The app takes 0.3 s of CPU time to load. `midstream`: WSGI.",
    ),
)
