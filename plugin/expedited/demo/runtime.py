"""The container runtime that the demo and the tests run: the machine's own if it will do, else built from Go modules.

"Will do" is containerd 1.7 or later (the first with NRI as it is now), with its shim, ctr and runc: Debian 13's packages.
Older ones, or none, are replaced by what deploy/runtime/go.mod names, built once and kept in the cache.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from expedited.demo.cache import built_once, content_key
from expedited.errors import ExpeditedError

__all__ = ["OLDEST_CONTAINERD", "RuntimeBinaries", "find_runtime"]

#: The first release with NRI's present protocol.
OLDEST_CONTAINERD = (1, 7)

_PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
_PACKAGES = (
    "github.com/containerd/containerd/v2/cmd/containerd",
    "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    "github.com/containerd/containerd/v2/cmd/ctr",
    "github.com/opencontainers/runc",
)
_WHAT_TO_INSTALL = "apt-get install containerd runc (Debian 13), or Go 1.24 or later and a C compiler to build them"


@dataclass(frozen=True, slots=True)
class RuntimeBinaries:
    """Programs that belong together.

    Attributes:
        version: containerd's (major, minor).
        origin: Where they are from, for the user: ``this machine's`` or ``built from Go modules``.
    """

    containerd: Path
    shim: Path
    ctr: Path
    runc: Path
    version: tuple[int, int]
    origin: str

    @property
    def search_path(self) -> str:
        """A PATH that has exactly these first, for the daemon: it looks its shim up there, and the shim its runc."""
        own = dict.fromkeys(str(program.parent) for program in (self.containerd, self.shim, self.runc))
        return ":".join([*own, os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")])


def find_runtime() -> RuntimeBinaries:
    """The machine's runtime if it is recent enough, else our own build of it.

    Raises:
        ExpeditedError: there is none, and what it takes to build one is not there; says what to install.
    """
    return _machines_own() or _built()


def _machines_own() -> RuntimeBinaries | None:
    # /usr/sbin: Debian has runc there, and it is not on every user's PATH
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    found = [shutil.which(name, path=path) for name in _PROGRAMS]
    if None in found:
        return None
    containerd, shim, ctr, runc = (Path(name) for name in found if name)
    version = _version(containerd)
    if version is None or version < OLDEST_CONTAINERD:
        return None
    return RuntimeBinaries(containerd, shim, ctr, runc, version, "this machine's")


def _version(containerd: Path) -> tuple[int, int] | None:
    # "containerd github.com/containerd/containerd/v2 2.1.9+unknown", Debian: "... 1.7.24~ds1 1.7.24~ds1-6"
    try:
        answer = subprocess.run([containerd, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"\sv?(\d+)\.(\d+)\.", answer)
    return (int(match[1]), int(match[2])) if match else None


def _built() -> RuntimeBinaries:
    module = _module_directory()
    go_version = _go_version(module)
    files = [(module / name).read_bytes() for name in ("go.mod", "go.sum")]
    key = content_key([*files, go_version.encode(), platform.machine().encode()])
    place = built_once("runtime", key, lambda directory: _build(module, directory))
    programs = [place / name for name in _PROGRAMS]
    version = _version(programs[0])
    if version is None:
        raise ExpeditedError(f"the containerd built in {place} does not run: remove that directory and try again")
    containerd, shim, ctr, runc = programs
    return RuntimeBinaries(containerd, shim, ctr, runc, version, "built from Go modules")


def _module_directory() -> Path:
    # Of a checkout: an installed package has no deploy/ beside it.
    directory = Path(__file__).resolve().parents[3] / "deploy" / "runtime"
    if not (directory / "go.mod").is_file():
        raise ExpeditedError(
            f"no containerd {'.'.join(map(str, OLDEST_CONTAINERD))} or later here, and no checkout to build one from: "
            "apt-get install containerd runc (Debian 13), or run this in a checkout of expedited"
        )
    return directory


def _go_version(module: Path) -> str:
    """Of the Go that would build the module, which may be one that the installed Go fetches."""
    go, compiler = shutil.which("go"), shutil.which("cc")
    if go is None or compiler is None:
        missing = "go" if go is None else "cc"
        raise ExpeditedError(f"no containerd 1.7 or later here, and no {missing} to build one: {_WHAT_TO_INSTALL}")
    answer = subprocess.run([go, "env", "GOVERSION"], cwd=module, capture_output=True, text=True, check=False)
    if answer.returncode or not answer.stdout.startswith("go1."):
        said = (answer.stderr.strip().splitlines() or ["it named no version"])[-1]
        raise ExpeditedError(f"no containerd 1.7 or later here, and {go} can't build one ({said}): {_WHAT_TO_INSTALL}")
    return answer.stdout.strip()


def _build(module: Path, directory: Path) -> None:
    command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", f"{directory}/", *_PACKAGES]
    answer = subprocess.run(command, cwd=module, capture_output=True, text=True, check=False)
    if answer.returncode:
        said = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExpeditedError(f"building containerd and runc in {module} failed: {said}; or {_WHAT_TO_INSTALL}")


if __name__ == "__main__":
    try:
        found = find_runtime()
    except ExpeditedError as problem:
        sys.exit(f"expedited: {problem}")
    print(f"containerd {'.'.join(map(str, found.version))}, {found.origin}: {found.containerd}", file=sys.stderr)
