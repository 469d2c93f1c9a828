"""The node as the machine that runs it sees it: its cgroups, and what its kubelet wrote.

The suite runs in the virtual machine, beside Docker, so the node's cgroups are directories like any other, read without
asking anything in the node: what is measured does not depend on what the node is too busy to do.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

__all__ = ["NODE", "MemoryWatch", "Node", "Sample", "SummaryWatch"]

NODE = "expedited-control-plane"
_TAKEN = "/run/taken"
_KLOG = re.compile(r"[IWEF](\d\d)(\d\d) (\d\d):(\d\d):(\d\d\.\d+)")
_CONTAINERD = re.compile(r'time="([^"]+)"')
_KILLING = '"Killing container with a grace period"'


@dataclass(frozen=True)
class Sample:
    """What was there at one moment.

    Attributes:
        at_seconds: On the clock of :func:`time.time`, which the node's logs share.
        used_bytes: Charged to the cgroups.
        available_bytes: Of the node, as kubelet's eviction manager reckons it.
        populated: Whether a process is left in any of the cgroups.
    """

    at_seconds: float
    used_bytes: int
    available_bytes: int
    populated: bool


class Node:
    """The node's container."""

    def __init__(self) -> None:
        name = subprocess.run(
            ["docker", "inspect", "-f", "{{.Id}}", NODE], check=True, capture_output=True, text=True
        ).stdout.strip()
        self.cgroup = Path("/sys/fs/cgroup/docker") / name
        meminfo = Path("/proc/meminfo").read_text()
        self.capacity_bytes = int(meminfo.split()[1]) << 10

    def run(self, *command: str) -> str:
        """What a command in the node prints."""
        return subprocess.run(["docker", "exec", NODE, *command], check=True, capture_output=True, text=True).stdout

    def available_bytes(self) -> int:
        """Memory that kubelet would call available: capacity less the working set (kubelet, `memory.available`)."""
        used = int((self.cgroup / "memory.current").read_text())
        return self.capacity_bytes - (used - _stat(self.cgroup, "inactive_file"))

    def pod_cgroup(self, uid: str) -> Path:
        """The slice that kubelet has made for a pod."""
        found = list(self.cgroup.glob(f"kubelet.slice/**/*pod{uid.replace('-', '_')}.slice"))
        if len(found) != 1:
            raise LookupError(f"{len(found)} cgroups for the pod {uid}: {found}")
        return found[0]

    def container_cgroup(self, pod_uid: str, container_id: str) -> Path:
        """A container's own; the id as the API server has it."""
        return self.pod_cgroup(pod_uid) / f"cri-containerd-{container_id.partition('://')[2]}.scope"

    def besteffort_file_bytes(self) -> int:
        """Page cache charged to the slice of the pods without requests, or below it."""
        return _stat(next(self.cgroup.glob("kubelet.slice/**/*besteffort.slice")), "file")

    def gateway(self) -> str:
        """The address by which the node reaches the machine."""
        form = "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"
        asked = ["docker", "inspect", "-f", form, NODE]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

    def write(self, path: str, text: str) -> None:
        """A file in the node, there whole or not at all."""
        script = f"cat >{path}.new && mv {path}.new {path}"
        subprocess.run(["docker", "exec", "-i", NODE, "sh", "-c", script], check=True, input=text, text=True)

    def take(self, mebibytes: int) -> None:
        """Memory for the node's own use, in a file system in memory, at once.

        User-mode Linux needs two seconds for it, real-time, on the only CPU. Kubelet, which decides when the first of it is
        missing, would stand still for the rest: it is held until all is taken.
        """
        take = f"chrt -f 10 fallocate -l {mebibytes}M {_TAKEN}"
        self.run("sh", "-c", f"trap 'systemctl kill -s CONT kubelet' EXIT; systemctl kill -s STOP kubelet; {take}")

    def give_back(self) -> None:
        """What was taken."""
        self.run("rm", "-f", _TAKEN)

    def processes_outside(self, cgroup: Path) -> set[tuple[int, str]]:
        """Pid and name of every process of the node that is not below this cgroup."""
        found = set()
        for path in self.cgroup.rglob("cgroup.procs"):
            if path.is_relative_to(cgroup):
                continue
            try:
                found |= {
                    (pid, Path(f"/proc/{pid}/comm").read_text().strip()) for pid in map(int, path.read_text().split())
                }
            except OSError:
                pass  # the cgroup or the process has gone meanwhile
        return found

    def kubelet_log(self, since_seconds: float) -> list[tuple[float, str]]:
        """Kubelet's messages since then, with the time that kubelet itself wrote on them."""
        text = self.run("journalctl", "-u", "kubelet", "-o", "cat", "--no-pager", "--since", f"@{int(since_seconds)}")
        found = []
        for line in text.splitlines():
            stamp = _KLOG.match(line)
            if stamp:
                month, day, hour, minute = map(int, stamp.groups()[:4])
                second, fraction = divmod(float(stamp[5]), 1)
                year = datetime.now(UTC).year
                moment = datetime(year, month, day, hour, minute, int(second), tzinfo=UTC).timestamp() + fraction
                if moment >= since_seconds:
                    found.append((moment, line))
        return found

    def kill_began(self, container_id: str, since_seconds: float) -> float | None:
        """When containerd first set about a container's SIGKILL since then; None: it did not. The id as the API has it."""
        text = self.run(
            "journalctl", "-u", "containerd", "-o", "cat", "--no-pager", "--since", f"@{int(since_seconds)}"
        )
        wanted = f'Kill container \\"{container_id.partition("://")[2]}\\"'
        for line in text.splitlines():
            stamp = _CONTAINERD.match(line)
            if stamp and wanted in line:
                moment = datetime.fromisoformat(stamp[1]).timestamp()
                if moment >= since_seconds:
                    return moment
        return None

    def grace_over(self, pod: str, since_seconds: float) -> float:
        """When the grace was over that kubelet gave this pod's first container to end since then."""
        for moment, line in self.kubelet_log(since_seconds):
            if _KILLING in line and f'pod="default/{pod}"' in line:
                return moment + int(re.findall(r"gracePeriod=(\d+)", line)[0])
        raise LookupError(f"kubelet did not kill a container of {pod}")


