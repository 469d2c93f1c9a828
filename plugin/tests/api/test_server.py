"""The control API over its real socket: what is asked, what is answered, and what a wrong question gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from expedited.api.client import ApiClient
from expedited.errors import ExpeditedError, UsageError
from expedited.pb.v1 import expedited_pb2 as pb
from expedited.sighting import Container
from expedited.stop import Stop
from expedited.teardown.policy import Policy


def test_a_strike_reaches_the_agent_with_its_target_and_overrides(agent: Any, client: ApiClient) -> None:
    request = pb.StrikeRequest(pod="shop/web", page_cache="drop", boost="off", deadline_seconds=2.5)

    stops = client.strike(request)

    assert [stop.number for stop in stops] == [7, 8]
    ((target, overrides),) = agent.backend.struck
    assert (target.container_id, target.cgroup, target.pod) == ("", "", "shop/web")
    assert overrides == {"page_cache": "drop", "boost": False, "deadline_seconds": 2.5}
    assert Policy.from_json(overrides).deadline_seconds == 2.5


def test_a_strike_without_overrides_leaves_the_policy_alone(agent: Any, client: ApiClient) -> None:
    client.strike(pb.StrikeRequest(cgroup="/a"))
    assert agent.backend.struck[0][1] == {}


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (pb.StrikeRequest(), "nothing to strike"),
        (pb.StrikeRequest(container_id=" "), "nothing to strike"),
        (pb.StrikeRequest(pod="a/b", page_cache="dorp"), "'dorp': give one of auto, drop, keep"),
        (pb.StrikeRequest(pod="a/b", boost="yes"), "'yes': give one of on, off"),
        (pb.StrikeRequest(pod="a/b", deadline_seconds=-1), "deadline_seconds is -1"),
        (pb.StrikeRequest(pod="a/b", deadline_seconds=float("nan")), "deadline_seconds is nan"),
        (pb.StrikeRequest(container_id="nobody"), "no container's id begins with 'nobody'"),
    ],
)
def test_a_wrong_request_is_a_usage_error_of_one_line_and_strikes_nothing(
    agent: Any, client: ApiClient, request_: pb.StrikeRequest, word: str
) -> None:
    with pytest.raises(UsageError) as caught:
        client.strike(request_)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert agent.backend.struck == []


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        (UsageError("not that"), grpc.StatusCode.INVALID_ARGUMENT, "not that"),
        (ExpeditedError("the striker is gone"), grpc.StatusCode.FAILED_PRECONDITION, "the striker is gone"),
        (KeyError("oops"), grpc.StatusCode.INTERNAL, "the agent failed (KeyError): its log says more"),
    ],
)
def test_each_kind_of_error_has_its_code(agent: Any, fault: Exception, code: grpc.StatusCode, line: str) -> None:
    agent.backend.fault = fault
    with grpc.insecure_channel(f"unix:{agent.path}") as channel:
        strike = channel.unary_unary(
            "/expedited.v1.Expedited/Strike",
            request_serializer=pb.StrikeRequest.SerializeToString,
            response_deserializer=pb.StrikeResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            strike(pb.StrikeRequest(pod="a/b"))
    assert (caught.value.code(), caught.value.details()) == (code, line)


def test_an_error_of_the_agent_is_no_usage_error_for_the_command_line(agent: Any, client: ApiClient) -> None:
    agent.backend.fault = ExpeditedError("the striker is gone")
    with pytest.raises(ExpeditedError, match=r"^the striker is gone$") as caught:
        client.strike(pb.StrikeRequest(pod="a/b"))
    assert caught.value.exit_code == 1


def test_sandboxes_are_listed_only_when_asked_for(
    agent: Any, client: ApiClient, make_container: Callable[..., Container]
) -> None:
    agent.backend.known = [make_container("c1"), make_container("s1", sandbox=True)]
    assert [known.id for known in client.containers()] == ["c1"]
    assert [known.id for known in client.containers(sandboxes=True)] == ["c1", "s1"]


def test_stops_come_the_newest_first_and_no_more_than_the_limit(
    agent: Any, client: ApiClient, make_stop: Callable[..., Stop]
) -> None:
    agent.backend.remembered = [make_stop(number) for number in (1, 2, 3)]
    assert [stop.number for stop in client.stops()] == [3, 2, 1]
    assert [stop.number for stop in client.stops(limit=2)] == [3, 2]


def test_a_memory_larger_than_grpcs_usual_message_arrives_whole(
    agent: Any, client: ApiClient, make_stop: Callable[..., Stop]
) -> None:
    agent.backend.remembered = [make_stop(number, reason="x" * 60_000) for number in range(100)]
    assert len(client.stops()) == 100


def test_who_watches_gets_the_remembered_stops_and_then_each_new_one(
    agent: Any, client: ApiClient, make_stop: Callable[..., Stop]
) -> None:
    agent.backend.remembered = [make_stop(1), make_stop(2)]
    watching = client.watch(replay=True)
    assert [next(watching).number for _ in range(2)] == [1, 2]
    agent.announce(make_stop(3))
    assert next(watching).number == 3
    watching.close()  # type: ignore[attr-defined]


def test_a_watcher_that_goes_is_let_go_of(agent: Any, client: ApiClient, make_stop: Callable[..., Stop]) -> None:
    agent.backend.remembered = [make_stop(1)]
    watching = client.watch(replay=True)
    next(watching)
    watching.close()  # type: ignore[attr-defined]
    assert agent.backend.unwatched.wait(20)
    assert agent.backend.watchers == []


def test_status_is_told_in_full(client: ApiClient) -> None:
    status = client.status()
    assert (status.source, status.source_lost) == ("fanotify", 6)
    assert (status.version, status.nri, status.kernel, status.gate_events) == ("1.2.3", "dialling", "reap-kill", 1000)
    assert [(process.name, process.pid) for process in status.processes] == [("agent", 10), ("striker", 11)]


@pytest.mark.parametrize("service", ["", "expedited.v1.Expedited"])
def test_health_says_serving(agent: Any, service: str) -> None:
    with grpc.insecure_channel(f"unix:{agent.path}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_names_the_service(agent: Any) -> None:
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(f"unix:{agent.path}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([question]))
    assert "expedited.v1.Expedited" in [service.name for service in answer.list_services_response.service]
