"""What `expedited install` puts onto a node, and that it takes all of it back."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from expedited.demo.daemon import PrivateContainerd
from expedited.demo.runtime import find_runtime
from expedited.errors import ExpeditedError, UsageError
from expedited.install import Starter, install, remove
from expedited.install.containerd import Daemon, turn_nri_on
from expedited.install.record import Record
from expedited.install.texts import CONTAINERD_DROP_IN, NRI_PLUGIN, UNIT

_DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
_PROGRAM = "/usr/local/bin/expedited"
_OFF = "version = 2\n[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n"
_NRI = "io.containerd.nri.v1.nri"


def _everything(root: Path) -> dict[str, tuple[int, str]]:
    """Each file, link and directory below ``root``, by mode and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        content = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    return found


def _everything_as_bytes(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class Node:
    """A scratch root, and what was said about it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.said: list[str] = []

    def install(self, starter: Starter | None = Starter.SYSTEMD) -> list[str]:
        self.said.clear()
        install(self.root, starter, self.said.append, program=_PROGRAM)
        return list(self.said)

    def remove(self) -> list[str]:
        self.said.clear()
        remove(self.root, self.said.append)
        return list(self.said)

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "etc").mkdir()
    return Node(tmp_path)


@pytest.fixture
def with_containerd(node: Node) -> Node:
    """The node has a real containerd."""
    place = node.root / "usr/bin/containerd"
    place.parent.mkdir(parents=True)
    place.symlink_to(find_runtime().containerd)
    return node


def _effective(node: Node) -> dict[str, object]:
    command = [node.root / "usr/bin/containerd", "--config", node.root / "etc/containerd/config.toml", "config", "dump"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(tomllib.loads(answer)["plugins"][_NRI])


@pytest.mark.parametrize("starter", list(Starter))
def test_all_of_it_goes_and_nothing_else(node: Node, starter: Starter) -> None:
    node.write("opt/theirs/file", "theirs")
    before = _everything(node.root)
    said = node.install(starter)
    assert said
    assert _everything(node.root) != before
    node.remove()
    assert _everything(node.root) == before


@pytest.mark.parametrize("starter", list(Starter))
def test_again_changes_nothing(node: Node, starter: Starter) -> None:
    node.install(starter)
    once = _everything(node.root)
    assert node.install(starter) == ["everything was in place already"]
    assert _everything(node.root) == once
    node.remove()
    assert node.remove() == ["nothing is installed"]


def test_again_a_runtime_that_starts_it_has_yet_to_be_restarted(with_containerd: Node) -> None:
    with_containerd.install(Starter.NRI)
    assert with_containerd.install(Starter.NRI)[-2:] == [
        "everything was in place already",
        "a new version of the program runs once containerd is restarted: systemctl restart containerd",
    ]


def test_each_thing_is_said(node: Node) -> None:
    unit, wanted = (
        "/etc/systemd/system/expedited.service",
        "/etc/systemd/system/multi-user.target.wants/expedited.service",
    )
    assert node.install() == [f"wrote {unit}", f"linked {wanted} to {unit}"]
    assert node.remove() == [f"removed {wanted}", f"removed {unit}"]


def test_what_was_changed_since_is_left_and_named(node: Node) -> None:
    node.install()
    unit = node.root / "etc/systemd/system/expedited.service"
    unit.write_text(unit.read_text() + "# mine\n")
    said = node.remove()
    assert any("changed since" in line and "expedited.service" in line for line in said)
    assert unit.read_text().endswith("# mine\n")


def test_somebody_elses_file_is_never_replaced(node: Node) -> None:
    node.write("etc/systemd/system/expedited.service", "theirs")
    before = _everything(node.root)
    with pytest.raises(ExpeditedError, match="is there already"):
        node.install()
    assert _everything(node.root) == before


def test_what_was_changed_since_is_not_written_anew(node: Node) -> None:
    node.install()
    node.write("etc/systemd/system/expedited.service", "theirs")
    said = node.install()
    assert any(line.startswith("left /etc/systemd/system/expedited.service") for line in said)
    assert (node.root / "etc/systemd/system/expedited.service").read_text() == "theirs"
    assert "everything was in place already" not in said


def test_nothing_is_written_out_of_the_root(node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (node.root / "opt").symlink_to(outside)
    with pytest.raises(ExpeditedError, match="/opt/nri/plugins/10-expedited: a link on the way to it leads out of"):
        node.install(Starter.NRI)
    assert list(outside.iterdir()) == []
    (node.root / "opt").unlink()
    (node.root / "srv").mkdir()
    (node.root / "opt").symlink_to("srv")
    node.install(Starter.NRI)
    assert (node.root / "srv/nri/plugins/10-expedited").exists()


def test_a_node_has_one_agent(node: Node) -> None:
    node.install(Starter.SYSTEMD)
    with pytest.raises(UsageError, match="--remove"):
        node.install(Starter.NRI)


def test_systemd_starts_it_where_it_runs_and_else_the_runtime(node: Node) -> None:
    node.install(None)
    assert (node.root / "opt/nri/plugins/10-expedited").exists()
    node.remove()
    (node.root / "run/systemd/system").mkdir(parents=True)
    node.install(None)
    assert (node.root / "etc/systemd/system/expedited.service").exists()


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"files": 1}'])
def test_a_damaged_record_ends_in_one_line(node: Node, text: str) -> None:
    node.install()
    (node.root / "var/lib/expedited/installed.json").write_text(text)
    with pytest.raises(ExpeditedError, match="is damaged"):
        node.remove()


def test_what_was_cut_short_is_taken_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _everything(node.root)

    def no_links(self: Record, path: str, to: str) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(Record, "link", no_links)
    with pytest.raises(KeyboardInterrupt):
        node.install()
    assert _everything(node.root) == before


# -- the files in deploy/ --------------------------------------------------------------------------------------------------


def test_the_files_to_be_copied_by_hand_are_the_same() -> None:
    assert (_DEPLOY / "systemd/expedited.service").read_text() == UNIT.format(program=_PROGRAM)
    assert (_DEPLOY / "nri/10-expedited").read_text() == NRI_PLUGIN.format(program=_PROGRAM)
    assert (_DEPLOY / "containerd/10-expedited.toml").read_text() == CONTAINERD_DROP_IN
    assert os.access(_DEPLOY / "nri/10-expedited", os.X_OK)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "expedited.service"
    unit.write_text(UNIT.format(program=sys.executable))
    verify = shutil.which("systemd-analyze")
    assert verify, "systemd-analyze is missing: apt-get install systemd"
    answer = subprocess.run([verify, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert [line for line in answer.stderr.splitlines() if "expedited.service" in line] == []
    assert answer.returncode == 0


# -- containerd's configuration, by containerd itself ----------------------------------------------------------------------


def test_a_containerd_with_nri_on_is_left_alone(with_containerd: Node) -> None:
    if find_runtime().version < (2, 0):  # else it is by default, and there need be no configuration
        with_containerd.write("etc/containerd/config.toml", _OFF.replace("true", "false"))
    place = with_containerd.root / "etc/containerd"
    before = (place.exists(), _everything(place))
    said = with_containerd.install()
    assert "containerd: NRI is on, its configuration is left alone" in said
    assert (place.exists(), _everything(place)) == before


@pytest.mark.parametrize("head", ["", "imports = ['conf.d/*.toml']\n"])
def test_nri_that_is_off_by_other_means_is_put_on(with_containerd: Node, head: str) -> None:
    node = with_containerd
    # As 1.7 has it by itself, but in a drop-in of the node's own, which ours goes after
    node.write("etc/containerd/config.toml", "version = 2\n" if not head else f"version = 2\n{head}")
    node.write("etc/containerd/conf.d/00-theirs.toml", _OFF)
    if not head:
        node.write("etc/containerd/config.toml", "imports = ['conf.d/00-theirs.toml', 'conf.d/1*.toml']\nversion = 2\n")
    before = _everything(node.root)
    assert _effective(node)["disable"] is True
    said = node.install()
    assert _effective(node)["disable"] is False
    assert any(line.startswith("restart containerd") for line in said)
    assert node.install() == ["everything was in place already"]
    node.remove()
    assert _everything(node.root) == before
    assert _effective(node)["disable"] is True


def test_a_configuration_that_is_no_toml_is_named(with_containerd: Node) -> None:
    with_containerd.write("etc/containerd/config.toml", "version = \n")
    before = _everything(with_containerd.root)
    with pytest.raises(ExpeditedError, match=r"config\.toml is not TOML"):
        with_containerd.install()
    assert _everything(with_containerd.root) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"version = \xff\n", "is not TOML"), (b'version = "two"\n', "config.toml"), (b"imports = 3\n", "config.toml")],
)
def test_a_configuration_of_another_kind_is_named(with_containerd: Node, text: bytes, words: str) -> None:
    (with_containerd.root / "etc/containerd").mkdir()
    (with_containerd.root / "etc/containerd/config.toml").write_bytes(text)
    before = _everything_as_bytes(with_containerd.root)
    with pytest.raises(ExpeditedError, match=words):
        with_containerd.install()
    assert _everything_as_bytes(with_containerd.root) == before


@pytest.mark.parametrize("printed", ["printf '\\377'", "echo '['", "echo 'plugins = 3'", "echo 'version = \"x\"'"])
def test_a_containerd_that_prints_no_configuration_is_named(node: Node, printed: str) -> None:
    node.write("usr/bin/containerd", f"#!/bin/sh\n{printed}\n")
    (node.root / "usr/bin/containerd").chmod(0o755)
    with pytest.raises(ExpeditedError, match="is no configuration"):
        node.install()


def test_one_line_is_added_where_drop_ins_are_not_read_and_goes_again(with_containerd: Node) -> None:
    node = with_containerd
    text = "# theirs\n" + _OFF
    node.write("etc/containerd/config.toml", text)
    node.install()
    # The drop-in goes before the file that imports it
    assert _effective(node)["disable"] is False
    assert (node.root / "etc/containerd/config.toml").read_text().endswith(text)
    node.remove()
    assert (node.root / "etc/containerd/config.toml").read_text() == text
    assert not (node.root / "etc/containerd/conf.d").exists()


def test_a_configuration_that_is_managed_elsewhere_stays_where_it_is(with_containerd: Node) -> None:
    """As 1.7's own default has it, imports empty, behind a symbolic link, and somebody else's."""
    node = with_containerd
    node.write("etc/managed/containerd.toml", "disabled_plugins = []\nimports = []\n" + _OFF)
    managed = node.root / "etc/managed/containerd.toml"
    os.chown(managed, 1234, 1234)
    (node.root / "etc/containerd").mkdir()
    (node.root / "etc/containerd/config.toml").symlink_to("../managed/containerd.toml")
    before = _everything(node.root)
    node.install()
    assert _effective(node)["disable"] is False
    assert (node.root / "etc/containerd/config.toml").is_symlink()
    assert (managed.stat().st_uid, managed.stat().st_gid) == (1234, 1234)
    assert node.install() == ["everything was in place already"]
    node.remove()
    assert _everything(node.root) == before


@pytest.mark.parametrize(("version", "folder"), [(2, "config.toml.d"), (3, "config-v3.toml.d")])
def test_k3s_has_places_of_its_own(node: Node, version: int, folder: str) -> None:
    etc = "var/lib/rancher/k3s/agent/etc/containerd"
    binary = node.root / "var/lib/rancher/k3s/data/current/bin/containerd"
    binary.parent.mkdir(parents=True)
    binary.symlink_to(find_runtime().containerd)
    if version == 3 and find_runtime().version < (2, 0):
        pytest.skip("this containerd is older than version 3 of its configuration")
    node.write(f"{etc}/config.toml", _OFF.replace("version = 2", f"version = {version}"))
    before = _everything(node.root)
    said = node.install()
    assert (node.root / etc / folder / "10-expedited.toml").read_text() == CONTAINERD_DROP_IN
    # k3s writes this one anew
    assert (node.root / etc / "config.toml").read_text() == before[f"{etc}/config.toml"][1]
    assert any(line.startswith("restart k3s") for line in said)
    node.remove()
    assert _everything(node.root) == before


def test_imports_of_the_nodes_own_are_not_edited(with_containerd: Node) -> None:
    node = with_containerd
    node.write("etc/containerd/theirs.toml", "version = 2\n")
    node.write("etc/containerd/config.toml", f"imports = ['theirs.toml']\n{_OFF}")
    before = _everything(node.root)
    with pytest.raises(ExpeditedError, match="has imports of its own"):
        node.install()
    assert _everything(node.root) == before


# -- and a containerd that runs with it ------------------------------------------------------------------------------------


@pytest.fixture
def own_containerd() -> Iterator[PrivateContainerd]:
    if os.geteuid() != 0:
        pytest.skip("a private containerd needs root")
    root = Path(tempfile.mkdtemp(prefix="expedited-"))
    daemon = PrivateContainerd(root)
    yield daemon
    daemon.stop()


def test_containerd_starts_the_plugin_that_was_put_in_place(
    own_containerd: PrivateContainerd, node: Node, run_dir: Path
) -> None:
    program = Path(sys.executable).with_name("expedited")
    install(node.root, Starter.NRI, node.said.append, program=str(program))
    plugin = (node.root / "opt/nri/plugins/10-expedited").read_text()
    # This machine's agent is not to be disturbed: a directory of its own, and no other runtime
    flags = f"--run-dir={run_dir} --metrics-address= --containerd-socket= --state-root={own_containerd.state_root}"
    own_containerd.nri_plugin_dir.mkdir(parents=True)
    target = own_containerd.nri_plugin_dir / "10-expedited"
    target.write_text(plugin.replace("expedited run", f"expedited run {flags}"))
    target.chmod(0o755)
    with own_containerd:
        answer = subprocess.run(
            [program, "status", f"--run-dir={run_dir}", "--json"], capture_output=True, text=True, check=False
        )
        give_up = 100
        while (answer.returncode or '"nri": "ok"' not in answer.stdout) and give_up:
            give_up -= 1
            answer = subprocess.run(
                [program, "status", f"--run-dir={run_dir}", "--json"], capture_output=True, text=True, check=False
            )
        assert '"nri": "ok"' in answer.stdout, answer.stderr + own_containerd.log_path.read_text()[-3000:]


def test_containerd_starts_with_the_drop_in_and_listens_for_plugins(
    own_containerd: PrivateContainerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expedited.demo import daemon as of_demo

    own = of_demo._configuration

    def with_drop_in(daemon: PrivateContainerd) -> str:
        """The demo's configuration with NRI off, and our drop-in imported."""
        text = own(daemon).replace("disable = false\nsocket_path", "disable = true\nsocket_path")
        assert "disable = true" in text
        return f"imports = ['conf.d/*.toml']\n{text}"

    monkeypatch.setattr(of_demo, "_configuration", with_drop_in)
    own_containerd.root.mkdir(exist_ok=True)
    with own_containerd:
        assert not own_containerd.nri_socket.exists()
    own_containerd.root.mkdir()
    folder = own_containerd.root / "conf.d"
    folder.mkdir()
    # Where this containerd's sockets are is not for the drop-in to say; on a node the defaults are right
    places = f'  socket_path = "{own_containerd.nri_socket}"\n  plugin_path = "{own_containerd.root}/nri-plugins"\n'
    (folder / "10-expedited.toml").write_text(CONTAINERD_DROP_IN + places)
    with own_containerd:
        assert own_containerd.nri_socket.exists()


# -- the command -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    program = Path(sys.executable).with_name("expedited")

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, "install", *words], capture_output=True, text=True, check=False)

    return call


