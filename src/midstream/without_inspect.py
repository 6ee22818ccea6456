"""Importing this module first keeps `inspect`, with `ast`, `dis` and what they bring, out of a process that stays: a megabyte.

dataclasses and asyncio import `inspect` for a handful of questions. Those are answered here; whoever asks for anything
else gets the real module, loaded then. `import inspect` elsewhere is the real one too. Nothing else may live here, and
nothing may be imported that would load dataclasses. Keeper and agent.
"""

from __future__ import annotations

import sys
from types import CodeType, ModuleType
from typing import Any

_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE


class _Inspect(ModuleType):
    """What stands for `inspect` in the modules that were imported meanwhile."""

    @staticmethod
    def signature(_of: Any) -> str:
        """For dataclasses: the docstring of a class that has none."""
        return ""

    if sys.version_info < (3, 14):

        @staticmethod
        def get_annotations(of: type) -> dict[str, Any]:
            """For dataclasses since Python 3.12: those of the class itself, as they stand."""
            return dict(of.__dict__.get("__annotations__", {}))  # noqa: RUF063  this is who answers it

    @staticmethod
    def iscoroutinefunction(asked: Any) -> bool:
        """For asyncio, which refuses these as signal handlers."""
        code = getattr(getattr(asked, "__func__", asked), "__code__", None)
        return isinstance(code, CodeType) and bool(code.co_flags & _CO_COROUTINE)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what the import system asks of any module
            raise AttributeError(name)
        if sys.modules.get("inspect") is self:
            del sys.modules["inspect"]
        import inspect

        return getattr(inspect, name)


def import_without(*names: str) -> None:
    """Imports these modules. Where `inspect` is loaded already, there is nothing to be saved."""
    if "inspect" in sys.modules:
        for name in names:
            __import__(name)
        return
    stand_in = _Inspect("inspect")
    sys.modules["inspect"] = stand_in
    try:
        for name in names:
            __import__(name)
    finally:
        if sys.modules.get("inspect") is stand_in:
            del sys.modules["inspect"]
