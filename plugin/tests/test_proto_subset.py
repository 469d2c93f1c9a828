"""Our .proto files are a subset of upstream's: whatever is in ours is there, under the same name, number and type."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
CHECKER = ROOT / "deploy" / "proto-check"
KINDS = ("messages", "enums", "services")
Contract = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def upstream() -> Contract:
    """What the Go modules say, kept for as long as neither the program nor the versions it pins change."""
    digest = hashlib.sha256()
    for name in ("main.go", "go.mod", "go.sum"):
        digest.update((CHECKER / name).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expedited" / "proto-check"
    kept = cache / f"{digest.hexdigest()[:24]}.json"
    if not kept.exists():
        go = shutil.which("go")
        if go is None:
            pytest.fail(f"upstream's contracts come from Go modules: install go ({CHECKER}/go.mod says which version)")
        made = subprocess.run([go, "run", "."], cwd=CHECKER, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        cache.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(f".{os.getpid()}")
        fresh.write_text(made.stdout)
        fresh.rename(kept)
    contract: Contract = json.loads(kept.read_text())
    return contract


def compiled(proto: Path, scratch: Path) -> Contract:
    """The contracts of a tree of .proto files, in the shape that the Go program prints; our own API is left out.

    google.rpc has another name with us (its file says why), so it is given back the name that upstream knows.
    """
    target = scratch / "set.bin"
    sources = [f"expedited/pb/{path.relative_to(proto)}" for path in sorted(proto.rglob("*.proto"))]
    well_known = Path(protoc.__file__).with_name("_proto")
    paths = [f"--proto_path=expedited/pb={proto}", f"--proto_path={well_known}"]
    assert protoc.main(["protoc", *paths, f"--descriptor_set_out={target}", *sources]) == 0
    contract: Contract = {kind: {} for kind in KINDS}
    for file in FileDescriptorSet.FromString(target.read_bytes()).file:
        if upstreams_name(file.package) is not None:
            add_file(contract, file)
    return contract


def upstreams_name(ours: str) -> str | None:
    """What upstream calls a package or a type; None if it is ours alone."""
    name = ours.lstrip(".")
    if name.startswith("expedited.google.rpc"):
        return name.removeprefix("expedited.")
    return None if name.startswith("expedited.") else name


def add_file(contract: Contract, file: FileDescriptorProto) -> None:
    package = upstreams_name(file.package)
    add_types(contract, f"{package}", file.message_type, file.enum_type)
    for service in file.service:
        contract["services"][f"{package}.{service.name}"] = {
            method.name: {
                "input": method.input_type.lstrip("."),
                "output": method.output_type.lstrip("."),
                "client_streaming": method.client_streaming,
                "server_streaming": method.server_streaming,
            }
            for method in service.method
        }


def add_types(contract: Contract, prefix: str, messages: Any, enums: Any) -> None:
    for enum in enums:
        contract["enums"][f"{prefix}.{enum.name}"] = {value.name: value.number for value in enum.value}
    for message in messages:
        name = f"{prefix}.{message.name}"
        contract["messages"][name] = {
            field.name: {
                "number": field.number,
                "label": FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower(),
                "type": upstreams_name(field.type_name)
                or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower(),
                "oneof": message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "",
            }
            for field in message.field
        }
        add_types(contract, name, message.nested_type, message.enum_type)


def differences(ours: Contract, theirs: Contract) -> list[str]:
    """One line for each thing of ours that upstream has not, or has otherwise."""
    found = []
    for kind in KINDS:
        for name, parts in ours[kind].items():
            if name not in theirs[kind]:
                found.append(f"{kind}: {name} is not upstream's")
                continue
            for part, said in parts.items():
                known = theirs[kind][name].get(part)
                if known != said:
                    found.append(f"{name}.{part}: ours {said}, upstream's {known}")
    return found


@pytest.mark.timeout(600)
def test_every_contract_of_ours_is_in_upstreams_under_the_same_names_numbers_and_types(
    upstream: Contract, tmp_path: Path
) -> None:
    ours = compiled(PROTO, tmp_path)

    assert differences(ours, upstream) == []
    # A tree that was not found would pass too.
    assert "containerd.services.events.v1.Events" in ours["services"]
    assert "runtime.v1.RuntimeService" in ours["services"]
    assert {"nri.pkg.api.v1alpha1.Plugin", "nri.pkg.api.v1alpha1.Runtime"} <= ours["services"].keys()
    assert {"ttrpc.Request", "ttrpc.Response", "google.rpc.Status"} <= ours["messages"].keys()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("containerd/events/task.proto", ("uint32 pid = 2", "uint32 pid = 9"), "TaskStart.pid"),
        ("containerd/events/task.proto", ("uint32 pid = 2", "int32 pid = 2"), "TaskStart.pid"),
        ("containerd/events/task.proto", ("string id = 2", "repeated string id = 2"), "TaskExit.id"),
        ("containerd/events/task.proto", ("string id = 2", "string name = 2"), "TaskExit.name"),
        ("containerd/events/task.proto", ("message TaskPaused", "message TaskPause"), "TaskPause is not upstream's"),
        ("containerd/types/task/task.proto", ("PAUSING = 5", "PAUSING = 6"), "Status.PAUSING"),
        ("containerd/types/event.proto", ("google.protobuf.Any event", "bytes event"), "Envelope.event"),
        ("containerd/services/events/v1/events.proto", ("(stream containerd", "(containerd"), "Events.Subscribe"),
        ("containerd/services/tasks/v1/tasks.proto", ("rpc List(List", "rpc Pids(List"), "Tasks.Pids"),
        ("nri/api.proto", ("int32 events = 2", "int32 events = 1"), "ConfigureResponse.events"),
        ("nri/api.proto", ("bool more = 3", "bool more = 4"), "SynchronizeRequest.more"),
        ("nri/api.proto", ("REMOVE_CONTAINER = 11", "REMOVE_CONTAINER = 15"), "Event.REMOVE_CONTAINER"),
        ("nri/api.proto", ("rpc StateChange(StateChangeEvent)", "rpc StateChange(Empty)"), "Plugin.StateChange"),
        ("ttrpc/ttrpc.proto", ("int64 timeout_nano = 4", "uint64 timeout_nano = 4"), "Request.timeout_nano"),
        ("ttrpc/ttrpc.proto", ("package ttrpc;", "package ttrpc.v1;"), "ttrpc.v1.Request is not upstream's"),
        ("google/rpc/status.proto", ("string message = 2", "bytes message = 2"), "google.rpc.Status.message"),
        ("cri/api.proto", ("package runtime.v1;", "package runtime.v2;"), "runtime.v2.RuntimeService"),
    ],
)
def test_a_contract_of_ours_that_differs_is_told(
    upstream: Contract, tmp_path: Path, file: str, change: tuple[str, str], complaint: str
) -> None:
    altered = tmp_path / "proto"
    shutil.copytree(PROTO, altered)
    text = (altered / file).read_text()
    assert change[0] in text
    (altered / file).write_text(text.replace(*change))

    assert any(complaint in line for line in differences(compiled(altered, tmp_path), upstream))


def test_without_go_the_check_fails_and_is_not_skipped(tmp_path: Path) -> None:
    # A machine without go must not look like one where the contracts agree
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    test = f"{__file__}::{test_every_contract_of_ours_is_in_upstreams_under_the_same_names_numbers_and_types.__name__}"
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", test]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stdout
    assert "install go" in done.stdout


@pytest.mark.parametrize("ours_first", [True, False])
def test_our_status_and_googles_own_can_be_loaded_into_one_program(ours_first: bool) -> None:
    # As googleapis-common-protos registers its google.rpc.Status, which grpc-status and many others bring along
    googles = """
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(name="google/rpc/status.proto", package="google.rpc", syntax="proto3")
message = file.message_type.add(name="Status")
message.field.add(name="code", number=1, type=5, label=1)
message.field.add(name="message", number=2, type=9, label=1)
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
assert descriptor_pool.Default().FindMessageTypeByName("google.rpc.Status").file.name == "google/rpc/status.proto"
"""
    ours = """
from expedited.pb.ttrpc import ttrpc_pb2
assert ttrpc_pb2.Response.FromString(b"\\x0a\\x02\\x08\\x05").status.code == 5
"""
    program = ours + googles if ours_first else googles + ours
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
