"""One stop as the agent tells of it: the striker's report, and whose container it was."""

from __future__ import annotations

from dataclasses import dataclass

from expedited.teardown.report import Report

__all__ = ["Stop"]


@dataclass(frozen=True, slots=True)
class Stop:
    """A report with the names that people know a container by; they are empty where nobody told the agent.

    Attributes:
        report: What was done, and what came of it.
        runtime_namespace: containerd's namespace.
        container_name: In its pod.
    """

    report: Report
    runtime_namespace: str = ""
    pod_uid: str = ""
    pod_namespace: str = ""
    pod_name: str = ""
    container_name: str = ""

    @property
    def label(self) -> str:
        """How to name the container to a person."""
        pod = f"{self.pod_namespace}/{self.pod_name}" if self.pod_name else ""
        named = "/".join(part for part in (pod, self.container_name) if part)
        return named or self.report.container_id or self.report.cgroup
