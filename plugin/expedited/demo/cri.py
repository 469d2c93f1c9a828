"""A small synchronous client of the Container Runtime Interface: drives pods as kubelet does.

Only what the demo and the tests need, in the host's network (no CNI). A call that fails raises :class:`CriError`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import grpc

from expedited.demo.leftovers import undisturbed
from expedited.demo.pods import ContainerSpec, ContainerState, ExecResult, Mount, Pod, PodSpec
from expedited.errors import ExpeditedError
from expedited.pb.cri import api_pb2 as api
from expedited.pb.cri.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub

__all__ = [
    "ContainerSpec",
    "ContainerState",
    "CriClient",
    "CriError",
    "ExecResult",
    "Mount",
    "Pod",
    "PodSpec",
    "Stopping",
]

_T = TypeVar("_T")
# containerd allows itself 16 MiB a message; Python's default is 4
_MAX_MESSAGE_BYTES = 16 << 20
_TRY_AGAIN_SECONDS = (0.1, 0.5, 2.0, 5.0, 10.0)


class CriError(ExpeditedError):
    """The runtime refused a call; ``code`` is gRPC's."""

    def __init__(self, call: str, error: grpc.RpcError) -> None:
        self.code: grpc.StatusCode = error.code()
        super().__init__(f"containerd's {call} failed: {error.details()} ({self.code.name})")


class Stopping(Protocol):
    """A StopContainer under way."""

    def result(self) -> None:
        """Wait for it.

        Raises:
            CriError: it failed.
        """

    def done(self) -> bool:
        """Whether it has come back."""


