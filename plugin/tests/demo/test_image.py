"""Images and what is built for them."""

from __future__ import annotations

import json
import shutil
import tarfile
import threading
from pathlib import Path

import pytest

from expedited.demo.cache import built_once, content_key
from expedited.demo.cri import ContainerSpec
from expedited.demo.image import build_image, image_from_debian, workload_binary
from expedited.errors import ExpeditedError


def test_the_same_files_make_the_same_image(tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"one")
    for name in ("a.tar", "b.tar"):
        build_image("expedited.local/x:1", {"/bin/program": program}, ("/bin/program",), tmp_path / name)
    program.write_bytes(b"two")
    build_image("expedited.local/x:1", {"/bin/program": program}, ("/bin/program",), tmp_path / "c.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes() != (tmp_path / "c.tar").read_bytes()


def test_an_image_names_every_blob_by_its_digest(tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"x")
    build_image("expedited.local/x:1", {"/bin/program": program}, ("/bin/program",), tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as archive:
        names = archive.getnames()
        index = json.load(archive.extractfile("index.json"))
        entry = index["manifests"][0]
        manifest = json.load(archive.extractfile("blobs/" + entry["digest"].replace(":", "/")))
    assert entry["annotations"]["io.containerd.image.name"] == "expedited.local/x:1"
    assert {f"blobs/{blob['digest'].replace(':', '/')}" for blob in [manifest["config"], *manifest["layers"]]} < set(
        names
    )


def test_a_program_of_the_machine_runs_in_a_container_with_its_libraries(containerd, make_pod):
    image = image_from_debian(containerd, "from-machine", {"sleep": "coreutils", "ls": "coreutils"})
    container_id = containerd.cri.create_container(make_pod(), ContainerSpec(image, (shutil.which("sleep"), "60")))
    containerd.cri.start_container(container_id)
    listed = containerd.cri.exec_sync(container_id, (shutil.which("ls"), "/"))
    assert listed.exit_code == 0
    assert b"tmp" in listed.stdout.split()


def test_a_program_that_is_not_installed_is_named_with_its_package(containerd):
    with pytest.raises(ExpeditedError, match="no-such-program is not installed: apt-get install its-package"):
        image_from_debian(containerd, "nothing", {"no-such-program": "its-package"})


def test_without_a_compiler_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ExpeditedError, match=r"no C compiler \(cc\) .*: apt-get install gcc"):
        workload_binary("hog")


def test_what_is_cached_is_built_once_by_many_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    builds: list[Path] = []

    def build(directory: Path) -> None:
        builds.append(directory)
        (directory / "result").write_text("done")

    key = content_key([b"a"])
    threads = [threading.Thread(target=built_once, args=("thing", key, build)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert (built_once("thing", key, build) / "result").read_text() == "done"


def test_a_build_that_fails_leaves_nothing_and_is_tried_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise ExpeditedError("no")

    with pytest.raises(ExpeditedError):
        built_once("thing", "key", fail)
    assert [path for path in (tmp_path / "expedited" / "thing").iterdir() if path.is_dir()] == []
    assert built_once("thing", "key", lambda directory: (directory / "whole").touch()).is_dir()


def test_parts_are_told_apart_in_a_key():
    assert content_key([b"ab", b"c"]) != content_key([b"a", b"bc"])
