"""A process that can open nothing more, for the length of a `with`."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_descriptor_left(most: int | None = None) -> Iterator[None]:
    """This process opens no descriptor meanwhile. most: its limit; by default all numbers that are free now are beyond it."""
    if most is None:
        most = os.dup(0)
        os.close(most)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
