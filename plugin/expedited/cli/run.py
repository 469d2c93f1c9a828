"""``expedited run``."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from expedited.errors import ExpeditedError
from expedited.settings import AgentSettings
from expedited.striker.cgroup_namespace import join_nodes
from expedited.striker.log import Log

__all__ = ["become_agent"]


def become_agent(settings: AgentSettings) -> NoReturn:
    """Become the resident agent, which has none of the libraries that read the configuration in its memory."""
    sys.stdout.flush()
    not_joined = join_nodes()
    if not_joined:
        log = Log.of_format(settings.log_format, who="agent")
        log.warning(f"cgroups are seen from a namespace of our own ({not_joined})")
    # From here on Ctrl-C is the agent's, which hears it as soon as it has ears
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    # Docstrings stay on disk; and glibc would give each of gRPC's threads an arena of its own, which costs more memory
    # than it ever saves time here (mallopt(3))
    environment = {"MALLOC_ARENA_MAX": "1", **os.environ}
    try:
        os.execve(sys.executable, [sys.executable, "-POO", "-m", "expedited.agent", settings.to_json()], environment)
    except OSError as error:
        raise ExpeditedError(f"{sys.executable} can't be run as the agent: {error.strerror}") from None
