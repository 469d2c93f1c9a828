"""What an Event says, in words: for whoever looks at a pod and has never heard of us."""

from __future__ import annotations

from collections.abc import Sequence

from expedited.quantity import format_seconds, format_size
from expedited.stop import Stop
from expedited.teardown.report import Outcome

__all__ = ["returned", "slow"]

# Kubernetes takes 1 KiB (kubernetes pkg/apis/core/validation, events.k8s.io's note)
_LONGEST = 1000
_NAMED_AT_MOST = 6


def returned(stops: Sequence[Stop]) -> str:
    """That the memory of these containers of one pod is back, and how soon."""
    total = format_size(sum(stop.report.bytes_returned for stop in stops))
    times = [stop.report.memory_back_seconds for stop in stops if stop.report.memory_back_seconds is not None]
    outcomes = {stop.report.outcome for stop in stops}
    by_themselves = outcomes & {Outcome.EXITED, Outcome.WATCHED}
    since = (
        "the kill" if not by_themselves else "the end was seen" if by_themselves == outcomes else "the kill or the end"
    )
    when = f" {format_seconds(max(times))} after {since}" if times else ""
    cache = sum(stop.report.page_cache_dropped_bytes for stop in stops)
    also = f", and {format_size(cache)} of page cache" if cache else ""
    whose = ""
    if outcomes <= {Outcome.OBSERVED, Outcome.WATCHED}:
        whose = "; observed only" if by_themselves else "; the runtime's own kill, observed only"
    if len(stops) == 1:
        return _cut(f"{stops[0].container_name or 'sandbox'}: {total} of memory back{when}{also}{whose}")
    within = when.replace(" after", " or less after", 1)
    return _cut(f"{len(stops)} stops: {total} of memory back{within}{also}{whose} ({_each(stops)})")


def slow(stops: Sequence[Stop]) -> str:
    """That something of these containers was still there at the deadline."""
    back, held = 0, 0
    for stop in stops:
        back += stop.report.bytes_returned
        held += stop.report.before.anon_bytes if stop.report.before else 0
    pod = f"{stops[0].pod_namespace}/{stops[0].pod_name}"
    names = ", ".join(dict.fromkeys(stop.container_name or "sandbox" for stop in stops))
    return _cut(
        f"{names}: not gone by the strike's deadline, {format_size(back)} of {format_size(held)} of memory back: "
        f"see `kubectl expedited why {pod}`"
    )


def _each(stops: Sequence[Stop]) -> str:
    largest = sorted(stops, key=lambda stop: -stop.report.bytes_returned)
    told = [
        f"{stop.container_name or 'sandbox'} {format_size(stop.report.bytes_returned)} "
        f"in {format_seconds(stop.report.memory_back_seconds)}"
        for stop in largest[:_NAMED_AT_MOST]
    ]
    more = len(stops) - len(told)
    return ", ".join(told) + (f", and {more} more" if more > 0 else "")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
