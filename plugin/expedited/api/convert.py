"""Between what the agent knows and what travels over the control API; messages as plain data for ``--json``."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from expedited.api.backend import Status
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.sighting import Container, State
from expedited.stop import Stop
from expedited.teardown.policy import Policy
from expedited.teardown.report import Memory

__all__ = ["container_to_pb", "status_to_pb", "stop_to_pb", "to_plain"]

_SAME_IN_BOTH = (
    "number",
    "container_id",
    "cgroup",
    "trigger",
    "mode",
    "order",
    "reason",
    "started_at",
    "page_cache_dropped_bytes",
    "process_count",
    "lost_races",
    "signalled_seconds",
    "answered_seconds",
    "memory_back_seconds",
    "gone_seconds",
    "lead_seconds",
)


def stop_to_pb(stop: Stop) -> pb.Stop:
    """One stop for the wire; the message has no place for ``runtime_namespace``."""
    report = stop.report
    return pb.Stop(
        **{name: getattr(report, name) for name in _SAME_IN_BOTH},
        outcome=report.outcome.value,
        pod=_pod_to_pb(stop.pod_uid, stop.pod_namespace, stop.pod_name),
        container_name=stop.container_name,
        before=_memory_to_pb(report.before),
        after=_memory_to_pb(report.after),
        processes=[
            pb.Process(pid=process.pid, rss_bytes=process.rss_bytes, fate=process.fate.value)
            for process in report.processes
        ],
        boosted=report.boosted,
        steps=[pb.Step(at_seconds=step.at_seconds, what=step.what) for step in report.steps],
        bytes_returned=report.bytes_returned,
    )


def container_to_pb(container: Container) -> pb.Container:
    """One container with what it holds now, zeros where it is gone; reads its cgroup, so not in an event loop."""
    seen = container.seen
    cgroup = container.find_cgroup()
    holds = _memory_to_pb(cgroup.memory() if cgroup else None)
    return pb.Container(
        id=seen.id,
        runtime_namespace=seen.runtime_namespace,
        name=seen.name,
        pod=_pod_to_pb(seen.pod_uid, seen.pod_namespace, seen.pod_name),
        pid=seen.pid,
        cgroup=cgroup.path if cgroup else "",
        policy=_policy_to_pb(container.policy),
        memory=holds or (pb.Memory() if seen.pid or seen.state is State.STOPPED else None),
        state=seen.state.value,
        sandbox=container.sandbox,
        gated=container.gated,
        stopping_since=container.stopping_since,
    )


def status_to_pb(status: Status) -> pb.Status:
    """The agent's word on itself for the wire."""
    return pb.Status(
        version=status.version,
        striker=status.striker,
        nri=status.nri,
        containerd=status.containerd,
        containers=status.containers,
        gated=status.gated,
        stops=status.stops,
        processes=[
            pb.ProcessStatus(
                name=process.name, pid=process.pid, rss_bytes=process.rss_bytes, pss_bytes=process.pss_bytes
            )
            for process in status.processes
        ],
        kernel=status.kernel,
        started_at=status.started_at,
        gate_events=status.gate_events,
        gate_overruns=status.gate_overruns,
        gate_restarts=status.gate_restarts,
        kubernetes=status.kubernetes,
        source=status.source,
        source_lost=status.source_lost,
    )


def to_plain(message: Message) -> dict[str, Any]:
    """Dicts, lists, strings and numbers with the fields' own names, for :func:`json.dumps`.

    Every field is there. One that was not set is None where that differs from zero. Unlike protobuf's own JSON, 64-bit
    integers stay numbers: all of ours are far below 2**53.
    """
    return {field.name: _plain_field(message, field) for field in message.DESCRIPTOR.fields}


def _plain_field(message: Message, field: Any) -> object:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_plain(item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _plain(value)


def _plain(value: object) -> object:
    return to_plain(value) if isinstance(value, Message) else value


def _pod_to_pb(uid: str, namespace: str, name: str) -> pb.Pod | None:
    return pb.Pod(uid=uid, namespace=namespace, name=name) if uid or name else None


def _policy_to_pb(policy: Policy) -> pb.Policy:
    return pb.Policy(
        mode=policy.mode.value,
        page_cache=policy.page_cache.value,
        boost=policy.boost,
        min_size_bytes=policy.min_size_bytes,
        order=policy.order.value,
        deadline_seconds=policy.deadline_seconds,
    )


def _memory_to_pb(memory: Memory | None) -> pb.Memory | None:
    if memory is None:
        return None
    return pb.Memory(
        anon_bytes=memory.anon_bytes,
        file_bytes=memory.file_bytes,
        shmem_bytes=memory.shmem_bytes,
        swap_bytes=memory.swap_bytes,
    )
