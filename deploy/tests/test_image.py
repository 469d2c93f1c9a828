"""The image: built twice, looked into, and run on a real containerd as the manifest says, where it catches a real kill."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from conftest import DEPLOY, run

from expedited.demo.cri import ContainerSpec, CriClient, Pod, PodSpec
from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE, import_image, import_workloads
from expedited.pb.cri import api_pb2 as api
from expedited.pb.cri.api_pb2_grpc import RuntimeServiceStub
from expedited.teardown.cgroup import Cgroup

_LARGEST_BYTES = 150 << 20
_PATIENCE_SECONDS = 60
# include/uapi/linux/capability.h, of those that the manifest asks for
_BITS = {"KILL": 5, "IPC_LOCK": 14, "SYS_PTRACE": 19, "SYS_ADMIN": 21, "SYS_NICE": 23, "SYS_RESOURCE": 24}

# Two images from nothing, on a busy machine
pytestmark = pytest.mark.timeout(1500)


class Image:
    """An OCI archive, and what is in it."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        with tarfile.open(archive) as tar:
            (listed,) = json.load(tar.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]
            self.name = listed["annotations"]["io.containerd.image.name"]
            self.digest = listed["digest"]
            self.manifest = self._json(tar, self.digest)
            self.config = self._json(tar, self.manifest["config"]["digest"])
            self.files: dict[str, tarfile.TarInfo] = {}
            self.contents: dict[str, bytes] = {}
            for layer in self.manifest["layers"]:
                with tarfile.open(fileobj=tar.extractfile(self._blob(layer["digest"]))) as inner:
                    for member in inner:
                        self.files[member.name] = member
                        if member.isfile() and member.name.endswith((".spdx.json", ".egg-link", "RECORD")):
                            self.contents[member.name] = inner.extractfile(member).read()  # type: ignore[union-attr]

    @staticmethod
    def _blob(digest: str) -> str:
        return f"blobs/sha256/{digest.removeprefix('sha256:')}"

    def _json(self, tar: tarfile.TarFile, digest: str) -> dict[str, Any]:
        return dict(json.load(tar.extractfile(self._blob(digest))))  # type: ignore[arg-type]


def _build(place: Path) -> Path:
    """Build the image; as of one commit each time, whatever is committed here meanwhile."""
    words = ("--output", place, "--revision", "of-a-test")
    run(DEPLOY / "image" / "build", *words, env={"SOURCE_DATE_EPOCH": "1700000000"})
    (archive,) = place.glob("*.oci.tar")
    return archive


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with tempfile.TemporaryDirectory(prefix="expedited-image-") as directory:
        yield Image(_build(Path(directory)))


def test_the_same_inputs_give_the_same_archive(image: Image, tmp_path: Path) -> None:
    again = _build(tmp_path)
    assert Image(again).digest == image.digest
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(image.archive.read_bytes()).digest()


def test_it_is_small(image: Image) -> None:
    size = sum(member.size for member in image.files.values())
    print(f"image: {size >> 20} MiB in {len(image.files)} files, {image.archive.stat().st_size >> 20} MiB compressed")
    assert size <= _LARGEST_BYTES


def test_only_the_runtime_closure_is_in_it(image: Image) -> None:
    programs = [name for name, member in image.files.items() if member.mode & 0o111 and member.isfile()]
    assert sorted(name for name in programs if "/bin/" in f"/{name}") == [
        "usr/bin/python3.11",
        "usr/local/bin/expedited",
    ]
    for name in ("pytest", "mypy", "ruff", "pip", "setuptools", "kubernetes", "hypothesis"):
        assert not [path for path in image.files if f"dist-packages/{name}/" in path]
    assert not [path for path in image.files if path.endswith(("direct_url.json", ".deb", ".pyi"))]
    assert not [member for member in image.files.values() if member.mode & 0o6000]


def test_everything_is_compiled_for_both_ways_that_it_is_run(image: Image) -> None:
    sources = [path for path in image.files if path.endswith(".py") and "dist-packages/expedited/" in path]
    assert len(sources) > 50
    for source in sources:
        folder, _, name = source.rpartition("/")
        stem = f"{folder}/__pycache__/{name.removesuffix('.py')}.cpython-311"
        assert f"{stem}.pyc" in image.files
        assert f"{stem}.opt-2.pyc" in image.files


