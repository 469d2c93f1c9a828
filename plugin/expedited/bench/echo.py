"""The other end of a pipe: ``echo.py PRIORITY`` gives back each byte as it comes, SCHED_RR where it may be, until there are no more.

Run by its path, without site-packages, so that it starts fast and small.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

if __name__ == "__main__":
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(int(sys.argv[1])))
    while byte := os.read(0, 1):
        os.write(1, byte)
