"""The strikers' reports, each taken once and in order, whatever was missed or came twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from expedited.agent.striker import StrikerKeeper
from expedited.teardown.report import Report

__all__ = ["Reports"]

_NAMES_SECONDS = 2.0


class Reports:
    """Takes the reports of one striker after another. Used from one event loop.

    Args:
        striker: Whom to ask for those that nobody heard.
        take: Called with each report, and whether it is news: a striker that outlived another agent has told that one of some.
    """

    def __init__(self, striker: StrikerKeeper, take: Callable[[Report, bool], None]) -> None:
        self._striker = striker
        self._take = take
        self._heard_up_to = (0.0, 0)  # which striker (its start), and the number of its last report
        self._news: list[dict[str, Any]] | None = None  # what came while older ones are being asked for

    def came(self, report: dict[str, Any]) -> None:
        """A striker tells of it, as it happens."""
        if self._news is None:
            self._take_once(report)
        else:
            self._news.append(report)

    def connected(self) -> None:
        """From now on news wait for what :meth:`catch_up` asks for."""
        self._news = []

    async def catch_up(self, started_at: float, names: asyncio.Event | None) -> None:
        """Take the reports that a striker made while nobody listened, then those that came meanwhile.

        Args:
            started_at: The striker's own start, which tells one from another (the epoch's seconds).
            names: Set when the containers' names are known; without them a report says no more than an id.
        """
        before, number = self._heard_up_to
        after = number if before == started_at else 0
        self._heard_up_to = (started_at, after)
        try:
            if not before and names is not None:
                # Or the reports that our predecessor missed would be of containers whose names nobody knows yet
                with suppress(TimeoutError):
                    await asyncio.wait_for(names.wait(), _NAMES_SECONDS)
            more = True
            while more:
                answer = await self._striker.ask("reports", after=after)
                for report in answer["reports"]:
                    after = int(report["number"])
                    self._take_once(report, is_news=after > int(answer["heard_up_to"]))
                more = answer["more"]
        finally:
            news, self._news = self._news or [], None
            for report in news:
                self._take_once(report)

    def _take_once(self, data: dict[str, Any], *, is_news: bool = True) -> None:
        striker, known = self._heard_up_to
        number = int(data["number"])
        if number <= known:
            return  # came twice: as news, and in what was asked for after a new connection
        self._heard_up_to = (striker, number)
        if is_news:
            # Before it is told of: should we crash now, the next agent tells of it not at all rather than twice
            self._striker.tell("heard", number=number)
        self._take(Report.from_json(data), is_news)
