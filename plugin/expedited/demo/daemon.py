"""A containerd of our own, beside whatever else runs on the machine, that leaves nothing behind.

Own root, state, socket, NRI socket, runc state and cgroup; CRI and NRI on; pods in the host's network, so no CNI.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from expedited.demo import leftovers
from expedited.demo.cri import CriClient, CriError
from expedited.demo.runtime import RuntimeBinaries, find_runtime
from expedited.doctor.capabilities import effective
from expedited.errors import ExpeditedError

__all__ = ["CRI_NAMESPACE", "PAUSE_IMAGE", "PrivateContainerd"]

#: What pods' pause process comes from; see :mod:`expedited.demo.image`.
PAUSE_IMAGE = "expedited.local/pause:1"
#: containerd's namespace for what comes by CRI.
CRI_NAMESPACE = "k8s.io"

# sun_path of unix(7) is 108 bytes; the longest of ours below the root is /state/….sock.ttrpc
_LONGEST_ROOT = 80
_START_SECONDS = 120.0
# Plugins that are slow, or loud, where what they are for is missing
_NOT_NEEDED = [
    "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
]
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_CAP_SYS_RESOURCE = 24  # include/uapi/linux/capability.h


class PrivateContainerd:
    """A private containerd; a context manager, that starts it and in the end clears everything that is its own.

    Args:
        root: A directory for all that it has; made if need be, and removed in the end.
        binaries: From :func:`~expedited.demo.runtime.find_runtime`, which is called if they are not given.

    Attributes:
        socket: gRPC, CRI included.
        nri_socket: Where it listens for NRI plugins.
        nri_plugin_dir: Where it looks for pre-installed NRI plugins when it starts.
        nri_config_dir: Where it looks for those plugins' configuration.
        runc_root: runc's state; one directory a namespace, in that one a container.
        state_root: The same, as the striker wants it: with ``*`` for the namespace.
        cgroup_root: Cgroup path above everything that is run in it.
        log_path: containerd's log.
    """

    def __init__(self, root: Path, binaries: RuntimeBinaries | None = None) -> None:
        if len(os.fsencode(root)) > _LONGEST_ROOT:
            raise ExpeditedError(f"{root}: too long for the sockets below it, take one of up to {_LONGEST_ROOT} bytes")
        self.root = root
        self.binaries = binaries or find_runtime()
        self.socket = root / "containerd.sock"
        self.nri_socket = root / "nri.sock"
        self.nri_plugin_dir = root / "nri-plugins"
        self.nri_config_dir = root / "nri-conf.d"
        self.runc_root = root / "runc"
        self.state_root = f"{root}/runc/*"
        self.cgroup_root = leftovers.own_cgroup(root, os.getpid())
        self.log_path = root / "containerd.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._cri: CriClient | None = None

    def __enter__(self) -> PrivateContainerd:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The daemon's process id.

        Raises:
            ExpeditedError: it does not run.
        """
        if self._process is None:
            raise ExpeditedError(f"the containerd of {self.root} is not running")
        return self._process.pid

    @property
    def cri(self) -> CriClient:
        """Its CRI, connected on first use; the same client across restarts."""
        if self._cri is None:
            self._cri = CriClient(self.socket, cgroup_parent=self.cgroup_root, log_root=self.root / "logs")
        return self._cri

    # -- the daemon ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon and wait until CRI answers.

        Raises:
            ExpeditedError: it ended, or did not answer in time; says what it logged last.
        """
        if os.geteuid() != 0:
            raise ExpeditedError("a private containerd needs root: run this with sudo")
        for directory in (self.root, self.nri_plugin_dir, self.nri_config_dir):
            directory.mkdir(parents=True, exist_ok=True)
        leftovers.claim(self.root, self.cgroup_root)
        configuration = self.root / "config.toml"
        configuration.write_text(_configuration(self))
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries.containerd, "--config", configuration],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": self.binaries.search_path},
                # A terminal's Ctrl-C is for us: we stop the daemon after its containers
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                what = f"ended with status {self._process.returncode}" if ended else "did not answer"
                raise ExpeditedError(f"the private containerd {what}; its log says: {self._last_complaint()}")
            try:
                self.cri.version(timeout_seconds=1.0)
            except CriError:
                time.sleep(0.02)
            else:
                return

    def restart(self) -> None:
        """Stop the daemon in order and start it again; its containers go on meanwhile."""
        self._end(signal.SIGTERM)
        self.start()

    def kill(self) -> None:
        """SIGKILL the daemon alone; its containers go on. :meth:`start` brings it back."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End everything: containers, shims, daemon, mounts, cgroups, directories. May be called twice."""
        with leftovers.undisturbed():
            # The containers first, and directly: an orderly stop of a starved one could take minutes.
            leftovers.remove_cgroups(self.cgroup_root)
            if self._cri is not None:
                self._cri.close()
                self._cri = None
            self._end(signal.SIGTERM)
            leftovers.clear(self.root, self.cgroup_root)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _last_complaint(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        complaints = [line for line in lines if "level=error" in line or "level=fatal" in line or "level=" not in line]
        return (complaints or lines or ["nothing"])[-1]

    # -- ctr -----------------------------------------------------------------------------------------------------------

    def ctr(
        self, *arguments: str, namespace: str = CRI_NAMESPACE, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run containerd's own client on it.

        Raises:
            ExpeditedError: it failed, and ``check`` was not turned off.
        """
        command = [str(self.binaries.ctr), "--address", str(self.socket), "--namespace", namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if check and done.returncode:
            raise ExpeditedError(f"ctr {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done


def _die_with_parent() -> None:
    # If we are killed ourselves there is nobody to clear up, but at least no daemon that starts more.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _snapshotter(root: Path) -> str:
    """Overlayfs if it can be mounted here (it can't on another overlayfs), else native."""
    remembered = root / "snapshotter"
    with suppress(OSError):
        return remembered.read_text()
    trial = root / "overlay-trial"
    for name in ("lower", "upper", "work", "merged"):
        (trial / name).mkdir(parents=True, exist_ok=True)
    layers = f"lowerdir={trial}/lower,upperdir={trial}/upper,workdir={trial}/work"
    command = ["mount", "-t", "overlay", "-o", layers, "overlay", f"{trial}/merged"]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    leftovers.unmount_below(trial)
    shutil.rmtree(trial, ignore_errors=True)
    remembered.write_text("overlayfs" if mounted else "native")
    return remembered.read_text()


def _configuration(daemon: PrivateContainerd) -> str:
    """The daemon's configuration file: version 3 for 2.x, version 2 for 1.7."""
    root = daemon.root
    modern = daemon.binaries.version >= (2, 0)
    cri = "io.containerd.cri.v1.runtime" if modern else "io.containerd.grpc.v1.cri"
    snapshotter = _snapshotter(root)
    restrict = "false" if effective() >> _CAP_SYS_RESOURCE & 1 else "true"
    lines = [
        f"version = {3 if modern else 2}",
        f'root = "{root}/root"',
        f'state = "{root}/state"',
        f"disabled_plugins = {json.dumps(_NOT_NEEDED)}",
        "[grpc]",
        f'address = "{daemon.socket}"',
        "[timeouts]",
        '"io.containerd.timeout.shim.load" = "60s"',  # not 5
        "[ttrpc]",
        f'address = "{daemon.socket}.ttrpc"',
        '[plugins."io.containerd.internal.v1.opt"]',
        f'path = "{root}/opt"',
        '[plugins."io.containerd.nri.v1.nri"]',
        "disable = false",
        f'socket_path = "{daemon.nri_socket}"',
        f'plugin_path = "{daemon.nri_plugin_dir}"',
        f'plugin_config_path = "{daemon.nri_config_dir}"',
        # 5 s are few for two Python programs that start beside it, and 2 s for one that a busy machine keeps from running
        'plugin_registration_timeout = "60s"',
        'plugin_request_timeout = "60s"',
        f'[plugins."{cri}"]',
        f"restrict_oom_score_adj = {restrict}",
        "disable_apparmor = true",
    ]
    if not modern:
        lines.append(f'sandbox_image = "{PAUSE_IMAGE}"')
    lines += [
        f'[plugins."{cri}".cni]',
        f'conf_dir = "{root}/cni"',
        f'[plugins."{cri}".containerd]',
        'default_runtime_name = "runc"',
    ]
    if not modern:
        lines.append(f'snapshotter = "{snapshotter}"')
    lines += [
        f'[plugins."{cri}".containerd.runtimes.runc]',
        'runtime_type = "io.containerd.runc.v2"',
        f'[plugins."{cri}".containerd.runtimes.runc.options]',
        f'Root = "{daemon.runc_root}"',
        "SystemdCgroup = false",
    ]
    if modern:
        lines += [
            '[plugins."io.containerd.cri.v1.images"]',
            f'snapshotter = "{snapshotter}"',
            '[plugins."io.containerd.cri.v1.images".pinned_images]',
            f'sandbox = "{PAUSE_IMAGE}"',
        ]
    return "\n".join(lines) + "\n"
