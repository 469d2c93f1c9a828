"""What may be done to one container: the engine's side of the policy, with no idea of where it was written."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

__all__ = ["LONGEST_SECONDS", "Mode", "Order", "PageCache", "Policy"]

#: Of a deadline.
LONGEST_SECONDS = 3600


class Mode(StrEnum):
    """What the agent does when the runtime kills a container, or one ends within its grace period."""

    STRIKE = "strike"  #: tear it down
    OBSERVE = "observe"  #: measure how it goes without, change nothing
    COMPARE = "compare"  #: strike one half of the containers, observe the other
    OFF = "off"  #: neither strike nor measure


class PageCache(StrEnum):
    """What happens to the clean page cache that the container leaves behind."""

    AUTO = "auto"  #: drop it when the pod goes for good, keep it when the container restarts in place
    DROP = "drop"
    KEEP = "keep"


class Order(StrEnum):
    """Who signals first: see docs/decisions/0003-lead-and-follow.md."""

    AUTO = "auto"  #: follow where init is alone in its cgroup and there is a CPU to be had, else lead
    LEAD = "lead"  #: the agent kills and reaps, then lets the runtime's own kill go on
    FOLLOW = "follow"  #: the runtime kills, the agent reaps as soon as that signal is there


@dataclass(frozen=True, slots=True)
class Policy:
    """How one container is torn down.

    Words are as good as members of the enumerations.

    Raises:
        ValueError: a value is none of those that its field takes: a wrong one would be found out in the middle of a strike.

    Attributes:
        min_size_bytes: A container with less anonymous memory than this is not struck at all.
        deadline_seconds: After this long a strike reports what it reached and lets go.
    """

    mode: Mode = Mode.STRIKE
    page_cache: PageCache = PageCache.AUTO
    boost: bool = True
    min_size_bytes: int = 1 << 20
    order: Order = Order.AUTO
    deadline_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, kind in (("mode", Mode), ("page_cache", PageCache), ("order", Order)):
            if type(getattr(self, name)) is not kind:
                object.__setattr__(self, name, kind(getattr(self, name)))
        if type(self.boost) is not bool:
            raise ValueError(f"boost {self.boost!r}: give true or false")
        if type(self.min_size_bytes) is not int or self.min_size_bytes < 0:
            raise ValueError(f"min_size_bytes {self.min_size_bytes!r}: give a whole number of bytes")
        if type(self.deadline_seconds) not in (int, float) or not 0 < self.deadline_seconds <= LONGEST_SECONDS:
            raise ValueError(f"deadline_seconds {self.deadline_seconds!r}: give seconds above 0 and up to an hour")

    def for_container(self, container_id: str) -> Policy:
        """With COMPARE decided for this one.

        By its id, and so for its grace period and its kill alike. Taking turns would give all of one kind the same side, as
        the containers of a pod, its sandbox with them, end in the same order each time.
        """
        if self.mode is not Mode.COMPARE:
            return self
        return replace(self, mode=Mode.OBSERVE if zlib.crc32(container_id.encode()) & 1 else Mode.STRIKE)

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as it travels to the striker."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Policy:
        """The opposite of :meth:`to_json`; fields that are absent keep their defaults.

        Raises:
            ValueError: a value is none of those that the field takes.
            TypeError: a key is no field of a policy, or this is no policy at all.
        """
        if not isinstance(data, dict):
            raise TypeError("a policy is an object with fields")
        return cls(**data)
