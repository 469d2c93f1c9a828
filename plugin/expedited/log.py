"""The log: readable lines on a terminal, JSON lines elsewhere; and how a stop is told in it.

``import structlog`` imports rich where it is installed, for tracebacks that are not used here. The resident agent can't
afford that, and keeps rich out (``sys.modules.setdefault("rich", None)``) before it imports this module.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from expedited.errors import UsageError
from expedited.stop import Stop
from expedited.teardown.report import Outcome

__all__ = ["configure", "log_stop"]

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_FORMATS = ("auto", "console", "json")
_NOT_AS_WANTED = (Outcome.FAILED, Outcome.DEADLINE)

_log = structlog.get_logger(__name__)


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:  # noqa: A002
    """Send the log of the whole process, the libraries' warnings too, to one stream.

    Args:
        level: debug, info, warning or error: what is less is dropped.
        format: ``console``, ``json``, or ``auto``: console on a terminal, else JSON.
        stream: Where to; stderr, if not said.

    Raises:
        UsageError: an unknown level or format.
    """
    if level not in _LEVELS:
        raise UsageError(f"log_level is {level!r}: give one of {', '.join(_LEVELS)}")
    if format not in _FORMATS:
        raise UsageError(f"log_format is {format!r}: give one of {', '.join(_FORMATS)}")
    target = _Lossy(sys.stderr if stream is None else stream)
    console = format == "console" or (format == "auto" and target.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_console(colors=target.isatty()) if console else _json()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(target),  # type: ignore[arg-type]  # writes and flushes, no more
    )
    # asyncio and gRPC tell of their trouble through the standard library
    logging.basicConfig(level=logging.WARNING, handlers=[_Handover()], force=True)


def log_stop(stop: Stop) -> None:
    """Tell of one finished stop: its steps in time order for those who debug, then one line of what came of it."""
    report = stop.report
    log = _log.bind(container=stop.label, stop=report.number)
    for step in sorted(report.steps, key=lambda step: step.at_seconds):
        log.debug(step.what, at_seconds=round(step.at_seconds, 6))
    facts: dict[str, Any] = {
        "id": report.container_id,
        "mode": report.mode,
        "trigger": report.trigger,
        "outcome": report.outcome.value,
        "reason": report.reason,
        "bytes_returned": report.bytes_returned,
        "memory_back_seconds": report.memory_back_seconds,
        "gone_seconds": report.gone_seconds,
        "processes": report.process_count,
        "lost_races": report.lost_races,
    }
    tell = log.warning if report.outcome in _NOT_AS_WANTED else log.info
    # What was not measured, or needs no reason, is no news
    tell("stop", **{name: fact for name, fact in facts.items() if fact not in ("", None)})


def _console(*, colors: bool) -> tuple[Processor, ...]:
    return (structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),)


def _json() -> tuple[Processor, ...]:
    return (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str))


class _Lossy:
    """A stream on which a line is lost where nobody reads it any more, or the disk is full: that must not be the agent's end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


class _Handover(logging.Handler):
    """Gives the standard library's records to structlog, so that there is one form and one stream."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        _log.log(level, record.getMessage(), source=record.name, exc_info=record.exc_info)
