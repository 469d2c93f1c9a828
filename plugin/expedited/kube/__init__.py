"""The agent's side of the Kubernetes API: pods that leave this node, Events about stops, a condition of the node.

Nothing here is needed for a strike. With the API server gone the agent does its whole job, and this catches up later.
"""

from __future__ import annotations

from expedited.kube.access import Access, find_access
from expedited.kube.api_server import ApiServer
from expedited.kube.errors import ApiError, KubernetesError, UnreachableError
from expedited.kube.link import KubernetesLink

__all__ = [
    "Access",
    "ApiError",
    "ApiServer",
    "KubernetesError",
    "KubernetesLink",
    "UnreachableError",
    "find_access",
]
