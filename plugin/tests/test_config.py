from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from expedited import config
from expedited.errors import UsageError
from expedited.settings import AgentSettings
from expedited.teardown.policy import Mode, Order, PageCache, Policy


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith("EXPEDITED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "absent.yaml")


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path | None = None, **overrides: object) -> str:
    with pytest.raises(UsageError) as caught:
        config.load(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.exit_code == 2
    return text


def test_without_anything_the_defaults_hold() -> None:
    assert config.load(None, {}) == AgentSettings()


def test_every_setting_of_the_agent_can_be_written() -> None:
    assert {field.name for field in dataclasses.fields(AgentSettings)} == set(config._Model.model_fields)
    assert set(config.ACCEPTED) == set(config._Model.model_fields)


def test_a_file_sets_everything(write) -> None:  # type: ignore[no-untyped-def]
    path = write(
        """
run-dir: /run/other
state-roots: [/run/a/*, /run/b]
nri-socket:
containerd-socket: unix:///run/k3s/containerd/containerd.sock
cri-namespace: k3s
metrics-address: "[::1]:9000"
policy:
  mode: off
  page-cache: keep
  boost: off
  min-size: 64Mi
  order: follow
  deadline: 1m
namespaces:
  kube-system:
    mode: observe
  web:
    boost: on
source: observe
budget-seconds: 80ms
keep-striker: true
kubernetes: /etc/kubernetes/agent.conf
node-name: worker-1.example
event-min-size-bytes: 1Gi
node-condition: true
log-level: debug
log-format: json
"""
    )

    node = Policy(Mode.OFF, PageCache.KEEP, False, 64 << 20, Order.FOLLOW, 60.0)
    assert config.load(path, {}) == AgentSettings(
        run_dir="/run/other",
        state_roots=("/run/a/*", "/run/b"),
        nri_socket="",
        containerd_socket="/run/k3s/containerd/containerd.sock",
        cri_namespace="k3s",
        metrics_address="[::1]:9000",
        policy=node,
        namespaces={
            "kube-system": dataclasses.replace(node, mode=Mode.OBSERVE),
            "web": dataclasses.replace(node, boost=True),
        },
        source="observe",
        budget_seconds=0.08,
        keep_striker=True,
        kubernetes="/etc/kubernetes/agent.conf",
        node_name="worker-1.example",
        event_min_size_bytes=1 << 30,
        node_condition=True,
        log_level="debug",
        log_format="json",
    )


def test_flags_win_over_the_environment_and_that_over_the_file(write, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    path = write(
        "run-dir: /file\nlog-level: error\ncri-namespace: file\npolicy: {mode: off, boost: off, order: lead}\n"
    )
    monkeypatch.setenv("EXPEDITED_RUN_DIR", "/env")
    monkeypatch.setenv("EXPEDITED_LOG_LEVEL", "warning")
    monkeypatch.setenv("EXPEDITED_POLICY__MODE", "observe")
    monkeypatch.setenv("EXPEDITED_POLICY__BOOST", "on")

    settings = config.load(path, {"run_dir": "/flag", "nri-socket": None, "policy": {"mode": "compare", "order": None}})

    assert (settings.run_dir, settings.log_level, settings.cri_namespace) == ("/flag", "warning", "file")
    assert settings.nri_socket == AgentSettings().nri_socket
    assert settings.policy == Policy(mode=Mode.COMPARE, boost=True, order=Order.LEAD)


def test_the_environment_can_say_lists_and_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPEDITED_STATE_ROOTS", "/run/a, /run/b/*")
    monkeypatch.setenv("EXPEDITED_NAMESPACES", '{"kube-system": {"min-size": "4Mi"}}')
    monkeypatch.setenv("EXPEDITED_NAMESPACES__web__MODE", "off")
    monkeypatch.setenv("EXPEDITED_POLICY__MIN_SIZE", "2Mi")

    settings = config.load(None, {})

    assert settings.state_roots == ("/run/a", "/run/b/*")
    assert settings.policy.min_size_bytes == 2 << 20
    assert settings.namespaces["kube-system"].min_size_bytes == 4 << 20
    assert settings.namespaces["web"] == Policy(mode=Mode.OFF, min_size_bytes=2 << 20)


def test_the_file_may_be_named_by_the_environment(write, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("EXPEDITED_CONFIG", str(write("run-dir: /named")))

    assert config.load(None, {}).run_dir == "/named"


def test_the_default_file_is_read_if_it_is_there(write, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(config, "DEFAULT_FILE", write("run-dir: /default"))

    assert config.load(None, {}).run_dir == "/default"


@pytest.mark.parametrize("text", ["", "# nothing\n", "policy:\nnamespaces:\n", "namespaces:\n  web:\n"])
def test_what_is_empty_says_nothing(write, text: str) -> None:  # type: ignore[no-untyped-def]
    settings = config.load(write(text), {})

    assert dataclasses.replace(settings, namespaces={}) == AgentSettings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run-dri: /x", "there is no key run-dri; did you mean run-dir?"),
        ("policy: {mod: off}", "there is no key policy.mod; did you mean mode?"),
        ("namespaces: {web: {minsize: 1}}", "there is no key namespaces.web.minsize; did you mean min-size?"),
        ("zzz: 1", "there is no key zzz; there are run-dir, state-roots,"),
        ("run-dir: /x\nrun_dir: /y", "the key run_dir is there twice"),
        ("run-dir: x", "run-dir takes an absolute path, not 'x'"),
        ("state-roots: [run]", "state-roots takes a list of absolute paths (* may be the whole last part), not 'run'"),
        (
            "state-roots: [/run/*/crun]",
            "state-roots takes a list of absolute paths (* may be the whole last part), not",
        ),
        ("state-roots: [/run/10*]", "state-roots takes a list of absolute paths (* may be the whole last part), not"),
        ("nri-socket: nri.sock", "nri-socket takes an absolute path, or nothing for no NRI, not 'nri.sock'"),
        ("metrics-address: 9788", "metrics-address takes HOST:PORT, or nothing for no metrics, not '9788'"),
        ("metrics-address: h:99999", "metrics-address takes HOST:PORT, or nothing for no metrics, not 'h:99999'"),
        ("metrics-address: h:0", "metrics-address takes HOST:PORT, or nothing for no metrics, not 'h:0'"),
        ('metrics-address: ":9788"', "metrics-address takes HOST:PORT, or nothing for no metrics, not ':9788'"),
        ("budget-seconds: 5s", "budget-seconds takes a time such as 50ms or 0.05, at most 1 s, not '5s'"),
        ("budget-seconds: -1", "budget-seconds takes a time such as 50ms or 0.05, at most 1 s, not '-1'"),
        ("source: tracefs", "source takes auto, gate or observe, not 'tracefs'"),
        ("keep-striker: perhaps", "keep-striker takes true or false, not 'perhaps'"),
        ("log-level: loud", "log-level takes debug, info, warning or error, not 'loud'"),
        ("cri-namespace:", "cri-namespace takes a name such as k8s.io, not ''"),
        (
            "policy: {mode: strik}",
            "policy.mode takes strike, observe, compare or off, not 'strik'; did you mean strike?",
        ),
        (
            "namespaces: {kube-system: {min-size: 4Mb}}",
            "namespaces.kube-system.min-size takes a size such as 512Ki, 64Mi or 1G, not '4Mb'",
        ),
        ("policy: strike", "policy takes keys and values (mode, page-cache,"),
        ("namespaces: [web]", "namespaces takes a policy (keys and values) by namespace, not ['web']"),
        ("namespaces: {web: off}", "namespaces.web takes keys and values (mode,"),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line_with_file_key_and_what_is_accepted(write, text: str, said: str) -> None:  # type: ignore[no-untyped-def]
    path = write(text)

    assert refusal(path).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run-dir: /a\nrun-dir: /b", " line 2: the key run-dir is there twice"),
        ("policy:\n\tmode: off", " line 2: found character '\\t' that cannot start any token"),
        ("run-dir: [", " line 1: "),
        ("- a list", " must hold keys and values"),
        ("words", " must hold keys and values"),
        ("run-dir: \x07", " is not YAML: "),
    ],
)
def test_what_is_no_yaml_of_keys_and_values_is_one_line(write, text: str, said: str) -> None:  # type: ignore[no-untyped-def]
    path = write(text)

    assert refusal(path).startswith(f"configuration file {path}{said}")


