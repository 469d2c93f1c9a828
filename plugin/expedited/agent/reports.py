"""The strikers' reports, each taken once and in order, whatever was missed or came twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from expedited.agent.striker import StrikerKeeper
from expedited.striker.link import StrikerUnreachable
from expedited.teardown.report import Report

__all__ = ["Reports"]

_NAMES_SECONDS = 2.0
_ASK_AGAIN_SECONDS = 0.5

_log = structlog.get_logger(__name__)


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
        self._left: list[dict[str, Any]] = []  # of a link that was lost before they could be
        self._links = 0
        self._known = 0  # the last of them of which it is known to whom
        self._waited_for_names = False

    def came(self, report: dict[str, Any]) -> None:
        """A striker tells of it, as it happens."""
        if self._news is None:
            self._take_once(report)
        else:
            self._news.append(report)

    def linked(self) -> None:
        """There is a new link, and nothing was heard on it: from now on news wait for what :meth:`catch_up` asks for.

        A striker tells of what ends from the moment that it is connected to, and one report that is taken is, to both sides, the
        end of all before it.
        """
        if self._known == self._links:
            self._left += self._news or []
        self._news = []
        self._links += 1

    async def catch_up(self, started_at: float, names: asyncio.Event | None) -> None:
        """Take the reports that a striker made while nobody listened, then those that came meanwhile.

        Ends without that where the link is lost and there is another, whose own call goes on with it.

        Args:
            started_at: The striker's own start, which tells one from another (the epoch's seconds).
            names: Set when the containers' names are known; without them a report says no more than an id.
        """
        link = self._known = self._links
        self._begin(started_at)
        if not self._waited_for_names and names is not None:
            # Or the reports that our predecessor missed would be of containers whose names nobody knows yet
            with suppress(TimeoutError):
                await asyncio.wait_for(names.wait(), _NAMES_SECONDS)
        self._waited_for_names = True
        more = True
        while link == self._links:
            if not more:
                self.take_rest()
                return
            try:
                answer = await self._striker.ask("reports", after=self._heard_up_to[1])
            except StrikerUnreachable:
                # It is late, or has gone: what waits may only be taken when what came before it is known, or nobody has it
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
                continue
            if link == self._links:
                for report in answer["reports"]:
                    self._take_once(report, is_news=int(report["number"]) > int(answer["heard_up_to"]))
                more = answer["more"]

    def take_rest(self) -> None:
        """Take what waits: what came before it was taken, or will never be had."""
        news, self._left, self._news = self._left + (self._news or []), [], None
        for report in news:
            self._take_once(report)

    def _begin(self, started_at: float) -> None:
        before, _ = self._heard_up_to
        left, self._left = self._left, []
        if before == started_at:
            self._news = left + (self._news or [])
            return
        # Its predecessor has ended for good, and with it whatever came before these
        for report in left:
            self._take_once(report, tell=False)
        self._heard_up_to = (started_at, 0)

    def _take_once(self, data: dict[str, Any], *, is_news: bool = True, tell: bool = True) -> None:
        striker, known = self._heard_up_to
        number = int(data["number"])
        if number <= known:
            return  # came twice: as news, and in what was asked for after a new connection
        self._heard_up_to = (striker, number)
        if is_news and tell:
            # Before it is told of: should we crash now, the next agent tells of it not at all rather than twice
            self._striker.tell("heard", number=number)
        try:
            report = Report.from_json(data)
        except (KeyError, TypeError, ValueError) as problem:
            _log.warning(
                "a stop can't be told of: its report is of another version", number=number, error=repr(problem)
            )
            return
        self._take(report, is_news)
