"""What comes over the wire, as bytes that a containerd may send."""

from __future__ import annotations

import json

import pytest
from google.protobuf.any_pb2 import Any

from expedited.containerd import events, records
from expedited.containerd.events import (
    ContainerCreate,
    ContainerDelete,
    TaskDelete,
    TaskExit,
    TaskPaused,
    TaskResumed,
    decode,
)
from expedited.pb.containerd.events import container_pb2, task_pb2
from expedited.pb.containerd.services.containers.v1 import containers_pb2
from expedited.pb.containerd.types import event_pb2
from expedited.pb.containerd.types.task import task_pb2 as types_pb2
from expedited.sighting import State


def enveloped(type_url: str, value: bytes) -> event_pb2.Envelope:
    return event_pb2.Envelope(namespace="moby", topic="/t", event=Any(type_url=type_url, value=value))


def test_an_exit_says_of_which_process_it_is() -> None:
    def exited(process_id: str) -> TaskExit:
        said = task_pb2.TaskExit(container_id="c", id=process_id)
        event = decode(enveloped("containerd.events.TaskExit", said.SerializeToString()))
        assert isinstance(event, TaskExit)
        return event

    assert exited("exec-1") == TaskExit("moby", "c", "exec-1")
    assert not exited("exec-1").is_init
    assert exited("") == exited("c") == TaskExit("moby", "c", "c")
    assert exited("c").is_init


def test_the_end_of_what_was_executed_in_a_container_is_not_the_end_of_its_task() -> None:
    def deleted(process_id: str) -> events.Event | None:
        said = task_pb2.TaskDelete(container_id="c", id=process_id)
        return decode(enveloped("containerd.events.TaskDelete", said.SerializeToString()))

    assert deleted("exec-1") is None
    assert deleted("") == deleted("c") == TaskDelete("moby", "c")


def test_a_pause_its_end_a_creation_and_a_removal_name_the_container() -> None:
    paused = task_pb2.TaskPaused(container_id="c").SerializeToString()
    resumed = task_pb2.TaskResumed(container_id="c").SerializeToString()
    created = container_pb2.ContainerCreate(id="c").SerializeToString()
    removed = container_pb2.ContainerDelete(id="c").SerializeToString()

    assert decode(enveloped("containerd.events.TaskPaused", paused)) == TaskPaused("moby", "c")
    assert decode(enveloped("containerd.events.TaskResumed", resumed)) == TaskResumed("moby", "c")
    assert decode(enveloped("containerd.events.ContainerCreate", created)) == ContainerCreate("moby", "c")
    assert decode(enveloped("containerd.events.ContainerDelete", removed)) == ContainerDelete("moby", "c")


def test_an_event_that_is_not_ours_is_passed_over() -> None:
    assert decode(enveloped("containerd.events.ImageDelete", b"\xff")) is None


def test_an_event_that_is_no_event_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match=r"^containerd's event on /t can't be read: .*$"):
        decode(enveloped("containerd.events.TaskExit", b"\xff\xff"))


@pytest.mark.parametrize("spec", [b"", b"{", b"[]", b'{"linux": 3, "annotations": null}', b"\xff"])
def test_a_spec_that_can_not_be_understood_says_nothing(spec: bytes) -> None:
    record = containers_pb2.Container(id="c", spec=Any(value=spec))

    one = records.read_container(record, "default")

    assert (one.id, one.sandbox, one.sandbox_id, one.annotations) == ("c", False, "", {})


def test_a_sandbox_without_its_metadata_does_not_pretend_that_the_pod_has_no_annotations() -> None:
    spec = {"annotations": {"io.kubernetes.cri.container-type": "sandbox"}}
    record = containers_pb2.Container(id="s", spec=Any(value=json.dumps(spec).encode()))

    one = records.read_container(record, "k8s.io")

    assert (one.sandbox, one.sandbox_id, one.annotations) == (True, "s", None)


def test_a_stopped_task_has_no_pid() -> None:
    stopped = records.read_task(types_pb2.Process(id="c", pid=5, status=types_pb2.STOPPED))

    assert (stopped.container_id, stopped.pid, stopped.state) == ("c", 0, State.STOPPED)
    assert records.read_task(types_pb2.Process(id="c", pid=5, status=types_pb2.PAUSING)).pid == 5
