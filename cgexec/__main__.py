"""Makes ``python -m cgexec`` work."""

import sys

from cgexec.cli import main

if __name__ == "__main__":
    sys.exit(main())
