"""Things that are built once and kept: ``${XDG_CACHE_HOME:-~/.cache}/expedited/<kind>/<hash of what they are made of>/``."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["built_once", "content_key"]


def content_key(parts: Iterable[bytes]) -> str:
    """A name for what is made of these parts, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:20]


def built_once(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory that ``build`` fills, from the cache if it was built before.

    Two callers at once build it once: the second waits. What fails half-way leaves nothing behind.

    Args:
        kind: What it is, for the reader of the cache directory.
        key: From :func:`content_key`, of everything that the result depends on.
        build: Fills the empty directory that it is given.
    """
    place = _cache_home() / kind
    finished = place / key
    if finished.is_dir():
        return finished
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place / f"{key}.lock"):
        if finished.is_dir():
            return finished
        unfinished = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=place))
        try:
            build(unfinished)
            unfinished.chmod(0o755)
            unfinished.rename(finished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return finished


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expedited"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The lock file stays: removing it would let a third caller lock another file of the same name.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
