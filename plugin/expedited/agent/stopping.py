"""Which containers are being stopped, and since when."""

from __future__ import annotations

import time

__all__ = ["Stopping"]

#: A grace period that is longer than this is none, as far as it is shown; nobody is asked any more then either (striker.graces).
_AT_MOST_SECONDS = 3600.0


class Stopping:
    """Times in seconds since the epoch, by container id."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def began(self, container_id: str) -> None:
        """It was sent a signal; the first one counts."""
        now = time.time()
        # One that took its SIGTERM for something else and lives on is not stopping for ever
        self._since = {name: at for name, at in self._since.items() if now - at < _AT_MOST_SECONDS}
        self._since.setdefault(container_id, now)

    def ended(self, container_id: str) -> None:
        """It is gone, or runs anew."""
        self._since.pop(container_id, None)

    def since(self, container_id: str) -> float | None:
        """When it began; None where it is not being stopped."""
        at = self._since.get(container_id)
        return at if at is not None and time.time() - at < _AT_MOST_SECONDS else None
