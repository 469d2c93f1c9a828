"""The chart: what it renders to, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CHART, DEPLOY, by_kind_and_name, run
from schemas import RELEASES, schema_location

from expedited.annotations import TERMS
from expedited.config import load
from expedited.teardown.policy import Mode

KINDS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))


def test_there_are_values_of_the_kinds_that_are_promised() -> None:
    assert {"default", "observe", "patched-nodes"} <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_helm_lint_has_nothing_to_say(kind: str) -> None:
    said = run("helm", "lint", "--strict", CHART, "--values", CHART / "ci" / f"{kind}-values.yaml").stdout
    assert "0 chart(s) failed" in said
    assert "[WARNING]" not in said


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_object_is_what_this_kubernetes_release_takes(
    template: Callable[..., str], kind: str, release: str
) -> None:
    text = template(kind, "--kube-version", release)
    assert _validate(text, release) == []
    assert "kind: DaemonSet" in text


@pytest.mark.parametrize("name", ["base", "observe", "patched-nodes", "resource-quota"])
@pytest.mark.parametrize("release", RELEASES)
def test_every_manifest_is_what_this_kubernetes_release_takes(
    kustomize: Callable[[str], str], name: str, release: str
) -> None:
    assert _validate(kustomize(name), release) == []


@pytest.mark.parametrize("release", RELEASES)
def test_the_schemas_find_what_is_wrong(template: Callable[..., str], release: str) -> None:
    right = template("default")
    for wrong in (
        right.replace("hostPID: true", "hostPid: true"),
        right.replace("maxSurge: 0", "maxSurge: []"),
        right.replace("minReadySeconds: 5", "minReadySeconds: soon"),
        right.replace("  selector:\n", "  selectors:\n", 1),
    ):
        assert wrong != right
        assert len(_validate(wrong, release)) == 1


def _validate(text: str, release: str) -> list[str]:
    """What kubeconform finds; the Prometheus operator's schemas are not Kubernetes' and are not here."""
    done = run(
        *("kubeconform", "-strict", "-output", "json", "-skip", "PodMonitor,PrometheusRule"),
        *("-kubernetes-version", release, "-schema-location", schema_location(release), "-"),
        input=text,
        check=False,
    )
    found = json.loads(done.stdout)["resources"] if done.stdout else [{"msg": done.stderr}]
    return [str(each.get("msg")) for each in found or ()]


def _container(objects: dict[Any, Any]) -> dict[str, Any]:
    (container,) = objects["DaemonSet", "expedited"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_chart_sets_is_what_the_agent_understands(
    template: Callable[..., str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = yaml.safe_load((CHART / "ci" / f"{kind}-values.yaml").read_text()) or {}
    for variable in _container(by_kind_and_name(template(kind)))["env"]:
        if variable["name"].startswith("EXPEDITED_"):
            text = str(variable.get("value", "node-1"))
            monkeypatch.setenv(variable["name"], text.replace("$(POD_IP)", "10.0.0.1"))
    settings = load()
    assert settings.policy.mode == Mode(given.get("mode", "strike"))
    assert settings.node_name == "node-1"
    assert settings.metrics_address == "10.0.0.1:9788"
    assert set(settings.namespaces) == set(given.get("namespaces", {}))
    if kind == "everything":
        assert settings.policy.min_size_bytes == 16 << 20
        assert not settings.policy.boost
        assert settings.state_roots == ("/run/containerd/runc/*",)
        assert settings.containerd_socket == "/run/k3s/containerd/containerd.sock"
        assert settings.namespaces["kube-system"].mode is Mode.OBSERVE
        assert settings.node_condition


def test_only_patched_nodes_by_their_label(template: Callable[..., str]) -> None:
    objects = by_kind_and_name(template("patched-nodes"))
    spec = objects["DaemonSet", "expedited"]["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "expedited.io/kernel": "patched"}


def test_nodes_that_are_no_machines_are_left_out(template: Callable[..., str]) -> None:
    spec = by_kind_and_name(template("default"))["DaemonSet", "expedited"]["spec"]["template"]["spec"]
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]  # of several, one would be enough
    assert {(each["key"], each["operator"], *each["values"]) for each in term["matchExpressions"]} == {
        ("eks.amazonaws.com/compute-type", "NotIn", "fargate"),
        ("type", "NotIn", "virtual-kubelet"),
    }


def test_a_list_of_ones_own_takes_the_place_of_the_charts(template: Callable[..., str]) -> None:
    given = yaml.safe_load((CHART / "ci" / "everything-values.yaml").read_text())["affinity"]
    spec = by_kind_and_name(template("everything"))["DaemonSet", "expedited"]["spec"]["template"]["spec"]
    assert spec["affinity"] == given


def test_the_quota_is_for_the_class_that_the_pods_have(template: Callable[..., str]) -> None:
    assert ("ResourceQuota", "expedited") not in by_kind_and_name(template("default"))
    objects = by_kind_and_name(template("default", "--set", "resourceQuota.enabled=true"))
    (scope,) = objects["ResourceQuota", "expedited"]["spec"]["scopeSelector"]["matchExpressions"]
    pods = objects["DaemonSet", "expedited"]["spec"]["template"]["spec"]
    assert (scope["scopeName"], scope["operator"]) == ("PriorityClass", "In")
    assert scope["values"] == [pods["priorityClassName"]]


def test_without_a_class_the_field_is_left_out(template: Callable[..., str]) -> None:
    objects = by_kind_and_name(template("default", "--set", "priorityClassName="))
    assert "priorityClassName" not in objects["DaemonSet", "expedited"]["spec"]["template"]["spec"]


def test_no_node_ever_has_two_gates(template: Callable[..., str]) -> None:
    spec = by_kind_and_name(template("default"))["DaemonSet", "expedited"]["spec"]
    assert spec["updateStrategy"]["rollingUpdate"]["maxSurge"] == 0
    (run_dir,) = [each["hostPath"]["path"] for each in spec["template"]["spec"]["volumes"] if each["name"] == "run"]
    environment = {each["name"]: each.get("value") for each in spec["template"]["spec"]["containers"][0]["env"]}
    # Of the node, so that an agent that was installed in another way is found at its socket
    assert run_dir == environment["EXPEDITED_RUN_DIR"]


def test_a_volume_for_every_mount_and_a_mount_for_every_volume(template: Callable[..., str]) -> None:
    for kind in KINDS:
        spec = by_kind_and_name(template(kind))["DaemonSet", "expedited"]["spec"]["template"]["spec"]
        volumes = {each["name"]: each["hostPath"]["path"] for each in spec["volumes"]}
        mounts = {each["name"]: each["mountPath"] for each in spec["containers"][0]["volumeMounts"]}
        assert volumes == mounts


def test_the_service_account_may_do_what_is_argued_and_nothing_else(template: Callable[..., str]) -> None:
    objects = by_kind_and_name(template("default"))
    rules = objects["ClusterRole", "expedited"]["rules"]
    allowed = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    assert allowed == {("events", "create"), ("pods", "list"), ("pods", "watch")}
    assert not [kind for kind, _ in objects if kind in ("Role", "RoleBinding", "Secret")]


def test_without_events_nothing_is_asked_of_the_api_server(template: Callable[..., str]) -> None:
    objects = by_kind_and_name(template("default", "--set", "kubernetes.events=false"))
    assert not [kind for kind, _ in objects if kind.startswith("ClusterRole")]
    assert not objects["DaemonSet", "expedited"]["spec"]["template"]["spec"]["automountServiceAccountToken"]
    assert "egress" not in objects["NetworkPolicy", "expedited"]["spec"]


def test_every_capability_is_argued(template: Callable[..., str]) -> None:
    security = _container(by_kind_and_name(template("default")))["securityContext"]
    argued = set(re.findall(r"^\| `([A-Z_]+)` \|", (DEPLOY.parent / "docs/security.md").read_text(), re.MULTILINE))
    assert set(security["capabilities"]["add"]) == argued
    assert security["capabilities"]["drop"] == ["ALL"]
    assert not security["privileged"]


@pytest.mark.parametrize(
    ("flag", "word"),
    [
        ("mode=attack", "mode"),
        ("policy.pageCache=sometimes", "pageCache"),
        ("policy.minSize=big", "minSize"),
        ("policy.bost=true", "bost"),
        ("moode=strike", "moode"),
        ("namespaces.batch.page_cache=drop", "page_cache"),
        ("metrics.port=99999", "port"),
        ("budget=5s", "budget"),
        ("runtime.containerdSocket=relative.sock", "containerdSocket"),
        ("image.digest=sha256:beef", "digest"),
        ("resources.limits.cpu=100m", "cpu"),
        ("maxUnavailable=0", "maxUnavailable"),
        ("runDir=tmp", "runDir"),
    ],
)
def test_a_wrong_value_is_named_when_the_chart_is_installed(flag: str, word: str) -> None:
    done = run("helm", "template", "expedited", CHART, "--kube-version", "1.36", "--set", flag, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if word in line]
    assert "Traceback" not in done.stderr
    assert "at '" in line or "Additional property" in line or "additional properties" in line


@pytest.mark.parametrize(
    ("value", "needed", "without"),
    [
        ("podMonitor.enabled", "metrics.enabled", "false"),
        ("prometheusRule.enabled", "metrics.enabled", "false"),
        ("kubernetes.nodeCondition", "kubernetes.events", "false"),
        ("resourceQuota.enabled", "priorityClassName", ""),
    ],
)
def test_what_would_have_no_effect_is_refused(value: str, needed: str, without: str) -> None:
    flags = ("--set", f"{value}=true", "--set", f"{needed}={without}")
    done = run("helm", "template", "expedited", CHART, "--kube-version", "1.36", *flags, check=False)
    assert done.returncode != 0
    assert f"{value} wants {needed}" in done.stderr


_ANY_NAME = '=~".*expedited.*"'


def test_the_operators_rule_is_the_file_that_promtool_tests(template: Callable[..., str]) -> None:
    rule = by_kind_and_name(template("default", "--set", "prometheusRule.enabled=true"))["PrometheusRule", "expedited"]
    text = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    for label, name in (("daemonset", "expedited"), ("job", "expedited/expedited")):
        assert text.count(f"{label}{_ANY_NAME}") == 1
        text = text.replace(f"{label}{_ANY_NAME}", f'{label}="{name}"')
    assert rule["spec"] == yaml.safe_load(text)


def test_the_operators_rule_asks_for_the_releases_own_names(tmp_path: Path) -> None:
    """Whatever the release is called: its DaemonSet, and the job that the operator names after the PodMonitor."""
    flags = ("--set", "prometheusRule.enabled=true,podMonitor.enabled=true", "--kube-version", "1.36")
    text = run("helm", "template", "memory", CHART, "--namespace", "nodes", *flags).stdout
    objects = by_kind_and_name(text)
    monitor = objects["PodMonitor", "memory"]["metadata"]
    rules = objects["PrometheusRule", "memory"]["spec"]
    alerts = {each.get("alert"): each["expr"] for group in rules["groups"] for each in group["rules"]}
    assert ("DaemonSet", "memory") in objects
    assert 'daemonset="memory"' in alerts["ExpeditedAgentMissing"]
    assert f'up{{job="{monitor["namespace"]}/{monitor["name"]}"}} == 0' in alerts["ExpeditedAgentNotScraped"]
    assert _ANY_NAME not in text
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    run("promtool", "check", "rules", tmp_path / "rules.yaml")


def test_the_schema_knows_the_words_of_a_policy() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    terms = schema["definitions"]["policyOfNamespace"]["properties"]
    assert set(terms) == set(TERMS)
    for name, definition in (("mode", "mode"), ("page-cache", "pageCache"), ("order", "order")):
        assert schema["definitions"][definition]["enum"] == list(TERMS[name].words)


def test_every_value_has_a_schema_and_none_is_only_there() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}


def test_the_notes_tell_of_the_first_step(tmp_path: Path) -> None:
    # `helm template` prints no notes, and `helm install` wants a cluster even to try: as an object, they are rendered
    chart = shutil.copytree(CHART, tmp_path / "expedited")
    notes = (chart / "templates" / "NOTES.txt").read_text()
    head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata: {notes: "
    wrapped = f'{{{{- define "notes" }}}}{notes}{{{{ end -}}}}\n{head}{{{{ include "notes" . | quote }}}}}}\n'
    (chart / "templates" / "notes.yaml").write_text(wrapped)

    def render(*flags: str) -> str:
        command = ("helm", "template", "expedited", chart, "--kube-version", "1.36", "--namespace", "nodes", *flags)
        return str(by_kind_and_name(run(*command).stdout)["ConfigMap", "notes"]["data"]["notes"])

    quota = "insufficient quota to match these scopes"
    assert quota in render()
    for settled in ("resourceQuota.enabled=true", "priorityClassName="):
        assert quota not in render("--set", settled)
    striking, observing = render(), render("--values", str(CHART / "ci" / "observe-values.yaml"))
    assert "--set mode=observe" in striking
    assert "--set mode=strike" in observing
    for text in (striking, observing):
        assert "kubectl -n nodes exec daemonset/expedited -- expedited status" in text
        assert "kubectl label namespace nodes pod-security.kubernetes.io/enforce=privileged" in text


def test_the_package_has_what_it_needs_and_no_more(tmp_path: Path) -> None:
    run("helm", "package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("*.tgz")
    listed = subprocess.run(["tar", "tzf", package], capture_output=True, text=True, check=True).stdout.split()
    assert "expedited/values.schema.json" in listed
    assert not [name for name in listed if name.endswith((".orig", ".swp"))]
