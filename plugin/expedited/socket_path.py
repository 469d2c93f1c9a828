"""How long a unix socket's path may be (unix(7))."""

from __future__ import annotations

import os
from pathlib import Path

from expedited.errors import UsageError

__all__ = ["refuse_if_too_long"]

_LONGEST_BYTES = 107  # sun_path of linux/un.h, less its final zero


def refuse_if_too_long(path: str | Path, what: str) -> None:
    """Before a library says it in its own way.

    Raises:
        UsageError: the path is longer; ``what`` says whose it is.
    """
    if len(os.fsencode(path)) > _LONGEST_BYTES:
        raise UsageError(f"{what} {path}: too long for a socket's path, which has at most {_LONGEST_BYTES} bytes")
