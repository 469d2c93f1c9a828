"""What is held of one container in advance of its strike."""

from __future__ import annotations

from typing import NamedTuple

from expedited.teardown.boost import Boost
from expedited.teardown.measure import MemoryWatch
from expedited.teardown.roster import Roster

__all__ = ["Held"]


class Held(NamedTuple):
    """Whoever has it is the only one to use it, and lets go of it: ends the boost, and closes the other two.

    Attributes:
        roster: Its processes.
        boost: What those of them who are dying already were helped by.
        watch: Of its memory.
    """

    roster: Roster
    boost: Boost
    watch: MemoryWatch
