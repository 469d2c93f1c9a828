"""What the agent knows, as messages and as plain data."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from expedited.api.convert import container_to_pb, stop_to_pb, to_plain
from expedited.cli.tables import held
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.sighting import Container, State
from expedited.stop import Stop
from expedited.teardown.report import Outcome


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"before": None, "after": None},
        {"memory_back_seconds": None, "gone_seconds": None, "lead_seconds": None},
        {"outcome": Outcome.FAILED, "reason": "no such process", "processes": (), "steps": (), "boosted": ()},
    ],
)
def test_a_stop_arrives_as_it_went(make_stop: Callable[..., Stop], changes: dict[str, Any]) -> None:
    stop = make_stop(**changes)
    wire = pb.Stop.FromString(stop_to_pb(stop).SerializeToString())
    # Everything that a report says, by the same names, and nothing besides
    said = {
        **json.loads(json.dumps(stop.report.to_json())),
        "bytes_returned": stop.report.bytes_returned,
        "pod": {"uid": "uid-1", "namespace": "shop", "name": "web"},
        "container_name": "nginx",
    }
    assert to_plain(wire) == said


def test_a_stop_without_a_pod_has_none(make_stop: Callable[..., Stop]) -> None:
    message = stop_to_pb(replace(make_stop(), pod_uid="", pod_name="", pod_namespace=""))
    assert not message.HasField("pod")


def test_what_was_gained_travels_too(make_stop: Callable[..., Stop]) -> None:
    message = stop_to_pb(make_stop())
    assert (message.bytes_returned, message.lost_races) == (8 << 30, 1)


def test_a_container_that_is_gone_holds_nothing(make_container: Callable[..., Container]) -> None:
    message = container_to_pb(make_container("c1", pid=2**22 + 1))  # no kernel has that many
    assert to_plain(message.memory) == {"anon_bytes": 0, "file_bytes": 0, "shmem_bytes": 0, "swap_bytes": 0}
    assert (message.state, message.gated, message.pod.name, message.cgroup) == ("running", True, "web", "")
    assert (message.policy.mode, message.policy.deadline_seconds) == ("strike", 30.0)


def test_what_the_striker_alone_knows_has_no_memory_that_is_known(make_container: Callable[..., Container]) -> None:
    known = make_container("c1")
    message = container_to_pb(replace(known, seen=replace(known.seen, state=State.UNKNOWN)))
    assert not message.HasField("memory")
    assert held(message, "anon_bytes") == "-"


def test_a_containers_memory_is_what_its_cgroup_holds(
    make_container: Callable[..., Container], make_cgroup: Callable[[], Any]
) -> None:
    cgroup = make_cgroup()
    code = "import sys; sys.stdin.readline(); kept = b'x' * (32 << 20); print('kept', flush=True); sys.stdin.readline()"
    with subprocess.Popen(["python3", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        cgroup.add(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "kept\n"
        message = container_to_pb(make_container("c1", pid=process.pid))
        process.kill()
    assert message.cgroup == cgroup.path
    assert message.memory.anon_bytes >= 0.95 * (32 << 20)  # the counter may lag


def test_plain_data_keeps_names_and_numbers_and_says_none_for_unknown(make_stop: Callable[..., Stop]) -> None:
    plain = json.loads(json.dumps(to_plain(stop_to_pb(make_stop(after=None)))))
    assert plain["before"]["anon_bytes"] == 8 << 30
    assert plain["after"] is None
    assert plain["answered_seconds"] is None
    assert plain["gone_seconds"] == 0.0
    assert plain["reason"] == ""
    assert plain["boosted"] == ["rt", "quota"]
    assert plain["processes"][1] == {"pid": 6, "rss_bytes": None, "fate": "lost_race"}
    assert plain["pod"] == {"uid": "uid-1", "namespace": "shop", "name": "web"}
