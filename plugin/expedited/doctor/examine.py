"""The whole examination, in the order in which it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from expedited.doctor.capabilities import look as look_at_capabilities
from expedited.doctor.cgroups import look as look_at_cgroups
from expedited.doctor.finding import Area, Finding, Level
from expedited.doctor.kernel import look as look_at_kernel
from expedited.doctor.ours import look as look_at_ours
from expedited.doctor.permission_events import look as look_at_permission_events
from expedited.doctor.process import look as look_at_process
from expedited.doctor.runtime import look as look_at_runtime
from expedited.settings import AgentSettings

__all__ = ["examine"]


def examine(settings: AgentSettings, config: Path | None = None) -> tuple[Finding, ...]:
    """Look at everything that the agent depends on, in about a second, and leave nothing behind.

    Works for every user; what one may not see is found UNKNOWN.

    Args:
        settings: What `expedited run` would run with.
        config: The configuration file that was named by a flag, if one was.
    """
    looks: tuple[tuple[Area, Callable[[], Iterator[Finding]]], ...] = (
        (Area.KERNEL, look_at_kernel),
        (Area.KERNEL, look_at_permission_events),
        (Area.CGROUPS, look_at_cgroups),
        (Area.PROCESS, look_at_capabilities),
        (Area.PROCESS, look_at_process),
        (Area.RUNTIME, lambda: look_at_runtime(settings)),
        (Area.OURS, lambda: look_at_ours(settings, config)),
    )
    findings: list[Finding] = []
    for area, look in looks:
        findings += _guarded(area, look)
    # A stable sort: what belongs together is read together
    return tuple(sorted(findings, key=lambda finding: list(Area).index(finding.area)))


def _guarded(area: Area, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What ``look`` finds, and where a machine surprises it, that: one odd file must not hide everything else."""
    try:
        yield from look()
    except Exception as error:
        yield Finding(
            area,
            "examination",
            f"broken off: {type(error).__name__}: {error}",
            Level.UNKNOWN,
            "what was still to be looked at here is not known",
            "please report it, with this line",
        )
