"""One stop in sentences: for whoever asks why a pod went as it did."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from expedited.pb.v1 import expedited_pb2 as pb
from expedited.quantity import format_seconds, format_size

__all__ = ["known", "story", "time"]

_TRIGGERS = {
    "gate:kill": "the runtime was about to kill it, and was held at the gate",
    "gate:delete": "the runtime was about to delete it by force, and was held at the gate",
    "observer:kill": "the runtime was on its way to kill it, and was seen",
    "observer:delete": "the runtime was on its way to delete it by force, and was seen",
    "oom": "it was out of memory, and the kernel killed in it",
    "grace": "the runtime had sent SIGTERM, and one of its processes was seen to end",
    "api": "somebody asked the agent's API for it",
    "command": "somebody asked for it by `expedited kill`",
}
_OUTCOMES = {
    "struck": "it was torn down, and its cgroup is empty",
    "exited": "it ended by itself; nobody was signalled, its dying processes were helped",
    "observed": "nothing was done, the runtime's own kill was measured",
    "watched": "it ended by itself; nothing was done, its end was measured",
    "skipped": "it was left alone",
    "deadline": "it was struck, but something of it was still there at the deadline",
    "failed": "it could not be struck, and the runtime's own kill did the work",
}
_FATES = {
    "reaped": "reaped",
    "lost_race": "freed by themselves (let go of their memory before they could be reaped)",
    "gone": "gone before",
    "exited": "freed by themselves, as they ended",
    "killed": "killed, not reaped",
    "survived": "still there at the deadline",
}


def story(stop: pb.Stop, node: str) -> str:
    """Several lines, the last of them the steps in time order."""
    pod = f"{stop.pod.namespace}/{stop.pod.name}" if stop.pod.name else stop.container_id or stop.cgroup
    order = f", order {stop.order}" if stop.order else ""
    reason = f" ({stop.reason})" if stop.reason else ""
    lines = [
        f"{pod} {stop.container_name or 'sandbox'} on {node}, {time(stop, date=True)}",
        f"  why         {_TRIGGERS.get(stop.trigger, stop.trigger)}",
        f"  what        mode {stop.mode}{order}: {_OUTCOMES.get(stop.outcome, stop.outcome)}{reason}",
    ]
    if stop.HasField("before"):
        before = stop.before
        parts = [
            (before.anon_bytes, "anonymous"),
            (before.file_bytes, "of files"),
            (before.shmem_bytes, "shared"),
            (before.swap_bytes, "in swap"),
        ]
        held = ", ".join(f"{format_size(size)} {what}" for size, what in parts if size)
        lines.append(f"  held        {held or 'nothing'}, in {stop.process_count} processes")
    since = "it was seen to end" if stop.outcome in ("exited", "watched") else "the kill"
    back = known(stop, "memory_back_seconds")
    when = f"{format_seconds(back)} after {since}" if back is not None else "when is not known"
    lines.append(f"  back        {format_size(stop.bytes_returned)}, {when}")
    if stop.page_cache_dropped_bytes:
        lines.append(f"  page cache  {format_size(stop.page_cache_dropped_bytes)} given back, too")
    gone = known(stop, "gone_seconds")
    lines.append(
        f"  gone        {f'{format_seconds(gone)} after {since}' if gone is not None else 'not by the deadline'}"
    )
    answered = known(stop, "answered_seconds")
    if answered is not None:
        lines.append(f"  gate        the runtime went on after {answered * 1000:.1f} ms")
    if stop.boosted:
        lines.append(f"  boosted     {', '.join(stop.boosted)}")
    if stop.processes:
        fates = Counter(process.fate for process in stop.processes)
        lines.append(f"  processes   {', '.join(f'{count} {_FATES.get(fate, fate)}' for fate, count in fates.items())}")
    steps = sorted(stop.steps, key=lambda step: step.at_seconds)
    lines += [f"  {step.at_seconds * 1000:9.1f} ms  {step.what}" for step in steps]
    return "\n".join(lines)


def time(stop: pb.Stop, *, date: bool = False) -> str:
    """When it began, in this machine's time."""
    return datetime.fromtimestamp(stop.started_at).strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S")


def known(stop: pb.Stop, name: str) -> float | None:
    """A figure that may not be there."""
    return float(getattr(stop, name)) if stop.HasField(name) else None
