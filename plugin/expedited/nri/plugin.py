"""The NRI plugin: who it is, and whom it tells."""

from __future__ import annotations

import re

from expedited.errors import UsageError
from expedited.nri.handlers import Handlers
from expedited.nri.session import Session

__all__ = ["NriPlugin"]


class NriPlugin:
    """One plugin. It may be connected again and again, to one runtime at a time: see :func:`~expedited.nri.connect.serve`.

    Args:
        handlers: Who is told.
        name: Letters, digits and ``_.+-``.
        idx: Two digits; a runtime calls its plugins in ascending order.

    Raises:
        UsageError: a runtime would not take that name or index.
    """

    def __init__(self, handlers: Handlers, *, name: str = "expedited", idx: str = "10") -> None:
        self.handlers = handlers
        self.identify(name, idx)

    def identify(self, name: str, idx: str) -> None:
        """Take another name and index, from the next connection on.

        Raises:
            UsageError: a runtime would not take them (nri pkg/api/plugin.go).
        """
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
            raise UsageError(f"NRI takes no plugin called {name!r}: use letters, digits and _.+- only")
        if not re.fullmatch(r"[0-9]{2}", idx):
            raise UsageError(f"NRI takes no plugin with the index {idx!r}: use two digits, such as 10")
        self.name, self.idx = name, idx

    def open(self) -> Session:
        """Both ends of our side for one connection: connect its ``mux``, then run it. Needs a running event loop."""
        return Session(self.handlers, self.name, self.idx)
