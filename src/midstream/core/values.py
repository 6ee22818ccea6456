"""`dataclass`, for values that are declared by the dozen: what the standard one makes, in half the time of a start.

The standard decorator compiles six methods for each class. Of the frozen, slotted ones `==`, `hash()` and `repr()` are here
instead, once for all of them; they read the fields when they are first asked. The rest is the standard library's, and so
are all other classes. For modules that a deployer or a step program loads at each start, and with many classes; nothing
else may live here. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses

    def dataclass(cls=None, /, **options):
        """As `dataclasses.dataclass`, with and without parentheses."""

        def made(cls):
            if options != {"frozen": True, "slots": True} or not vars(cls).keys().isdisjoint(_SHARED):
                return dataclasses.dataclass(**options)(cls)
            for name, method in _SHARED.items():
                setattr(cls, name, method)
            return dataclasses.dataclass(eq=False, repr=False, **options)(cls)

        return made if cls is None else made(cls)

    def _equal(self, other):
        if other.__class__ is not self.__class__:
            return NotImplemented
        compared = _compared(self.__class__)
        return compared(self) == compared(other)

    def _hash(self):
        return hash((_compared(self.__class__)(self),))

    def _repr(self):
        shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
        return f"{self.__class__.__qualname__}({', '.join(shown)})"

    _SHARED = {"__eq__": _equal, "__hash__": _hash, "__repr__": _repr}
    _readers: dict[type, Callable[[Any], Any]] = {}

    def _compared(cls):
        """Reads what instances of the class are compared by."""
        reader = _readers.get(cls)
        if reader is None:
            names = [field.name for field in dataclasses.fields(cls) if field.compare]
            reader = _readers[cls] = attrgetter(*names) if names else lambda _: ()
        return reader
