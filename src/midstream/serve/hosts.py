"""Whether a Host header is well formed, and one of the names that the operator allows.

What must not live here: parsing of requests, I/O. Runs in the workers, for WSGI and ASGI alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

# RFC 9110 7.2, RFC 3986 3.2.2: reg-name or address, then a port. Percent signs occur in no host of the web.
_WELL_FORMED = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")
_KNOWN_MAX = 256


def host_check(allowed: Iterable[str]) -> Callable[[str], bool]:
    """A function that says whether a Host header may be served. allowed: names, ".example.com" for it and all below,
    "*" for any; empty: whatever is well formed. What it found is remembered for a bounded number of hosts."""
    names = {name.strip().lower().rstrip(".") for name in allowed if name.strip()}
    exact = {name for name in names if not name.startswith(".")} | {name[1:] for name in names if name.startswith(".")}
    below = tuple(name for name in names if name.startswith("."))
    any_name = not names or "*" in names
    known: dict[str, bool] = {}

    def look(host: str) -> bool:
        if _WELL_FORMED.match(host) is None:
            return False
        if any_name:
            return True
        name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
        name = name.lower().rstrip(".")
        return name in exact or name.endswith(below)

    def check(host: str) -> bool:
        found = known.get(host)
        if found is None:
            found = look(host)
            if found and len(known) < _KNOWN_MAX:
                known[host] = found
        return found

    return check