def test_a_file_that_was_named_must_be_there_and_be_a_readable_text(tmp_path: Path) -> None:
    absent = tmp_path / "none.yaml"
    assert refusal(absent) == f"configuration file {absent} can't be read: No such file or directory"
    assert refusal(tmp_path) == f"configuration file {tmp_path} can't be read: Is a directory"
    absent.write_bytes(b"\xff\xfe")
    assert refusal(absent) == f"configuration file {absent} is not UTF-8 text"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("EXPEDITED_LOG_LEVEL", "loud", "environment: EXPEDITED_LOG_LEVEL takes debug, info, warning or error, not"),
        ("EXPEDITED_POLICY__MODE", "x", "environment: EXPEDITED_POLICY__MODE takes strike, observe, compare or off"),
        ("EXPEDITED_POLICY", '{"mode": "x"}', "environment: EXPEDITED_POLICY takes strike, observe, compare or off"),
        ("EXPEDITED_POLICY", "{", "EXPEDITED_POLICY is not JSON of keys and values"),
        ("EXPEDITED_POLICY__MOOD", "x", "environment: there is no key policy.mood; did you mean mode?"),
        (
            "EXPEDITED_LOGLEVEL",
            "info",
            "environment: there is no variable EXPEDITED_LOGLEVEL; did you mean EXPEDITED_LOG",
        ),
        (
            "EXPEDITED_RUN_DIR__X",
            "/x",
            "environment: there is no variable EXPEDITED_RUN_DIR__X; did you mean EXPEDITED_R",
        ),
        ("EXPEDITED_POLICY__MODE__X", "1", "environment: there is no variable EXPEDITED_POLICY__MODE__X"),
        ("EXPEDITED_POLICY", "[" * 5000, "environment: "),
        ("EXPEDITED_CONTAINERD_SOCKET", "/" + "a" * 120, "containerd-socket /aaa"),
        ("EXPEDITED_NRI_SOCKET", "/" + "a" * 120, "nri-socket /aaa"),
    ],
)
def test_what_is_wrong_in_the_environment_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)

    assert refusal().startswith(said)


