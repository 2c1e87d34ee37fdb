"""``python -m simulator.fixes``."""

from __future__ import annotations

import sys

from simulator.fixes import main

sys.exit(main(sys.argv[1:]))
