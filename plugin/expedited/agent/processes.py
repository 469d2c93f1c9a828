"""What our own processes cost: their memory, as the kernel counts it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

from expedited.api.backend import ProcessStatus

__all__ = ["give_back", "measure"]


def measure(name: str, pid: int) -> ProcessStatus | None:
    """Resident and proportional memory of a process, from /proc/PID/smaps_rollup (proc_pid_smaps(5)).

    Returns:
        None where there is no such process, or it is not ours to look at.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    bytes_of = {key: int(value.split()[0]) << 10 for key, _, value in (line.partition(":") for line in lines) if value}
    return ProcessStatus(name, pid, bytes_of.get("Rss", 0), bytes_of.get("Pss", 0))


def give_back() -> None:
    """Return to the node what start-up has used and nothing needs any more: malloc_trim(3), where libc has it."""
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
