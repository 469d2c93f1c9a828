"""A process of our own to try things on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["WAITS", "child"]

#: The program of a child that does nothing until it is killed, or we are gone.
WAITS = "import sys; sys.stdin.read()"


@contextmanager
def child(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program; in the end it is killed and waited for, whatever it was doing.

    Its standard input is a pipe from here: a child that reads it ends even when we are killed ourselves.

    Raises:
        OSError: it can't be started.
    """
    process = subprocess.Popen(
        # -I -S: none of the user's settings and no site-packages, so that it starts in some 15 ms
        [sys.executable, "-I", "-S", "-c", program, *arguments],
        # Ourselves, wherever that is: this user need not be allowed to go the whole way to it
        executable="/proc/self/exe",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