def test_its_labels_say_what_it_is(image: Image) -> None:
    labels = image.config["config"]["Labels"]
    assert set(labels) == {
        f"org.opencontainers.image.{name}"
        for name in ("title", "description", "version", "revision", "created", "licenses")
    }
    assert image.name == f"expedited.local/expedited:{labels['org.opencontainers.image.version']}"
    assert image.config["config"]["Entrypoint"] == ["expedited"]


def test_its_bill_of_materials_has_every_package(image: Image) -> None:
    (text,) = (content for path, content in image.contents.items() if path.endswith("sbom.spdx.json"))
    bill = json.loads(text)
    assert bill["spdxVersion"] == "SPDX-2.3"
    listed = {package["externalRefs"][0]["referenceLocator"].partition("@")[0] for package in bill["packages"]}
    installed = {
        path.rpartition("/")[2].partition("-")[0].lower().replace("_", "-")
        for path in (
            folder.removesuffix("/METADATA") for folder in image.files if folder.endswith(".dist-info/METADATA")
        )
    }
    assert {f"pkg:pypi/{name}" for name in installed} == {
        name for name in listed if "/pypi/" in f"/{name[4:]}/" or name.startswith("pkg:pypi/")
    }
    licences = {
        path.split("/")[3] for path in image.files if path.startswith("usr/share/doc/") and path.endswith("/copyright")
    }
    assert {name.removeprefix("pkg:deb/debian/") for name in listed if name.startswith("pkg:deb/")} >= licences
    assert all(package["versionInfo"] for package in bill["packages"])
    assert len({package["SPDXID"] for package in bill["packages"]}) == len(bill["packages"])


# -- run as the manifest says ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentPod:
    """The agent in a container of a real containerd."""

    containerd: PrivateContainerd
    pod: Pod
    id: str
    spec: dict[str, Any]
    held: set[str]

    def execute(self, *command: str) -> tuple[int, str]:
        answer = self.containerd.cri.exec_sync(self.id, command, timeout_seconds=60)
        return answer.exit_code, (answer.stdout + answer.stderr).decode()

    def json(self, *command: str) -> list[dict[str, Any]]:
        code, said = self.execute("expedited", *command, "--json")
        assert code in (0, 1), said
        return [json.loads(line) for line in said.splitlines()]

    def log(self) -> str:
        return self.containerd.cri.container(self.id).log_path.read_text()

    def wait(self, what: str, condition: Any) -> Any:
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        while True:
            answer = condition()
            if answer:
                return answer
            assert time.monotonic() < give_up_at, f"{what}; the agent's log:\n{self.log()}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def containerd() -> Iterator[PrivateContainerd]:
    root = Path(tempfile.mkdtemp(prefix="expedited-"))
    # HostToContainer wants a mount that tells of its own, as a node's are
    subprocess.run(["mount", "--bind", root, root], check=True)
    subprocess.run(["mount", "--make-rshared", root], check=True)
    try:
        with PrivateContainerd(root) as daemon:
            import_workloads(daemon)
            yield daemon
    finally:
        subprocess.run(["umount", "--lazy", root], check=False, capture_output=True)
        if root.exists():
            subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)


@pytest.fixture(scope="module")
def agent(containerd: PrivateContainerd, image: Image) -> Iterator[AgentPod]:
    """The manifest's container, its security context, mounts, environment and limits; only the host's paths are others."""
    import_image(containerd, image.archive, image.name)
    manifest = yaml.safe_load((DEPLOY / "manifests/base/daemonset.yaml").read_text())["spec"]["template"]
    spec = manifest["spec"]["containers"][0]
    node = containerd.root / "node"
    node.mkdir()
    pod = containerd.cri.run_pod(PodSpec(name="agent", host_pid=True, annotations=manifest["metadata"]["annotations"]))
    stub = RuntimeServiceStub(grpc.insecure_channel(f"unix:{containerd.socket}"))  # type: ignore[no-untyped-call]
    paths = _host_paths(manifest["spec"], containerd, node)
    held = _held(spec["securityContext"]["capabilities"]["add"])
    config = _config(spec, image.name, paths, held, pod, containerd.binaries.runc)
    request = api.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
    container_id = stub.CreateContainer(request).container_id
    containerd.cri.start_container(container_id)
    one = AgentPod(containerd, pod, container_id, spec, held)
    try:
        probe = tuple(spec["startupProbe"]["exec"]["command"])
        one.wait("it never became ready", lambda: one.execute(*probe)[0] == 0)
        yield one
    finally:
        containerd.cri.remove_pod(pod.id)


