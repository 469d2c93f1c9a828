"""The log's two forms, its levels, and the story of a stop in it."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from expedited.errors import UsageError
from expedited.log import configure, log_stop
from expedited.stop import Stop
from expedited.teardown.report import Memory, Outcome, Report, Step

_STOP = Stop(
    Report(
        number=4,
        container_id="c1",
        cgroup="/c1",
        trigger="gate:kill",
        mode="strike",
        order="lead",
        outcome=Outcome.STRUCK,
        reason="",
        started_at=0.0,
        before=Memory(1000, 0, 0, 0),
        after=Memory(0, 0, 0, 0),
        signalled_seconds=0.001,
        memory_back_seconds=0.02,
        process_count=3,
        steps=(Step(0.02, "memory back"), Step(0.0, "kill seen"), Step(0.001, "3 signalled")),
    ),
    pod_namespace="shop",
    pod_name="web",
    container_name="nginx",
)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_elsewhere_than_on_a_terminal_each_line_is_json_with_utc_time() -> None:
    stream = io.StringIO()
    configure("info", "auto", stream)
    structlog.get_logger().info("hello", pod="a/b")
    (line,) = _lines(stream)
    assert (line["event"], line["level"], line["pod"]) == ("hello", "info", "a/b")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", line["timestamp"])


def test_on_a_terminal_lines_are_for_people() -> None:
    stream = _Terminal()
    configure("info", "auto", stream)
    structlog.get_logger().info("hello")
    assert "hello" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_console_in_a_file_has_no_colours_and_plain_tracebacks() -> None:
    stream = io.StringIO()
    configure("info", "console", stream)
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.get_logger().exception("it failed")
    assert "\x1b" not in stream.getvalue()
    assert "Traceback (most recent call last):" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("ValueError: bad")


def test_what_is_below_the_level_is_dropped() -> None:
    stream = io.StringIO()
    configure("warning", "json", stream)
    structlog.get_logger().info("no")
    structlog.get_logger().warning("yes")
    assert [line["event"] for line in _lines(stream)] == ["yes"]


def test_the_libraries_warnings_come_in_the_same_form() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("asyncio").exception("task %s failed", 7)
    logging.getLogger("grpc").info("not this")
    (line,) = _lines(stream)
    assert (line["event"], line["level"], line["source"]) == ("task 7 failed", "error", "asyncio")
    assert "ValueError: bad" in line["exception"]


@pytest.mark.parametrize(("level", "form"), [("loud", "json"), ("info", "xml")])
def test_an_unknown_level_or_format_is_a_usage_error(level: str, form: str) -> None:
    with pytest.raises(UsageError, match="give one of"):
        configure(level, form, io.StringIO())


def test_a_stop_is_one_line_with_its_figures() -> None:
    stream = io.StringIO()
    configure("info", "json", stream)
    log_stop(_STOP)
    (line,) = _lines(stream)
    line.pop("timestamp")
    assert line == {
        "event": "stop",
        "level": "info",
        "container": "shop/web/nginx",
        "stop": 4,
        "id": "c1",
        "mode": "strike",
        "trigger": "gate:kill",
        "outcome": "struck",
        "bytes_returned": 1000,
        "memory_back_seconds": 0.02,
        "processes": 3,
        "lost_races": 0,
    }


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.DEADLINE])
def test_a_stop_that_did_not_work_is_a_warning_with_its_reason(outcome: Outcome) -> None:
    stream = io.StringIO()
    configure("warning", "json", stream)
    log_stop(replace(_STOP, report=replace(_STOP.report, outcome=outcome, reason="no permission")))
    (line,) = _lines(stream)
    assert (line["level"], line["reason"]) == ("warning", "no permission")


def test_at_debug_a_stop_is_told_in_time_order() -> None:
    stream = io.StringIO()
    configure("debug", "json", stream)
    log_stop(_STOP)
    lines = _lines(stream)
    assert [line["event"] for line in lines] == ["kill seen", "3 signalled", "memory back", "stop"]
    assert [line["at_seconds"] for line in lines[:-1]] == [0.0, 0.001, 0.02]
    assert {line["container"] for line in lines} == {"shop/web/nginx"}
