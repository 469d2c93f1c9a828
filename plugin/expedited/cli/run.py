"""``expedited run``."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from expedited.settings import AgentSettings

__all__ = ["become_agent"]


def become_agent(settings: AgentSettings) -> NoReturn:
    """Become the resident agent, which has none of the libraries that read the configuration in its memory."""
    sys.stdout.flush()
    # Docstrings stay on disk; and glibc would give each of gRPC's threads an arena of its own, which costs more memory
    # than it ever saves time here (mallopt(3))
    environment = {"MALLOC_ARENA_MAX": "1", **os.environ}
    os.execve(sys.executable, [sys.executable, "-OO", "-m", "expedited.agent", settings.to_json()], environment)