def _host_paths(spec: dict[str, Any], containerd: PrivateContainerd, node: Path) -> dict[str, Path]:
    """Each volume's directory: the private containerd's where the node's would be, and none of this machine's runtimes."""
    own = {
        "/run/containerd": containerd.root,
        "/var/run/nri": containerd.root,
        "/sys/fs/cgroup": Path("/sys/fs/cgroup"),
    }
    paths = {}
    for volume in spec["volumes"]:
        path = volume["hostPath"]["path"]
        paths[volume["name"]] = own.get(path, node / path.strip("/").replace("/", "-"))
        paths[volume["name"]].mkdir(exist_ok=True)
    return paths


def _held(wanted: list[str]) -> set[str]:
    """Of those, what this machine has to give: one that is a container itself may lack some."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd:"))
    return {name for name in wanted if int(line.split()[1], 16) >> _BITS[name] & 1}


def _config(
    spec: dict[str, Any], image: str, paths: dict[str, Path], held: set[str], pod: Pod, runc: Path
) -> api.ContainerConfig:
    security = spec["securityContext"]
    propagation = {None: api.PROPAGATION_PRIVATE, "HostToContainer": api.PROPAGATION_HOST_TO_CONTAINER}
    values = {"EXPEDITED_NODE_NAME": "node-1", "POD_IP": "127.0.0.1"}
    environment = {each["name"]: each.get("value", values.get(each["name"], "")) for each in spec["env"]}
    # kubelet's part: what refers to a variable before it; a free port, as this pod is in the host's network
    environment["EXPEDITED_METRICS_ADDRESS"] = environment["EXPEDITED_METRICS_ADDRESS"].replace("$(POD_IP):9788", "")
    environment["EXPEDITED_BUDGET_SECONDS"] = "1"  # a worker that gets no CPU for 50 ms is this machine's affair
    return api.ContainerConfig(
        metadata=api.ContainerMetadata(name=spec["name"]),
        image=api.ImageSpec(image=image),
        args=spec["args"],
        envs=[api.KeyValue(key=key, value=value) for key, value in environment.items()],
        labels={
            "io.kubernetes.pod.name": pod.config.metadata.name,
            "io.kubernetes.pod.namespace": pod.config.metadata.namespace,
            "io.kubernetes.pod.uid": pod.uid,
            "io.kubernetes.container.name": spec["name"],
        },
        mounts=[
            api.Mount(
                container_path=each["mountPath"],
                host_path=str(paths[each["name"]]),
                readonly=each.get("readOnly", False),
                propagation=propagation[each.get("mountPropagation")],
            )
            for each in spec["volumeMounts"]
        ],
        log_path="agent.log",
        linux=api.LinuxContainerConfig(
            resources=api.LinuxContainerResources(memory_limit_in_bytes=_bytes(spec["resources"]["limits"]["memory"])),
            security_context=api.LinuxContainerSecurityContext(
                capabilities=api.Capability(
                    add_capabilities=sorted(held), drop_capabilities=security["capabilities"]["drop"]
                ),
                privileged=security["privileged"],
                namespace_options=api.NamespaceOption(network=api.NODE, pid=api.NODE),
                run_as_user=api.Int64Value(value=security["runAsUser"]),
                readonly_rootfs=security["readOnlyRootFilesystem"],
                no_new_privs=not security["allowPrivilegeEscalation"],
                seccomp=api.SecurityProfile(profile_type=_seccomp(runc)),
                apparmor=api.SecurityProfile(profile_type=api.SecurityProfile.Unconfined),
            ),
        ),
    )


def _seccomp(runc: Path) -> Any:
    # A runc that was built without it takes no profile; then only the system calls' filter is not tried here
    features = subprocess.run([runc, "features"], capture_output=True, text=True, check=False).stdout
    has = bool(features) and json.loads(features).get("linux", {}).get("seccomp", {}).get("enabled")
    return api.SecurityProfile.RuntimeDefault if has else api.SecurityProfile.Unconfined


def _bytes(quantity: str) -> int:
    assert quantity.endswith("Mi")
    return int(quantity.removesuffix("Mi")) << 20


def _hog(cri: CriClient, *flags: str) -> tuple[Pod, str]:
    pod = cri.run_pod(PodSpec(name="hog"))
    container_id = cri.create_container(pod, ContainerSpec(HOG_IMAGE, ("/hog", *flags)))
    cri.start_container(container_id)
    cri.wait_for_output(container_id, "READY")
    return pod, container_id


def test_it_says_its_version(agent: AgentPod, image: Image) -> None:
    version = image.config["config"]["Labels"]["org.opencontainers.image.version"]
    assert agent.execute("expedited", "--version") == (0, f"expedited {version}\n")


def test_its_root_is_read_only_and_nobody_writes_to_it(agent: AgentPod) -> None:
    code, said = agent.execute("/usr/bin/python3.11", "-c", "open('/here', 'w')")
    assert code == 1
    assert "Read-only file system" in said
    assert "Read-only" not in agent.log()


def test_the_doctor_finds_all_that_the_manifest_gives(agent: AgentPod) -> None:
    (found,) = agent.json("doctor")
    findings = {each["name"]: each for each in found["findings"]}
    for name in agent.held & {"IPC_LOCK", "KILL", "SYS_ADMIN", "SYS_NICE", "SYS_RESOURCE"}:
        assert findings[f"CAP_{name}"]["level"] == "ok", findings[f"CAP_{name}"]
    assert [each for each in found["findings"] if each["level"] == "broken"] == []


def test_it_is_connected_to_the_runtime(agent: AgentPod) -> None:
    (status,) = agent.json("status")
    assert status["striker"] == "ok"
    agent.wait("no NRI", lambda: agent.json("status")[0]["nri"] == "ok")
    agent.wait("no containerd", lambda: agent.json("status")[0]["containerd"] == "ok")


def test_it_catches_a_real_kill(agent: AgentPod) -> None:
    cri = agent.containerd.cri
    pod, container_id = _hog(cri, "--bytes", "256M")
    try:
        agent.wait("not gated", lambda: container_id in str(agent.json("top", "--once")))
        cri.stop_container(container_id)
        (stop,) = agent.wait("no stop", lambda: agent.json("stops", container_id))
        assert cri.container(container_id).exit_code == 137
        assert (stop["mode"], stop["outcome"], stop["containerId" if "containerId" in stop else "container_id"]) == (
            "strike",
            "struck",
            container_id,
        )
        assert {process["fate"] for process in stop["processes"]} <= {"reaped", "lost_race", "gone"}
        print(f"image: a kill of 256 MiB, caught from the container: {stop}")
    finally:
        cri.remove_pod(pod.id)


def test_it_never_gates_itself(agent: AgentPod) -> None:
    listed = agent.json("top", "--once")
    text = json.dumps(listed)
    assert agent.id not in [one.get("id") for one in listed if one.get("gated")], text


def test_it_stays_within_its_limit(agent: AgentPod) -> None:
    pid = agent.containerd.cri.container(agent.id).pid
    memory_dir = Cgroup.of_process(pid).memory_dir
    assert memory_dir is not None
    name = "memory.max_usage_in_bytes" if Path(memory_dir, "memory.max_usage_in_bytes").exists() else "memory.peak"
    peak = int(Path(memory_dir, name).read_text())
    limit = _bytes(agent.spec["resources"]["limits"]["memory"])
    print(f"image: at most {peak >> 20} MiB of {limit >> 20} MiB, page cache and commands run in it included")
    events = Path(memory_dir, "memory.oom_control" if "max_usage" in name else "memory.events").read_text()
    assert "oom_kill 0" in events


def test_the_hook_before_its_end_closes_the_gate_first(agent: AgentPod) -> None:
    cri = agent.containerd.cri
    before = len(agent.json("stops", "--limit", "0"))
    code, said = agent.execute(*agent.spec["lifecycle"]["preStop"]["exec"]["command"])
    assert (code, said) == (0, "striker: closed\n")
    pod, container_id = _hog(cri, "--bytes", "16M")
    cri.stop_container(container_id)
    assert cri.container(container_id).exit_code == 137
    cri.remove_pod(pod.id)
    assert len(agent.json("stops", "--limit", "0")) == before
    # In order, and long before the grace is over
    cri.stop_container(agent.id, grace_seconds=30)
    assert cri.container(agent.id).exit_code == 0
    assert "Traceback" not in agent.log()
