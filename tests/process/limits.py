"""A process at one of its limits, for the length of a `with`."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited(which: int, most: int) -> Iterator[None]:
    """The soft limit `which` (RLIMIT_...) is `most` meanwhile."""
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


@contextmanager
def no_descriptor_left(most: int | None = None) -> Iterator[None]:
    """This process opens no descriptor meanwhile. most: its limit; by default all numbers that are free now are beyond it."""
    if most is None:
        most = os.dup(0)
        os.close(most)
    with limited(resource.RLIMIT_NOFILE, most):
        yield
