"""`python -I -m midstream.steps NAME`; also what the zipapp calls."""

import sys

from midstream.steps.program import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
