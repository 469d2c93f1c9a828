"""What `top` shows of a stop that is under way."""

from __future__ import annotations

import time

import pytest

from expedited.agent.stopping import Stopping


def test_the_first_signal_counts_until_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = Stopping()
    assert stopping.since("c1") is None
    before = time.time()
    stopping.began("c1")
    first = stopping.since("c1")
    assert first is not None
    assert before <= first <= time.time()
    stopping.began("c1")
    assert stopping.since("c1") == first
    stopping.ended("c1")
    stopping.ended("c1")
    assert stopping.since("c1") is None


def test_who_has_lived_on_for_an_hour_is_not_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread dump by SIGQUIT, say; a stop a week later begins anew."""
    stopping = Stopping()
    stopping.began("c1")
    stopping.began("c2")
    later = time.time() + 7 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    assert stopping.since("c1") is None
    stopping.began("c1")
    assert stopping.since("c1") == later
    assert stopping.since("c2") is None
