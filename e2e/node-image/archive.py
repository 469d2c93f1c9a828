"""Image archives from folders, for `docker load` and `ctr image import` alike, with no daemon and no registry.

A folder becomes the image's only layer, uncompressed: it is read once, on the same machine, and memory is faster than gzip.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

__all__ = ["write_archive"]


def write_archive(folder: Path, archive: Path, names: Sequence[str], config: Mapping[str, object]) -> None:
    """Write the image to ``archive``, the same bytes for the same files.

    Args:
        folder: The image's root, with owners and modes as they are to be.
        archive: Where to.
        names: What it is called, each as ``repository:tag``.
        config: Env, Entrypoint and so on, as the OCI image configuration's ``config`` has them.
    """
    with tempfile.NamedTemporaryFile(dir=archive.parent) as layer:
        command = ["tar", "--create", "--sort=name", "--numeric-owner", "--mtime=@0", "--xattrs", "--format=posix"]
        # Access and change times and GNU tar's own pid would make each archive another one
        command += ["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime", "-C", str(folder), "."]
        subprocess.run(command, stdout=layer, check=True)
        layer.seek(0)
        digest = hashlib.file_digest(layer, "sha256").hexdigest()
        size = layer.tell()
        image = _json(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                "history": [{"created_by": "expedited"}],
            }
        )
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": _descriptor("application/vnd.oci.image.config.v1+json", _sha256(image), len(image)),
                "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", digest, size)],
            }
        )
        entry = _descriptor("application/vnd.oci.image.manifest.v1+json", _sha256(manifest), len(manifest))
        index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": _annotations(name)} for name in names]}
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as out:
            _add(out, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            _add(out, "index.json", _json(index))
            # docker's own form of the same
            blobs = "blobs/sha256/"
            legacy = {"Config": blobs + _sha256(image), "RepoTags": list(names), "Layers": [blobs + digest]}
            _add(out, "manifest.json", _json([legacy]))
            for content in (image, manifest):
                _add(out, blobs + _sha256(content), content)
            layer.seek(0)
            member = tarfile.TarInfo(blobs + digest)
            member.size = size
            out.addfile(member, layer)


def _annotations(name: str) -> dict[str, str]:
    return {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _add(out: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    out.addfile(member, BytesIO(content))
