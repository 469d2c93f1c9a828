"""NRI: what the container runtime does with pods and containers, told by itself as it does it."""

from expedited.nri.connect import serve
from expedited.nri.handlers import Handlers
from expedited.nri.plugin import NriPlugin
from expedited.nri.records import NriContainer, NriPod
from expedited.nri.session import EVENTS, START_AT_MOST_SECONDS

__all__ = [
    "EVENTS",
    "START_AT_MOST_SECONDS",
    "Handlers",
    "NriContainer",
    "NriPlugin",
    "NriPod",
    "serve",
]
