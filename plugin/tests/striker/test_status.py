"""The striker's status, as it travels and as it is read: by the same version, an older and a newer one."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from expedited.striker.latency import BOUNDS_SECONDS
from expedited.striker.link import StrikerLink
from expedited.striker.status import StrikerStatus

_FULL = StrikerStatus(
    version="1.2.3",
    pid=11,
    supervisor_pid=10,
    started_at=1_700_000_000.5,
    source="fanotify",
    kernel="stock",
    realtime=True,
    memory_locked=True,
    gated=("c1", "c2"),
    gated_beyond=3,
    binaries=("/usr/bin/runc",),
    events=9,
    kills=2,
    executions=5,
    overruns=1,
    lost=3,
    restarts=4,
    latency_p50_us=40.5,
    latency_p99_us=200.0,
    latency_counts=(1,) * (len(BOUNDS_SECONDS) + 1),
    latency_sum_seconds=0.25,
    active=1,
    stops=7,
    wanted_source="auto",
    budget_seconds=0.05,
    state_roots=("/run/runc",),
    log_format="json",
)


def test_it_comes_back_as_it_went() -> None:
    assert StrikerStatus.from_json(json.loads(json.dumps(_FULL.to_json()))) == _FULL
    assert StrikerStatus.from_json(StrikerStatus().to_json()) == StrikerStatus()


@pytest.mark.parametrize("name", [field.name for field in fields(StrikerStatus)])
def test_what_an_older_striker_does_not_tell_is_as_if_there_were_none(name: str) -> None:
    told = _FULL.to_json()
    del told[name]
    read = StrikerStatus.from_json(told)
    assert getattr(read, name) == getattr(StrikerStatus(), name)
    for other in told:
        assert getattr(read, other) == getattr(_FULL, other)


def test_what_a_newer_striker_tells_as_well_is_passed_over() -> None:
    assert StrikerStatus.from_json({"is": "status", "seq": 1, "pressure": {"some": 0.5}, **_FULL.to_json()}) == _FULL


@pytest.mark.parametrize("buckets", [(), (5, 3), (1,) * (len(BOUNDS_SECONDS) + 2)])
def test_counts_by_other_buckets_than_ours_are_no_counts(buckets: tuple[int, ...]) -> None:
    assert StrikerStatus.from_json({**_FULL.to_json(), "latency_counts": list(buckets)}).latency_counts == ()


def test_more_containers_than_one_packet_could_name(node: Any, make_striker: Any) -> None:
    names = sorted(f"{number:064x}" for number in range(5000))
    for name in names:
        (node.namespace / name).mkdir()
    with StrikerLink.connect(make_striker().socket) as link:
        status = link.status()
        assert status.gated_count == len(names)
        told = list(status.gated)
        while len(told) < len(names):
            answer = link.ask("gated", after=told[-1])
            assert answer["more"] is (len(told) + len(answer["ids"]) < len(names))
            told += answer["ids"]
    assert told == names


def test_names_that_fill_a_packet_by_themselves_are_told_one_after_the_other(node: Any, make_striker: Any) -> None:
    names = sorted(f"{number:03}" + "\N{SNOWMAN}" * 80 for number in range(400))  # 500 bytes each, as JSON has them
    for name in names:
        (node.namespace / name).mkdir()
    with StrikerLink.connect(make_striker().socket) as link:
        status = link.status()
        assert (status.gated_count, status.gated) == (len(names), tuple(names[: len(status.gated)]))
        assert 0 < len(status.gated) < len(names)


def test_only_a_gate_holds() -> None:
    assert StrikerStatus(source="fanotify").holds
    assert not StrikerStatus(source="proc-connector").holds


def test_a_striker_tells_every_field_and_its_link_reads_it(striker: Any) -> None:
    told = striker.status()
    assert told.keys() - {"is", "seq"} == {field.name for field in fields(StrikerStatus)}
    with StrikerLink.connect(striker.socket) as link:
        read = link.status()
    assert (read.pid, read.version, read.started_at) == (told["pid"], told["version"], told["started_at"])
    assert read.holds
    assert len(read.latency_counts) == len(BOUNDS_SECONDS) + 1
