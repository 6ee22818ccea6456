"""What is known about other people's programs, as data: how a server takes a listener, parks, drains, stops.

Pure: no I/O, and nothing here decides; the agent does, from these values.
"""

from midstream.profiles.profile import (
    PRIVATE_LISTENER,
    Park,
    Profile,
    Proof,
    Takes,
    place_listeners,
    unwrap,
    warnings,
)
from midstream.profiles.servers import GENERIC, SERVERS, profile_named, recognise

__all__ = [
    "GENERIC",
    "PRIVATE_LISTENER",
    "Park",
    "Profile",
    "Proof",
    "SERVERS",
    "Takes",
    "place_listeners",
    "profile_named",
    "recognise",
    "unwrap",
    "warnings",
]