def test_the_command_writes_where_it_is_itself(
    node: Node, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    answer = command("--host", "--start-by", "nri", "--root", str(node.root))
    assert (answer.returncode, answer.stdout.splitlines()[0]) == (0, "wrote /opt/nri/plugins/10-expedited")
    program = Path(sys.executable).with_name("expedited")
    assert f"exec {program} run" in (node.root / "opt/nri/plugins/10-expedited").read_text()
    assert command("--remove", "--root", str(node.root)).returncode == 0
    assert sorted(_everything(node.root)) == ["etc"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say either --host"),
        (("--host", "--remove"), "say either --host"),
        (("--host", "--start-by", "sytemd"), "did you mean systemd?"),
        (("--remove", "--start-by", "nri"), "--start-by goes with --host"),
        (("--host", "--root", "here"), "give the absolute path of a directory"),
        (("--host", "--root", "/nowhere/at/all"), "give the absolute path of a directory"),
    ],
)
def test_wrong_words_end_in_one_line(
    command: Callable[..., subprocess.CompletedProcess[str]], words: tuple[str, ...], said: str
) -> None:
    answer = command(*words)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert said in line


def test_a_hash_in_the_record_is_of_what_was_written(node: Node) -> None:
    node.install()
    record = Record.read(node.root, node.said.append)
    unit = (node.root / "etc/systemd/system/expedited.service").read_bytes()
    assert record.files["/etc/systemd/system/expedited.service"] == hashlib.sha256(unit).hexdigest()


def test_a_daemon_that_can_not_be_asked_is_named(node: Node) -> None:
    daemon = Daemon("containerd", "/bin/false", "/etc/containerd/config.toml", {2: "/etc/containerd/conf.d"})
    with pytest.raises(ExpeditedError, match="config dump fails"):
        turn_nri_on(daemon, Record(node.root, node.said.append))
