"""Containers that come neither by CRI nor with a pod: by ctr, containerd's own client."""

from __future__ import annotations

from expedited.demo.daemon import PrivateContainerd
from expedited.demo.image import HOG_IMAGE

__all__ = ["run_by_ctr"]


def run_by_ctr(daemon: PrivateContainerd, container_id: str, *command: str, namespace: str = "default") -> None:
    """Run one of hog's image in the background, with its state and cgroup where the others' are; who runs it removes it."""
    snapshotter = (daemon.root / "snapshotter").read_text()  # which the daemon found that can be mounted here
    daemon.ctr(
        *("run", "--detach", "--null-io", "--net-host"),
        *("--runc-root", f"{daemon.runc_root}", "--cgroup", f"{daemon.cgroup_root}/{namespace}/{container_id}"),
        *("--snapshotter", snapshotter, HOG_IMAGE, container_id, *command),
        namespace=namespace,
    )
