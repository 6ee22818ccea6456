"""`python -I -m midstream.steps NAME`; also what the zipapp calls."""

import sys

from midstream.without_inspect import import_without

import_without("dataclasses")  # half a deploy's first wait for a host is for this program's start

from midstream.steps.program import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
