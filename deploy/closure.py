"""The Python packages of uv.lock and our own, laid out in a folder: what the image and the kubectl plugin are made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ["build_wheel", "install", "locked", "plain", "run", "source_date", "tidy"]

CHECKOUT = Path(__file__).resolve().parents[1]
# What runs nothing, or says on which machine it was laid out
_USELESS = (
    *("*.pyi", "*.pyx", "*.pxd"),
    *("*.dist-info/direct_url.json", "*.dist-info/uv_*.json", "*.dist-info/REQUESTED", "*.dist-info/RECORD"),
)


def source_date() -> int:
    """The time that everything made here bears: SOURCE_DATE_EPOCH, else the last commit's, in seconds since the epoch."""
    if "SOURCE_DATE_EPOCH" not in os.environ:
        os.environ["SOURCE_DATE_EPOCH"] = run("git", "log", "-1", "--format=%ct", cwd=CHECKOUT).strip()
    os.environ["TZ"] = "UTC"
    return int(os.environ["SOURCE_DATE_EPOCH"])


def locked(path: Path, *, extras: Iterable[str] = (), without: Iterable[str] = ()) -> Path:
    """Write what uv.lock holds as requirements with hashes: not the development's, and nothing of ``without``."""
    chosen = [word for name in extras for word in ("--extra", name)]
    chosen += [word for name in without for word in ("--prune", name)]
    run(
        *("uv", "export", "--quiet", "--locked", "--no-default-groups"),
        *("--no-emit-project", "--no-header", "--no-annotate"),
        *("--output-file", str(path), *chosen),
        cwd=CHECKOUT,
    )
    return path


def build_wheel(scratch: Path) -> Path:
    """Our own package."""
    run("uv", "build", "--quiet", "--wheel", "--out-dir", str(scratch / "wheel"), cwd=CHECKOUT)
    (wheel,) = (scratch / "wheel").glob("*.whl")
    return wheel


def install(site: Path, *what: str, python: str, platform: str = "") -> None:
    """Put wheels into ``site``; ``what`` as ``uv pip install`` takes it, for this machine's platform or another."""
    elsewhere = ("--python-platform", platform) if platform else ()
    run(
        *("uv", "pip", "install", "--quiet", "--target", str(site), "--python-version", python, *elsewhere),
        *("--only-binary", ":all:", "--no-deps", "--link-mode=copy", *what),
    )


def tidy(site: Path) -> None:
    """Take away what is not needed to run."""
    for useless in [*site.glob("bin"), *site.glob(".lock"), *site.rglob("__pycache__"), *site.glob("*/tests")]:
        shutil.rmtree(useless) if useless.is_dir() else useless.unlink()
    for kind in _USELESS:
        for useless in site.rglob(kind):
            useless.unlink()


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of an archive without its maker: the same files give the same bytes."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = source_date()
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """Run a program; what it printed. Ends the build where it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        sys.exit(f"build: {command[0]} is missing: `make setup`, and for the image apt-get install mmdebstrap buildah")
    if done.returncode:
        sys.exit(f"build: {' '.join(command[:4])} ... failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout
