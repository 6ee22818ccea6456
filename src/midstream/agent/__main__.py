"""`python -m midstream.agent --state DIR --runtime DIR --socket PATH`: started by the keeper, not by hand."""

import sys

from midstream.without_inspect import import_without

# asyncio takes ssl along when it can, for five megabytes that the agent never uses (it speaks to unix sockets only).
sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
import_without("dataclasses", "asyncio")


def main(argv: list[str]) -> int:
    """Runs the agent; the exit code."""
    from midstream.agent.program import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
