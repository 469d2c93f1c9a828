from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expedited.annotations import PREFIX, TERMS, resolve
from expedited.quantity import parse_seconds, parse_size
from expedited.teardown.policy import Mode, Order, PageCache, Policy

BASE = Policy(mode=Mode.COMPARE, min_size_bytes=5)


def said(annotations: dict[str, str], container: str = "main") -> Policy:
    resolution = resolve(annotations, BASE, pod="web/shop", container=container)
    assert resolution.problems == ()
    return resolution.policy


def test_without_annotations_the_base_holds() -> None:
    assert said({}) == BASE
    assert said({"kubectl.kubernetes.io/restartedAt": "now", "expedited.io.example/mode": "x"}) == BASE


def test_every_field_of_a_policy_can_be_annotated() -> None:
    assert {term.field for term in TERMS.values()} == set(Policy.__dataclass_fields__)
    annotations = {
        "expedited.io/mode": "observe",
        "expedited.io/page-cache": "drop",
        "expedited.io/boost": "off",
        "expedited.io/min-size": "64Mi",
        "expedited.io/order": "lead",
        "expedited.io/deadline": "90s",
    }
    assert said(annotations) == Policy(Mode.OBSERVE, PageCache.DROP, False, 64 << 20, Order.LEAD, 90.0)


def test_what_is_not_annotated_stays_as_the_base_has_it() -> None:
    assert said({"expedited.io/order": "follow"}) == replace(BASE, order=Order.FOLLOW)


def test_a_containers_own_annotation_wins_and_is_for_it_alone() -> None:
    annotations = {"expedited.io/mode": "observe", "expedited.io/mode.main": "strike", "expedited.io/boost.side": "off"}

    assert said(annotations) == replace(BASE, mode=Mode.STRIKE)
    assert said(annotations, "side") == replace(BASE, mode=Mode.OBSERVE, boost=False)
    assert said(annotations, "") == replace(BASE, mode=Mode.OBSERVE)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        (
            "mode",
            "strik",
            "annotation expedited.io/mode takes strike, observe, compare or off, not 'strik'; did you mean strike?",
        ),
        ("mode", "", "annotation expedited.io/mode takes strike, observe, compare or off, not ''"),
        ("mode.side", "no", "annotation expedited.io/mode.side takes strike, observe, compare or off, not 'no'"),
        ("boost", "yes", "annotation expedited.io/boost takes on or off, not 'yes'"),
        ("min-size", "64MB", "annotation expedited.io/min-size takes a size such as 512Ki, 64Mi or 1G, not '64MB'"),
        (
            "deadline",
            "0",
            "annotation expedited.io/deadline takes a time above zero such as 30, 30s, 500ms or 2m, up to an hour, not '0'",
        ),
        (
            "pagecache",
            "drop",
            "no annotation is called expedited.io/pagecache; did you mean expedited.io/page-cache?",
        ),
        (
            "zzz",
            "drop",
            "no annotation is called expedited.io/zzz; there are expedited.io/mode, page-cache, boost, min-size, order and deadline",
        ),
        ("mode.", "off", "no annotation is called expedited.io/mode.; did you mean expedited.io/mode?"),
    ],
)
def test_what_is_not_understood_leaves_the_pod_alone_and_is_one_line(key: str, value: str, problem: str) -> None:
    annotations = {PREFIX + key: value, "expedited.io/order": "lead", "expedited.io/mode.main": "strike"}
    if key == "mode.side":
        annotations.pop("expedited.io/mode.main")

    resolution = resolve(annotations, BASE, pod="web/shop", container="main")

    assert resolution.policy == replace(BASE, mode=Mode.OFF)
    assert resolution.problems == (f"pod web/shop is left alone: {problem}",)


def test_every_problem_is_told() -> None:
    problems = resolve({"expedited.io/mode": "x", "expedited.io/boost": "y"}, BASE, pod="a/b").problems

    assert ["boost" in problems[0], "mode" in problems[1]] == [True, True]


def test_a_line_stays_short_whatever_was_annotated() -> None:
    annotations = {"expedited.io/mode": "x" * 200_000, f"expedited.io/{'y' * 200_000}": "\n"}

    for problem in resolve(annotations, BASE, pod="a/b").problems:
        assert len(problem) < 300
        assert "\n" not in problem


@given(st.text(), st.text())
def test_no_text_is_a_crash_or_a_strike_that_nobody_asked_for(key: str, value: str) -> None:
    base = Policy(mode=Mode.OFF)

    resolution = resolve({PREFIX + key: value}, base, pod="a/b")

    assert resolution.policy.mode is Mode.OFF or (key, value) in {("mode", mode.value) for mode in Mode}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("1k", 1000),
        ("1Ki", 1024),
        ("64Mi", 64 << 20),
        ("1.5Gi", 3 << 29),
        (".5Ki", 512),
        ("1.", 1),
        ("1e6", 10**6),
        ("1.048576e+06", 1 << 20),
        ("1E", 10**18),
        ("1E2", 100),
        ("0.1", 1),
        (" 2M ", 2 * 10**6),
    ],
)
def test_a_size_is_a_kubernetes_quantity_rounded_up(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1 Mi", "1MB", "1mi", "1K", "100m", "1e999", "9Ei", "٣", "1_000"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size such as|is more than any machine has"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30.0), ("30s", 30.0), ("1.5", 1.5), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0)]
)
def test_a_time_is_seconds_or_has_its_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "inf", "nan", "1d", "1e3", "9" * 400, "s"])
def test_what_is_no_time_above_zero_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time above zero"):
        parse_seconds(text)
