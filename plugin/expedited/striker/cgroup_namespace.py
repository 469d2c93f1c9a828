"""Sees cgroups as the node does, also from a container that has a cgroup namespace of its own.

On cgroup version 2 runtimes give each container one, unless it is privileged (containerd internal/cri/server
container_create_linux.go). In it /proc/PID/cgroup names every process outside by a path full of ``..``, and our own
container's id shows nowhere: with the node's namespace both are as they are on the node.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["FIRST", "join_nodes"]

#: include/linux/proc_ns.h: the inode of the cgroup namespace that the machine booted with.
FIRST = 0xEFFFFFFB

_CLONE_NEWCGROUP = 0x02000000  # include/uapi/linux/sched.h


def join_nodes(of: str = "/proc/1/ns/cgroup") -> str:
    """Join the cgroup namespace of process 1, which with hostPID is the node's; for this process and its children.

    Returns:
        Empty: we are in it, or in the machine's first one, which sees all there is. Else why not, in a few words: setns(2) wants CAP_SYS_ADMIN, and to look at another's
        namespaces takes its capabilities or CAP_SYS_PTRACE (ptrace(2)).
    """
    try:
        if os.stat("/proc/self/ns/cgroup").st_ino == FIRST:
            return ""
        if os.path.samefile("/proc/self/ns/cgroup", of):
            return ""
        descriptor = os.open(of, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as problem:
        return f"{of}: {problem.strerror}; CAP_SYS_PTRACE is needed"
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWCGROUP):
            return f"setns: {os.strerror(ctypes.get_errno())}; CAP_SYS_ADMIN is needed"
    finally:
        os.close(descriptor)
    return ""
