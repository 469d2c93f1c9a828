"""``kubectl expedited``: the command line's questions, asked of all nodes at once through the API server."""

from __future__ import annotations

from typing import Any

from expedited.program import run_program

__all__ = ["main"]


def main() -> None:
    """The program ``kubectl-expedited``."""
    run_program("kubectl expedited", _load)


def _load() -> Any:
    from expedited.kubectl.app import app

    return app
