"""Whose X-Forwarded-For and X-Forwarded-Proto count, and what they say.

A header counts only when the peer of the connection is one of the operator's own proxies. In X-Forwarded-For each
proxy adds at the right the peer it saw, so the client is the right-most address that is no proxy of ours: what stands
left of it was written by somebody else. What must not live here: I/O. Runs in the workers, for WSGI and ASGI alike.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

_HOPS_MAX = 64
_PEERS_MAX = 4096

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """allowed: addresses, networks, "unix" (whoever can open the unix socket), "*" (everybody); each may be several,
    separated by commas. Raises ValueError for anything else."""

    __slots__ = ("_all", "_known", "_networks", "_unix")

    def __init__(self, allowed: Iterable[str]) -> None:
        words = [word.strip() for text in allowed for word in text.split(",") if word.strip()]
        self._all = "*" in words
        self._unix = self._all or "unix" in words
        self._known: dict[str, bool] = {}  # what was found for the peers of late; connections come and go
        self._networks: list[_Network] = [
            ipaddress.ip_network(word, strict=False) for word in words if word not in ("*", "unix")
        ]

    def trusts(self, peer: str) -> bool:
        """peer: the address at the other end of the connection; "" for a unix socket."""
        if not peer:
            return self._unix
        found = self._known.get(peer)
        if found is None:
            found = self._all or self._names(peer)
            if len(self._known) >= _PEERS_MAX:
                self._known.clear()
            self._known[peer] = found
        return found

    def client(self, forwarded_for: str) -> str:
        """The client's address by the X-Forwarded-For of a trusted peer (several headers joined by commas); "" when it
        says none. An entry that is no address ends the search: beyond it nothing can be believed."""
        found = ""
        for hop in reversed(forwarded_for.split(",")[-_HOPS_MAX:]):
            address = _address(hop.strip())
            if not address:
                break
            found = address
            if not (self._all or self._names(address)):
                break
        return found

    def _names(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address.version == network.version and address in network for network in self._networks)


def scheme(forwarded_proto: str) -> str:
    """ "http" or "https" by the X-Forwarded-Proto of a trusted peer, "" when it says neither. The last word is that of the
    nearest proxy."""
    word = forwarded_proto.rpartition(",")[2].strip().lower()
    return {"https": "https", "wss": "https", "http": "http", "ws": "http"}.get(word, "")


def _address(hop: str) -> str:
    """Without port, brackets and zone; "" when it is no address."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(hop.partition("%")[0]))
    except ValueError:
        return ""
