"""The master of a standalone `midstream serve`: owns the listeners, decides which release serves, never changes its pid.

Standard library only, one thread, no asyncio, nothing of the app. It is loaded whole at its start, from outside the
releases, so that it needs no file of theirs later.
"""

from midstream.serve.master.master import Master, Reread
from midstream.serve.settings import Settings

__all__ = ["Master", "Reread", "run"]


def run(settings: Settings, reread: Reread) -> int:
    """Serves until it is told to end; the exit status. Raises MidstreamError when it cannot begin. reread: see Master."""
    return Master(settings, reread).run()