class CriClient:
    """One connection to a runtime's CRI socket.

    Args:
        socket: The runtime's gRPC socket.
        cgroup_parent: Where pods go that name no other cgroup.
        log_root: Where the containers' output goes, one directory a pod.
    """

    def __init__(self, socket: Path, *, cgroup_parent: str, log_root: Path) -> None:
        self._cgroup_parent = cgroup_parent
        self._log_root = log_root
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            # Or a daemon that was restarted is not tried again for up to two minutes
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.initial_reconnect_backoff_ms", 50),
            # Each client its own connection, whatever others in this process do with theirs
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=options)
        self._runtime = RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._images = ImageServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> CriClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def version(self, *, timeout_seconds: float = 5.0) -> str:
        """The runtime's name and version; also whether it is ready to answer."""
        answer = _call("Version", lambda: self._runtime.Version(api.VersionRequest(), timeout=timeout_seconds))
        return f"{answer.runtime_name} {answer.runtime_version}"

    def has_image(self, image: str) -> bool:
        """Whether pods can be made of it (a moment after an import it may not be known yet)."""
        request = api.ImageStatusRequest(image=api.ImageSpec(image=image))
        return bool(_call("ImageStatus", lambda: self._images.ImageStatus(request)).HasField("image"))

    # -- pods ----------------------------------------------------------------------------------------------------------

    def run_pod(self, spec: PodSpec | None = None) -> Pod:
        """Run a pod with nothing in it yet but its pause process."""
        spec = spec or PodSpec()
        uid = secrets.token_hex(8)
        name = f"{spec.name}-{uid}"
        parent = spec.cgroup_parent or f"{self._cgroup_parent}/pod{uid}"
        logs = self._log_root / name
        logs.mkdir(parents=True)
        pid_mode = api.NODE if spec.host_pid else api.POD if spec.share_pid else api.CONTAINER
        config = api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name=name, uid=uid, namespace=spec.namespace),
            log_directory=str(logs),
            labels={
                # kubelet's own, by which others know a pod
                "io.kubernetes.pod.name": name,
                "io.kubernetes.pod.namespace": spec.namespace,
                "io.kubernetes.pod.uid": uid,
                **spec.labels,
            },
            annotations=spec.annotations,
            linux=api.LinuxPodSandboxConfig(
                cgroup_parent=parent,
                security_context=api.LinuxSandboxSecurityContext(
                    namespace_options=api.NamespaceOption(network=api.NODE, pid=pid_mode),
                ),
            ),
        )
        answer = _call("RunPodSandbox", lambda: self._runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config)))
        return Pod(answer.pod_sandbox_id, uid, parent, config)

    def stop_pod(self, pod_id: str) -> None:
        """Stop the pod and every container in it, with no grace.

        Where all of its processes have just died, containerd may fail this with "ttrpc: closed": their shim has gone
        before their ends were taken note of. It tries again then, as kubelet does.
        """
        request = api.StopPodSandboxRequest(pod_sandbox_id=pod_id)
        for pause in (*_TRY_AGAIN_SECONDS, None):
            try:
                _call("StopPodSandbox", lambda: self._runtime.StopPodSandbox(request))
                return
            except CriError as error:
                if pause is None or "ttrpc: closed" not in str(error):
                    raise
                time.sleep(pause)

    def remove_pod(self, pod_id: str) -> None:
        """Remove the pod and every container in it, stopping what runs; one that is gone is no error."""
        request = api.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
        self.stop_pod(pod_id)
        _call("RemovePodSandbox", lambda: self._runtime.RemovePodSandbox(request))

    # -- containers ----------------------------------------------------------------------------------------------------

    def create_container(self, pod: Pod, spec: ContainerSpec) -> str:
        """Make a container in a pod; returns its id."""
        security = api.LinuxContainerSecurityContext(
            namespace_options=api.NamespaceOption(
                network=api.NODE, pid=pod.config.linux.security_context.namespace_options.pid
            ),
        )
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=spec.name),
            image=api.ImageSpec(image=spec.image),
            command=spec.command,
            envs=[api.KeyValue(key=key, value=value) for key, value in spec.environment.items()],
            mounts=[
                api.Mount(container_path=each.container_path, host_path=str(each.host_path), readonly=each.readonly)
                for each in spec.mounts
            ],
            labels={
                "io.kubernetes.pod.name": pod.config.metadata.name,
                "io.kubernetes.pod.namespace": pod.config.metadata.namespace,
                "io.kubernetes.pod.uid": pod.uid,
                "io.kubernetes.container.name": spec.name,
                **spec.labels,
            },
            log_path=f"{spec.name}.log",
            linux=api.LinuxContainerConfig(
                resources=api.LinuxContainerResources(
                    cpu_period=spec.cpu_period_us if spec.cpu_quota_us else 0,
                    cpu_quota=spec.cpu_quota_us,
                    cpu_shares=spec.cpu_shares,
                    cpuset_cpus=spec.cpuset_cpus,
                    memory_limit_in_bytes=spec.memory_limit_bytes,
                ),
                security_context=security,
            ),
        )
        request = api.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        answer = _call("CreateContainer", lambda: self._runtime.CreateContainer(request))
        return str(answer.container_id)

    def start_container(self, container_id: str) -> None:
        """Start one that was created."""
        request = api.StartContainerRequest(container_id=container_id)
        _call("StartContainer", lambda: self._runtime.StartContainer(request))

    def stop_container(self, container_id: str, grace_seconds: int = 0) -> None:
        """SIGTERM, then after the grace SIGKILL (a grace of 0: SIGKILL at once); comes back when it is dead."""
        self.begin_stop(container_id, grace_seconds).result()

    def begin_stop(self, container_id: str, grace_seconds: int = 0) -> Stopping:
        """As :meth:`stop_container`, but comes back at once."""
        request = api.StopContainerRequest(container_id=container_id, timeout=grace_seconds)
        # A signal's exception between the call and the start of gRPC's thread for it would leave it with nobody to end
        # it, and the channel's close() waits for that: seen to hang when Ctrl-C came at once.
        with undisturbed():
            return _Stopping(self._runtime.StopContainer.future(request))

    def remove_container(self, container_id: str) -> None:
        """Remove it, killing it if it runs; one that is gone is no error."""
        request = api.RemoveContainerRequest(container_id=container_id)
        _call("RemoveContainer", lambda: self._runtime.RemoveContainer(request))

    def limit_cpu(self, container_id: str, *, quota_us: int, period_us: int = 100_000) -> None:
        """Change the CPU quota of a running container, as an in-place resize does."""
        resources = api.LinuxContainerResources(cpu_period=period_us, cpu_quota=quota_us)
        request = api.UpdateContainerResourcesRequest(container_id=container_id, linux=resources)
        _call("UpdateContainerResources", lambda: self._runtime.UpdateContainerResources(request))

    def container(self, container_id: str) -> ContainerState:
        """What the runtime says of it now; its pid is 0 when it does not run."""
        request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
        answer = _call("ContainerStatus", lambda: self._runtime.ContainerStatus(request))
        status, info = answer.status, json.loads(answer.info.get("info", "{}"))
        return ContainerState(
            id=status.id,
            state=api.ContainerState.Name(status.state).removeprefix("CONTAINER_").lower(),
            exit_code=status.exit_code,
            reason=status.reason,
            message=status.message,
            pid=int(info.get("pid", 0)),
            log_path=Path(status.log_path),
        )

    def wait_for_output(self, container_id: str, text: str, *, timeout_seconds: float = 30.0) -> None:
        """Wait until the container has printed ``text``.

        Raises:
            ExpeditedError: it has not in that time, or ended before; says what it printed last.
        """
        deadline = time.monotonic() + timeout_seconds
        log = self.container(container_id).log_path
        while True:
            state = self.container(container_id).state  # first: the log of one that has exited is complete
            printed = log.read_text(errors="replace") if log.exists() else ""
            if text in printed:
                return
            if state not in ("running", "created") or time.monotonic() > deadline:
                last = (printed.strip().splitlines() or ["nothing"])[-1]
                raise ExpeditedError(f"container {container_id[:12]} ({state}) did not print {text!r} but: {last}")
            time.sleep(0.005)

    def exec_sync(self, container_id: str, command: tuple[str, ...], *, timeout_seconds: int = 10) -> ExecResult:
        """Run a command in a running container and wait for it."""
        request = api.ExecSyncRequest(container_id=container_id, cmd=command, timeout=timeout_seconds)
        answer = _call("ExecSync", lambda: self._runtime.ExecSync(request))
        return ExecResult(answer.exit_code, answer.stdout, answer.stderr)


class _Stopping:
    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self) -> None:
        _call("StopContainer", self._future.result)

    def done(self) -> bool:
        return bool(self._future.done())


def _call(name: str, call: Callable[[], _T]) -> _T:
    try:
        return call()
    except grpc.RpcError as error:
        raise CriError(name, error) from None
