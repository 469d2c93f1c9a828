"""What the agent runs with, once the configuration has been read and found good.

Plain dataclasses: the resident agent carries these, and not the libraries that read files, environment and flags
(:mod:`expedited.config`), which would cost it ten megabytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from expedited.teardown.policy import Policy

__all__ = ["STATE_ROOTS", "AgentSettings"]

#: Where runtimes keep one directory a container; ``*`` stands for a namespace.
STATE_ROOTS = (
    "/run/containerd/runc/*",
    "/run/docker/runtime-runc/*",
    "/run/runc",
    "/run/crun",
)


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Everything `expedited run` was told.

    Attributes:
        run_dir: The agent's own directory, for its sockets.
        state_roots: Runtime state directories to gate; ``*`` as the last part stands for any name.
        nri_socket: Where the runtime listens for NRI plugins; empty: no NRI.
        containerd_socket: containerd's gRPC socket; empty: no containerd.
        cri_namespace: containerd's namespace for Kubernetes' containers.
        metrics_address: ``HOST:PORT`` for Prometheus; empty: no metrics.
        policy: The node's default.
        namespaces: Defaults by Kubernetes namespace, in place of the node's.
        source: How kills are seen: ``gate`` (they are held until the strike is under way), ``observe`` (nobody is held, and
            the strike follows the runtime's own kill), ``auto``: the gate where the kernel has it.
        budget_seconds: The longest that the gate may hold a runtime back for one decision.
        keep_striker: Leave the striker running when the agent is stopped; in a pod it ends with the container all the same.
        kubernetes: ``auto``: talk to the API server of the cluster that this is a pod of, if it is one; ``off``; or the
            path of a kubeconfig.
        node_name: This node's name in Kubernetes; empty: the variable NODE_NAME, else the host's.
        event_min_size_bytes: A stop that gave back less makes no Event.
        node_condition: Whether to set a condition on the node while kills can't be caught there.
        log_level: debug, info, warning or error.
        log_format: ``console``, ``json`` or ``auto`` (console on a terminal).
    """

    run_dir: str = "/run/expedited"
    state_roots: tuple[str, ...] = STATE_ROOTS
    nri_socket: str = "/var/run/nri/nri.sock"
    containerd_socket: str = "/run/containerd/containerd.sock"
    cri_namespace: str = "k8s.io"
    metrics_address: str = "127.0.0.1:9788"
    policy: Policy = field(default_factory=Policy)
    namespaces: dict[str, Policy] = field(default_factory=dict)
    source: str = "auto"
    budget_seconds: float = 0.05
    keep_striker: bool = False
    kubernetes: str = "auto"
    node_name: str = ""
    event_min_size_bytes: int = 256 << 20
    node_condition: bool = False
    log_level: str = "info"
    log_format: str = "auto"

    @property
    def striker_socket(self) -> str:
        """Where the striker listens."""
        return f"{self.run_dir}/striker.sock"

    @property
    def api_socket(self) -> str:
        """Where the control API listens."""
        return f"{self.run_dir}/expedited.sock"

    def to_json(self) -> str:
        """One line, for :meth:`from_json` on the other side of an exec."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> AgentSettings:
        """The opposite of :meth:`to_json`."""
        data: dict[str, Any] = json.loads(text)
        data["state_roots"] = tuple(data["state_roots"])
        data["policy"] = Policy.from_json(data["policy"])
        data["namespaces"] = {name: Policy.from_json(policy) for name, policy in data["namespaces"].items()}
        return cls(**data)
