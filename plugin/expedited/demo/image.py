"""Images made on the spot, so that no registry is needed: an OCI tar of a few files, imported by ctr.

The same files give the same image, byte for byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from expedited.demo.cache import built_once, content_key
from expedited.demo.daemon import CRI_NAMESPACE, PAUSE_IMAGE, PrivateContainerd
from expedited.errors import ExpeditedError

__all__ = [
    "HOG_IMAGE",
    "build_image",
    "image_from_debian",
    "import_image",
    "import_workloads",
    "program_file",
    "workload_binary",
]

#: The image of hog.c; its command is ``/hog``.
HOG_IMAGE = "expedited.local/hog:1"

_SOURCES = Path(__file__).resolve().parent
# platform.machine() -> GOARCH, which image configurations use
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}


def workload_binary(name: str) -> Path:
    """``hog`` or ``pause``, compiled statically from the source beside this module, from the cache if it is there.

    Raises:
        ExpeditedError: there is no C compiler, or no static libc.
    """
    source = _SOURCES / f"{name}.c"
    compiler = shutil.which("cc")
    if compiler is None:
        raise ExpeditedError(f"no C compiler (cc) to build the workload {name!r}: apt-get install gcc libc6-dev")
    command = [compiler, "-O2", "-static", "-pthread", "-o"]

    def build(directory: Path) -> None:
        answer = subprocess.run([*command, directory / name, source], capture_output=True, text=True, check=False)
        if answer.returncode:
            said = (answer.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExpeditedError(f"{compiler} could not build {source.name} ({said}): apt-get install gcc libc6-dev")

    key = content_key([source.read_bytes(), " ".join(command).encode(), platform.machine().encode()])
    return built_once("workload", key, build) / name


def build_image(reference: str, files: Mapping[str, Path], command: tuple[str, ...], tar: Path) -> None:
    """Write an OCI image of one layer.

    Args:
        reference: The image's name, as ``registry/name:tag``.
        files: Absolute path in the image -> file on this machine; all become root's, mode 0755.
        command: The image's entry point.
        tar: Where to write.
    """
    layer = _layer(files)
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": list(command), "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "history": [{"created_by": "expedited"}],
    }
    blobs = {"layer": layer, "config": json.dumps(config, sort_keys=True).encode()}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _descriptor("application/vnd.oci.image.config.v1+json", blobs["config"]),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    }
    blobs["manifest"] = json.dumps(manifest, sort_keys=True).encode()
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", blobs["manifest"])
    entry["annotations"] = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", json.dumps(index, sort_keys=True).encode())
        for blob in blobs.values():
            _add(archive, f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}", blob)


def import_image(containerd: PrivateContainerd, tar: Path, reference: str) -> None:
    """Import an image, for CRI and for ctr's default namespace, and wait until pods can be made of it."""
    for namespace in (CRI_NAMESPACE, "default"):
        containerd.ctr("image", "import", "--no-unpack", str(tar), namespace=namespace)
    deadline = time.monotonic() + 60
    while not containerd.cri.has_image(reference):
        # CRI learns of it by an event
        if time.monotonic() > deadline:
            raise ExpeditedError(f"the image {reference} was imported, but containerd's CRI does not know it")
        time.sleep(0.01)


def import_workloads(containerd: PrivateContainerd) -> None:
    """Import the images of ``pause`` and ``hog``, without which no pod runs."""
    for name, reference in (("pause", PAUSE_IMAGE), ("hog", HOG_IMAGE)):
        _import_files(containerd, reference, {f"/{name}": workload_binary(name)}, (f"/{name}",))


def program_file(program: str, package: str) -> str:
    """Where a program of this machine is.

    Raises:
        ExpeditedError: it is not installed; names the Debian package that has it.
    """
    found = shutil.which(program, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise ExpeditedError(f"{program} is not installed: apt-get install {package}")
    return found


def image_from_debian(containerd: PrivateContainerd, name: str, programs: Mapping[str, str]) -> str:
    """Import an image of programs of this machine, each with its shared libraries; returns the image's reference.

    Args:
        containerd: Where to.
        name: What to call it.
        programs: Program, as on PATH -> Debian package that has it, for the message when it is missing.

    Raises:
        ExpeditedError: a program is not installed; names its package.
    """
    files: dict[str, Path] = {}
    first = ""
    for program, package in programs.items():
        found = program_file(program, package)
        first = first or found
        files[found] = Path(found).resolve()
        files.update(_libraries(files[found]))
    reference = f"expedited.local/{name}:1"
    _import_files(containerd, reference, files, (first,))
    return reference


def _import_files(
    containerd: PrivateContainerd, reference: str, files: Mapping[str, Path], command: tuple[str, ...]
) -> None:
    with tempfile.TemporaryDirectory(dir=containerd.root) as directory:
        tar = Path(directory) / "image.tar"
        build_image(reference, files, command, tar)
        import_image(containerd, tar, reference)


def _libraries(program: Path) -> dict[str, Path]:
    """What the dynamic loader would load for it, itself included, by ldd(1)."""
    answer = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    if answer.returncode:  # "not a dynamic executable": static
        return {}
    # "libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)" and, for the loader, "/lib64/ld-linux-x86-64.so.2 (0x…)"
    paths = re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", answer.stdout, re.MULTILINE)
    return {path: Path(path).resolve() for path in paths}


def _layer(files: Mapping[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        directories = {"tmp", "proc", "sys", "dev", "etc", "run"}
        for name in files:
            directories.update(str(parent).lstrip("/") for parent in Path(name).parents)
        for directory in sorted(directories - {""}):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            archive.addfile(entry)
        _add(archive, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
        for name, source in sorted(files.items()):
            _add(archive, name.lstrip("/"), source.read_bytes(), mode=0o755)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)  # owner root, time 0: the same every time
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _descriptor(media_type: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}
