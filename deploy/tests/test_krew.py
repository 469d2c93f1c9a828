"""The kubectl plugin: krew's own check of the manifest, installed by krew for every platform, and run."""

from __future__ import annotations

import gzip
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DEPLOY, run

from expedited import __version__

_MADE_AT = 1_700_000_000
_PLATFORMS = {("linux", "amd64"), ("linux", "arm64"), ("darwin", "amd64"), ("darwin", "arm64")}
_ELF_MACHINES = {0x3E: "amd64", 0xB7: "arm64"}  # elf.h: EM_X86_64, EM_AARCH64
_MACH_MACHINES = {0x01000007: "amd64", 0x0100000C: "arm64"}  # mach/machine.h: CPU_TYPE_X86_64, CPU_TYPE_ARM64
pytestmark = pytest.mark.timeout(1500)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that `make kubectl-plugin` writes, where the manifest says that it lies."""
    folder = tmp_path_factory.mktemp("krew")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        build = (sys.executable, DEPLOY / "krew" / "build", "--output", folder, "--url", url)
        run(*build, env={"SOURCE_DATE_EPOCH": str(_MADE_AT)})
        yield folder
        server.shutdown()


@pytest.fixture(scope="module")
def manifest(place: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((place / "expedited.yaml").read_text()))


@pytest.fixture(scope="module")
def installed(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program where krew has put it for this machine."""
    root = tmp_path_factory.mktemp("root")
    run("krew", "install", "--manifest", place / "expedited.yaml", env={"KREW_ROOT": str(root)})
    return root / "bin" / "kubectl-expedited"


def _say(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it with the machine's own python3, and nothing of this checkout's."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere"}
    return subprocess.run([program, *words], env=environment, capture_output=True, text=True, check=False)


def test_krew_finds_nothing_wrong_and_installs_it_for_every_platform(place: Path, tmp_path: Path) -> None:
    # All that kubectl does about `kubectl krew ...`
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\nshift\nexec krew "$@"\n')
    kubectl.chmod(0o755)
    said = run(
        *("sh", "-c", f'PATH={tmp_path}:$PATH exec validate-krew-manifest -manifest "$0"', place / "expedited.yaml"),
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert f"all {len(_PLATFORMS)} spec.platforms installed fine" in said.stderr


def test_the_manifest_has_our_version_and_what_krews_index_asks_for(manifest: dict[str, Any]) -> None:
    spec = manifest["spec"]
    assert spec["version"] == f"v{__version__}"
    # krew's naming and style guide: one line of some 50 characters, no full stop
    assert len(spec["shortDescription"]) <= 50
    assert not spec["shortDescription"].endswith(".")


def _runs_on(head: bytes) -> set[tuple[str, str]]:
    """The platforms that something compiled is for, by how it begins (elf(5); mach-o/loader.h, fat.h)."""
    if head.startswith(b"\x7fELF\x02\x01"):
        return {("linux", _ELF_MACHINES[int.from_bytes(head[18:20], "little")])}
    if head.startswith(b"\xcf\xfa\xed\xfe"):
        return {("darwin", _MACH_MACHINES[int.from_bytes(head[4:8], "little")])}
    assert head.startswith(b"\xca\xfe\xba\xbe")  # several in one
    starts = range(8, 8 + 20 * int.from_bytes(head[4:8], "big"), 20)
    return {("darwin", _MACH_MACHINES[int.from_bytes(head[start : start + 4], "big")]) for start in starts}


def test_an_archive_has_what_runs_on_its_platform_with_each_python(place: Path, manifest: dict[str, Any]) -> None:
    seen = set()
    for each in manifest["spec"]["platforms"]:
        wanted = each["selector"]["matchLabels"]
        platform = (wanted["os"], wanted["arch"])
        with tarfile.open(place / each["uri"].rpartition("/")[2]) as tar:
            compiled = [member for member in tar if member.name.endswith((".so", ".dylib"))]
            for member in compiled:
                head = tar.extractfile(member).read(64)  # type: ignore[union-attr]
                assert platform in _runs_on(head), member.name
        versions = {name.split("cpython-")[1][:3] for name in (one.name for one in compiled) if "cpython-" in name}
        assert versions == {"311", "312", "313", "314", "315"}
        seen.add(platform)
    assert seen == _PLATFORMS


def test_an_archive_says_nothing_of_its_maker(place: Path) -> None:
    for archive in place.glob("*.tar.gz"):
        assert archive.read_bytes()[4:8] == bytes(4)  # RFC 1952: MTIME
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked) as tar:
            for member in tar:
                assert (member.uid, member.gid, member.uname, member.mtime) == (0, 0, "", _MADE_AT), member.name
                assert member.mode in (0o644, 0o755)


def test_the_installed_program_runs_with_the_machines_python_alone(installed: Path) -> None:
    said = _say(installed, "--help")
    assert said.returncode == 0, said.stderr
    assert "Usage: kubectl expedited" in said.stdout
    assert _say(installed, "--version").stdout == f"kubectl expedited {__version__}\n"


def test_it_asks_a_cluster(installed: Path) -> None:
    """The plugin's own test with an API server, with this program in place of the checkout's."""
    test = "plugin/tests/kube/test_kubectl.py::test_the_program_finds_the_cluster_as_kubectl_does"
    words = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test)
    said = run(*words, env={"KUBECTL_EXPEDITED": str(installed)}, cwd=DEPLOY.parent)
    assert "1 passed" in said.stdout


def test_a_python_that_it_was_not_made_for_is_one_line(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "kubectl-expedited"
    program.write_bytes(installed.read_bytes())  # with no lib beside it: no compiled module fits
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    said = _say(program, "--help")
    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    assert line.startswith("kubectl expedited: this needs CPython 3.11 to 3.15")
