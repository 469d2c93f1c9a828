"""The command line: ``expedited run | kill | stops | top | status | doctor | demo | bench``."""

from __future__ import annotations

from typing import Any

from expedited.program import run_program

__all__ = ["main"]


def main() -> None:
    """The program ``expedited``."""
    run_program("expedited", _load)


def _load() -> Any:
    from expedited.cli.app import app

    return app
