"""Which runtime is taken, and what is said when there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from expedited.demo import runtime
from expedited.demo.runtime import find_runtime
from expedited.errors import ExpeditedError


def _machine_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> Path:
    """A PATH on which containerd says it is of that version."""
    for name in ("containerd", "containerd-shim-runc-v2", "ctr", "runc"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho containerd github.com/containerd/containerd {version}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.mark.parametrize(("said", "version"), [("1.7.24~ds1 1.7.24~ds1-6", (1, 7)), ("v2.2.0 abcdef", (2, 2))])
def test_the_machines_own_runtime_is_taken_if_it_is_recent_enough(tmp_path, monkeypatch, said, version):
    place = _machine_with(tmp_path, monkeypatch, said)
    found = find_runtime()
    assert (found.containerd, found.version, found.origin) == (place / "containerd", version, "this machine's")
    assert found.search_path.split(":")[0] == str(place)


def test_an_older_one_is_passed_over(tmp_path, monkeypatch):
    go = shutil.which("go")
    assert go, "no go: make setup"
    _machine_with(tmp_path, monkeypatch, "1.6.20~ds1 1.6.20~ds1-1+deb12u1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(go).parent}:/usr/bin:/bin")
    built = []
    monkeypatch.setattr(runtime, "built_once", lambda name, key, build: built.append(name) or tmp_path)
    # What is built and kept is made once, by whoever needs it: minutes, where the machine's own is recent enough
    assert find_runtime().origin == "built from Go modules"
    assert built == ["runtime"]


def test_without_containerd_and_without_go_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(runtime, "_machines_own", lambda: None)
    with pytest.raises(ExpeditedError, match=r"no go to build one: apt-get install containerd runc") as caught:
        find_runtime()
    assert "\n" not in str(caught.value)


def test_a_go_that_is_too_old_is_named(tmp_path, monkeypatch):
    for name, script in (("go", "echo 'invalid go version' >&2; exit 1"), ("cc", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(runtime, "_machines_own", lambda: None)
    with pytest.raises(ExpeditedError, match=r"can't build one \(invalid go version\)"):
        find_runtime()


def test_the_binaries_are_a_version_that_has_nri():
    found = find_runtime()
    assert found.version >= runtime.OLDEST_CONTAINERD
    assert all(program.is_file() for program in (found.containerd, found.shim, found.ctr, found.runc))