class _Watch:
    """A thread that takes samples until it is told to stop."""

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        raise NotImplementedError


@dataclass
class MemoryWatch(_Watch):
    """Samples cgroups and the node from a real-time thread, every 50 ms, until told to stop."""

    node: Node
    cgroups: Sequence[Path]
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.anon_bytes = sum(_stat(cgroup, "anon") for cgroup in self.cgroups)
        self.start_bytes = sum(int((cgroup / "memory.current").read_text()) for cgroup in self.cgroups)
        super().__post_init__()

    def back_at(self, since_seconds: float, share: float = 0.95) -> float | None:
        """When that share of the anonymous memory it began with was free for good; None: not yet."""
        limit = self.start_bytes - share * self.anon_bytes
        return self._first(since_seconds, lambda sample: sample.used_bytes <= limit)

    def gone_at(self, since_seconds: float) -> float | None:
        """When the last process had left; None: not yet."""
        return self._first(since_seconds, lambda sample: not sample.populated)

    def available_at(self, since_seconds: float, threshold_bytes: int) -> float | None:
        """When the node's available memory came over the threshold and stayed there; None: it is below."""
        seen = [(sample.at_seconds, sample.available_bytes) for sample in list(self.samples)]
        return _over_for_good(seen, since_seconds, threshold_bytes)

    def _first(self, since_seconds: float, condition: Callable[[Sample], bool]) -> float | None:
        later = [sample for sample in list(self.samples) if sample.at_seconds >= since_seconds]
        return next((sample.at_seconds for sample in later if condition(sample)), None)

    def _watch(self) -> None:
        # This thread alone: a measure that waits for a CPU measures its own wait
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(50))
        while not self._over.is_set():
            used, populated = 0, False
            for cgroup in self.cgroups:
                try:
                    used += int((cgroup / "memory.current").read_text())
                    populated |= "populated 1" in (cgroup / "cgroup.events").read_text()
                except OSError:
                    pass  # removed: nothing is charged to it, nobody is in it
            available = self.node.available_bytes()
            self.samples.append(Sample(time.time(), used, available, populated))
            time.sleep(0.05)


@dataclass
class SummaryWatch(_Watch):
    """Asks kubelet's summary API, through the API server, every 3 s for the node's available memory."""

    api: client.CoreV1Api
    samples: dict[float, int] = field(default_factory=dict)

    def available_at(self, since_seconds: float, threshold_bytes: int) -> float | None:
        """Time of kubelet's first sample from which on memory was over the threshold; None: it is below."""
        return _over_for_good(sorted(dict(self.samples).items()), since_seconds, threshold_bytes)

    def _watch(self) -> None:
        while not self._over.wait(3):  # it costs the node CPU, and there is a new sample every 10 s
            try:
                text = self.api.connect_get_node_proxy_with_path(NODE, "stats/summary")
                memory = ast.literal_eval(text)["node"]["memory"]
            except (ApiException, HTTPError, KeyError):
                continue  # the node is busy: the next one
            moment = datetime.strptime(memory["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
            self.samples[moment] = memory["availableBytes"]


def _over_for_good(samples: Iterable[tuple[float, int]], since_seconds: float, threshold_bytes: int) -> float | None:
    """Time of the first sample, of time and bytes in order, from which on none is below the threshold; None: the last is."""
    later = [(moment, free) for moment, free in samples if moment >= since_seconds]
    short = [number for number, (_, free) in enumerate(later) if free < threshold_bytes]
    after = short[-1] + 1 if short else 0
    return later[after][0] if after < len(later) else None


def _stat(cgroup: Path, name: str) -> int:
    for line in (cgroup / "memory.stat").read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    raise LookupError(f"no {name} in {cgroup}/memory.stat")
