"""Durations, sizes and modes as an operator writes them, and back.

Pure. Runs in the deployer (configuration) and in the command line tool (`--wait 30s`); must not know any key or file.
Every function raises ValueError with a text that says what was expected.
"""

from __future__ import annotations

import math
import re

DURATION = 'a duration such as "30s", "2m" or "1h30m", or a number of seconds'
SIZE = 'a size such as "10MB" or "1.5G", or a number of bytes'
MODE = 'a mode in quotes such as "0660"'

_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h|d|w)", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,6})?) ?([KMGT]?)(?:i?B)?\Z", re.ASCII | re.IGNORECASE)
_UNIT_BYTES = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_MODE = re.compile(r"0?[0-7]{3}\Z", re.ASCII)
_LONGEST_S = 100 * 365 * 86400.0


def parse_duration(value: object) -> float:
    """Seconds, not negative. Each unit may be given once: "1h30m", "1.5h", "250ms"; a number is seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < 2**63 else math.inf
    elif isinstance(value, str):
        seconds = _seconds_of(value.strip())
    else:
        raise ValueError(f"expected {DURATION}")
    if not 0 <= seconds <= _LONGEST_S:  # false for nan too
        raise ValueError(f"expected {DURATION}, not negative and at most a century")
    return seconds


def _seconds_of(text: str) -> float:
    parts = _PART.findall(text)
    units = [unit for _, unit in parts]
    if not parts or "".join(number + unit for number, unit in parts) != text or len(set(units)) != len(units):
        raise ValueError(f"expected {DURATION}")
    return math.fsum(float(number) * _UNIT_S[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads back as the same number: 90.0 -> "1m30s"."""
    if seconds == 0:
        return "0s"
    if seconds < 1 or seconds != int(seconds):
        millis = seconds * 1000
        return f"{int(millis)}ms" if millis == int(millis) and seconds < 1 else f"{seconds:g}s"
    rest, out = int(seconds), ""
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, int(_UNIT_S[unit]))
        out += f"{count}{unit}" if count else ""
    return out


def parse_size(value: object) -> int:
    """Bytes, not negative. K, KB and KiB are all 1024, as in Monit and nginx."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < 2**63:
            raise ValueError(f"expected {SIZE}, not negative")
        return value
    match = _SIZE.match(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"expected {SIZE}")
    number, unit = match.group(1), _UNIT_BYTES[match.group(2).upper()]
    size = int(float(number) * unit) if "." in number else int(number) * unit
    if size >= 2**63:
        raise ValueError(f"expected {SIZE}")
    return size


def format_size(size_bytes: int) -> str:
    """The text for a whole number of the largest unit that fits: 10485760 -> "10MB"."""
    for unit in ("T", "G", "M", "K"):
        if size_bytes and size_bytes % _UNIT_BYTES[unit] == 0:
            return f"{size_bytes // _UNIT_BYTES[unit]}{unit}B"
    return f"{size_bytes}B"


def parse_mode(value: object) -> int:
    """Permission bits. A bare number is refused: TOML reads 660 as decimal, which is another mode (01224)."""
    if not isinstance(value, str) or not _MODE.match(value):
        raise ValueError(f"expected {MODE}")
    return int(value, 8)
