"""The errors that a user may see.

One line each: what happened, to which thing, what to do about it. The command line prints that line and exits with the
error's ``exit_code``; a traceback never reaches a user. This module imports nothing, so that every other can use it.
"""

from __future__ import annotations

__all__ = ["AlreadySaid", "ExpeditedError", "UsageError"]


class ExpeditedError(Exception):
    """Something that was asked for properly did not work."""

    exit_code = 1


class UsageError(ExpeditedError):
    """What the user typed, configured or annotated is wrong; nothing was done."""

    exit_code = 2


class AlreadySaid(ExpeditedError):
    """Another of our processes has printed its one line about it; what is left is the exit code."""
