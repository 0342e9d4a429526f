"""`python -m saliency_lrp` is the `saliency-lrp` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
