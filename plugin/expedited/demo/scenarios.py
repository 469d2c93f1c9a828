"""The scenarios, and what a comparison of stock and expedited stops comes to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

__all__ = ["SCENARIOS", "Comparison", "Pair", "Scenario", "Stop"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of container and of node.

    Attributes:
        about: One line for the reader of the table.
        bytes_each: Anonymous memory of each process, 4 KiB pages.
        children: Processes below init, in its pid namespace.
        threads: In each process, that burn CPU; the rest sleeps.
        quota_us: CPU quota per 100,000 us; 0: none. Set when the memory is there: filling it would take minutes.
        rounds: Times as many pairs as were asked for: where the difference is small, the median needs more of them.
        contended: Whether the parent cgroup has the lowest weight, beside busy loops.
        grace_seconds: Of its stops. With one, they begin with a SIGTERM, and it exits when that reaches it.
        usual: Whether it is shown to who asks for none by name.
    """

    name: str
    about: str
    bytes_each: int
    children: int = 0
    threads: int = 0
    quota_us: int = 0
    rounds: int = 1
    contended: bool = False
    grace_seconds: int = 0
    usual: bool = True

    @property
    def bytes(self) -> int:
        """Of all its processes."""
        return self.bytes_each * (1 + self.children)

    @property
    def command(self) -> tuple[str, ...]:
        """What the container runs."""
        numbers = {"--bytes": self.bytes_each, "--children": self.children, "--threads": self.threads}
        return ("/hog", *(word for flag, number in numbers.items() for word in (flag, str(number))))


# idle and contended hold the same, so that the one may be held against the other. In contended a thread is at work, as in
# a container that wants more CPU than it gets: one that slept until its SIGKILL now and then has enough credit with the
# scheduler to be gone within its first turn, and at other times not, so that no two runs are alike.
SCENARIOS = (
    Scenario("idle", "one process, idle node", 512 * _MIB, rounds=3),
    Scenario("tree", "init and 3 children in a pid namespace, idle node", 256 * _MIB, children=3, rounds=3),
    Scenario("limited", "the same at 5% of a core", 256 * _MIB, children=3, quota_us=5000),
    Scenario(
        "contended",
        "one process, at work; its parent cgroup has the lowest weight, beside two busy loops a core",
        512 * _MIB,
        threads=1,
        contended=True,
    ),
    Scenario(
        "graceful",
        "the same, asleep, and it obeys its SIGTERM: nobody kills it",
        512 * _MIB,
        contended=True,
        grace_seconds=60,
        usual=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Stop:
    """One measured stop. Seconds count from the StopContainer call.

    Attributes:
        memory_back_seconds: Until 95% of the anonymous memory was free.
        gone_seconds: Until the cgroup was empty or removed.
        capped: Whether it was not over when the patience was: then the seconds are that, and really more.
    """

    anon_bytes: int
    memory_back_seconds: float
    gone_seconds: float
    exit_code: int
    capped: bool = False

    def to_json(self) -> dict[str, object]:
        """As the demo's JSON has it."""
        return {
            "memory_back_s": round(self.memory_back_seconds, 6),
            "gone_s": round(self.gone_seconds, 6),
            "exit_code": self.exit_code,
            "capped": self.capped,
        }


@dataclass(frozen=True, slots=True)
class Pair:
    """A stock stop and an expedited one, right after each other."""

    stock: Stop
    expedited: Stop

    @property
    def ratio(self) -> float:
        """How many times sooner the expedited one had the memory back."""
        return self.stock.memory_back_seconds / self.expedited.memory_back_seconds


@dataclass(frozen=True, slots=True)
class Comparison:
    """All the pairs of one scenario, at least one."""

    scenario: Scenario
    pairs: tuple[Pair, ...]

    @property
    def stock(self) -> Stop:
        """The medians of the stock stops."""
        return _median([pair.stock for pair in self.pairs])

    @property
    def expedited(self) -> Stop:
        """The medians of the expedited stops."""
        return _median([pair.expedited for pair in self.pairs])

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios: what changes from minute to minute on a machine hits both of a pair."""
        return statistics.median(pair.ratio for pair in self.pairs)

    def to_json(self) -> dict[str, object]:
        """As the demo's JSON has it."""
        return {
            "name": self.scenario.name,
            "bytes": self.expedited.anon_bytes,
            "stock": self.stock.to_json(),
            "expedited": self.expedited.to_json(),
            "ratio": round(self.ratio, 3),
            "pairs": [
                {"stock": pair.stock.to_json(), "expedited": pair.expedited.to_json(), "ratio": round(pair.ratio, 3)}
                for pair in self.pairs
            ],
        }


def _median(stops: list[Stop]) -> Stop:
    return Stop(
        anon_bytes=int(statistics.median(stop.anon_bytes for stop in stops)),
        memory_back_seconds=statistics.median(stop.memory_back_seconds for stop in stops),
        gone_seconds=statistics.median(stop.gone_seconds for stop in stops),
        # Most of them; if they differ, the pairs in the JSON have each
        exit_code=statistics.mode(stop.exit_code for stop in stops),
        capped=any(stop.capped for stop in stops),
    )
