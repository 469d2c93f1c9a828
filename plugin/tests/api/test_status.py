"""What `expedited status` makes of what the API says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from expedited.cli.status import show_status
from expedited.settings import AgentSettings


@pytest.fixture
def settings(agent: Any) -> AgentSettings:
    return AgentSettings(run_dir=str(agent.path.parent))


def _source(agent: Any, settings: AgentSettings, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """Its line about the source."""
    agent.backend.told = replace(agent.backend.told, **changes)
    assert show_status(settings, as_json=False) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("source "))
    return line.removeprefix("source ").strip()


def test_events_that_the_kernel_dropped_are_told_with_what_that_means(
    agent: Any, settings: AgentSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    observer = "proc-connector: degraded, kills are followed and not held"
    lost = "events lost 6 times, and kills among them not seen"
    assert _source(agent, settings, capsys, source="proc-connector", source_lost=6) == f"{observer}; {lost}"
    assert _source(agent, settings, capsys, source="proc-connector", source_lost=0) == observer
    assert _source(agent, settings, capsys, source="fanotify", source_lost=6) == f"fanotify; {lost}"


@pytest.mark.parametrize("source", ["fanotify", ""])
def test_a_source_that_lost_nothing_is_its_name_alone(
    agent: Any, settings: AgentSettings, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    assert _source(agent, settings, capsys, source=source, source_lost=0) == source


def test_json_has_the_number(agent: Any, settings: AgentSettings, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_status(settings, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["source"], said["source_lost"]) == ("fanotify", 6)
