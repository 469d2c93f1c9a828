"""How long to wait before the next try, so that a server which comes back is not met by every node at once."""

from __future__ import annotations

import random

from expedited.kube.errors import ApiError, KubernetesError

__all__ = ["Patience"]

_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 30.0


class Patience:
    """Grows with every failure, and is as new after a success."""

    def __init__(self) -> None:
        self._seconds = _FIRST_SECONDS

    def renew(self) -> None:
        """It worked."""
        self._seconds = _FIRST_SECONDS

    def after(self, problem: KubernetesError) -> float:
        """The seconds to wait now; longer where the server asked for that."""
        asked = problem.retry_after_seconds if isinstance(problem, ApiError) else 0.0
        wait = max(asked, self._seconds) * random.uniform(0.5, 1.0) + asked / 2
        self._seconds = min(2 * self._seconds, _LONGEST_SECONDS)
        return wait
