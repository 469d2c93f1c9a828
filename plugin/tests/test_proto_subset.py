"""Our .proto files are a subset of upstream's: whatever is in ours is there, under the same name, number and type."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
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
        go = shutil.which("go", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/go/bin")
        if go is None:
            pytest.skip("upstream's contracts come from Go modules, and there is no go here")
        made = subprocess.run([go, "run", "."], cwd=CHECKER, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
        cache.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(f".{os.getpid()}")
        fresh.write_text(made.stdout)
        fresh.rename(kept)
    contract: Contract = json.loads(kept.read_text())
    return contract


def compiled(proto: Path, scratch: Path) -> Contract:
    """The contracts of a tree of .proto files, in the shape that the Go program prints; our own API is left out."""
    target = scratch / "set.bin"
    sources = [f"expedited/pb/{path.relative_to(proto)}" for path in sorted(proto.rglob("*.proto"))]
    well_known = Path(protoc.__file__).with_name("_proto")
    paths = [f"--proto_path=expedited/pb={proto}", f"--proto_path={well_known}"]
    assert protoc.main(["protoc", *paths, f"--descriptor_set_out={target}", *sources]) == 0
    contract: Contract = {kind: {} for kind in KINDS}
    for file in FileDescriptorSet.FromString(target.read_bytes()).file:
        if not file.package.startswith("expedited."):
            add_file(contract, file)
    return contract


def add_file(contract: Contract, file: FileDescriptorProto) -> None:
    add_types(contract, file.package, file.message_type, file.enum_type)
    for service in file.service:
        contract["services"][f"{file.package}.{service.name}"] = {
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
                "type": field.type_name.lstrip(".")
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("containerd/events/task.proto", ("uint32 exit_status = 4", "uint32 exit_status = 9"), "TaskExit.exit_status"),
        ("containerd/events/task.proto", ("uint32 exit_status = 4", "int32 exit_status = 4"), "TaskExit.exit_status"),
        ("containerd/events/task.proto", ("string id = 2", "repeated string id = 2"), "TaskExit.id"),
        ("containerd/events/task.proto", ("string id = 2", "string name = 2"), "TaskExit.name"),
        ("containerd/events/task.proto", ("message TaskOOM", "message TaskOom"), "TaskOom is not upstream's"),
        ("containerd/types/task/task.proto", ("PAUSING = 5", "PAUSING = 6"), "Status.PAUSING"),
        ("containerd/types/event.proto", ("google.protobuf.Any event", "bytes event"), "Envelope.event"),
        ("containerd/services/events/v1/events.proto", ("(stream containerd", "(containerd"), "Events.Subscribe"),
        ("containerd/services/tasks/v1/tasks.proto", ("rpc ListPids(List", "rpc Pids(List"), "Tasks.Pids"),
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