def test_a_default_file_that_is_closed_to_this_user_is_said(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    closed = tmp_path_factory.mktemp("closed")
    closed.chmod(0o700)
    monkeypatch.setattr(config, "DEFAULT_FILE", closed / "config.yaml")
    os.seteuid(65534)
    try:
        assert "closed to this user" in refusal()
    finally:
        os.seteuid(0)


def test_what_is_wrong_in_the_flags_says_so(write) -> None:  # type: ignore[no-untyped-def]
    path = write("policy: {mode: off}")

    assert refusal(path, policy={"mode": "kill"}) == "--mode takes strike, observe, compare or off, not 'kill'"
    assert refusal(path, nonsense=1).startswith("flags: there is no key nonsense; there are")


def test_variables_that_kubelet_makes_of_services_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_METRICS", "PORT", "PORT_9788_TCP", "PORT_9788_TCP_ADDR"):
        monkeypatch.setenv(f"EXPEDITED_{name}", "tcp://10.0.0.1:9788")
        monkeypatch.setenv(f"EXPEDITED_METRICS_{name}", "10.0.0.1")

    assert config.load(None, {}) == AgentSettings()


def test_the_settings_survive_the_way_to_another_process(write) -> None:  # type: ignore[no-untyped-def]
    settings = config.load(write("policy: {deadline: 2.5}\nnamespaces: {web: {mode: off}}"), {})

    assert AgentSettings.from_json(settings.to_json()) == settings
