"""Whether there is a Kubernetes to talk to, and the link to it: loaded only where there is, as it costs memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog

from expedited.settings import AgentSettings

if TYPE_CHECKING:
    from expedited.kube import KubernetesLink

__all__ = ["link_to_kubernetes"]

_log = structlog.get_logger(__name__)


def link_to_kubernetes(
    settings: AgentSettings,
    leaving: Callable[[str, str], None],
    annotated: Callable[[str, Mapping[str, str] | None], None],
    striker_state: Callable[[], str],
) -> KubernetesLink | None:
    """The link, to be run; None where there is no cluster, or it is not wanted.

    Args:
        settings: The agent's.
        leaving: Called with the uid of a pod of this node that goes for good, and why.
        annotated: Called with the uid of a pod of this node and the annotations that it has now; None: it is not there any more.
        striker_state: ``ok``, or why kills are not caught.

    Raises:
        UsageError: a kubeconfig is named that can't be used.
    """
    if settings.kubernetes == "off" or (settings.kubernetes == "auto" and "KUBERNETES_SERVICE_HOST" not in os.environ):
        return None
    from expedited.kube import KubernetesLink, find_access

    access = find_access(settings.kubernetes)
    if access is None:
        _log.info("Kubernetes: no service account here, so no Events and no early word of pods that leave")
        return None
    node_name = settings.node_name or platform.node().lower()
    _log.info("Kubernetes: there is a cluster", api_server=access.address, node=node_name)
    return KubernetesLink(
        access,
        node_name,
        event_min_size_bytes=settings.event_min_size_bytes,
        leaving=leaving,
        annotated=annotated,
        striker_state=striker_state if settings.node_condition else None,
    )
