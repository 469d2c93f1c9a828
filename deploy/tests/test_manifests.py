"""The kustomize manifests: the chart's objects, field by field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from conftest import CHART, DEPLOY, Objects, by_kind_and_name

# What only Helm writes, about itself
_HELMS_OWN = ("helm.sh/chart", "app.kubernetes.io/managed-by")


def _plain(objects: Objects) -> Objects:
    """Without Helm's own labels, and with the order taken out of what is a set."""
    for each in objects.values():
        spec = each.get("spec", {})
        for metadata in (each["metadata"], spec.get("template", {}).get("metadata", {})):
            for label in _HELMS_OWN:
                metadata.get("labels", {}).pop(label, None)
        for container in spec.get("template", {}).get("spec", {}).get("containers", ()):
            names = [variable["name"] for variable in container["env"]]
            # All that their order is for: one refers to another
            assert names.index("POD_IP") < names.index("EXPEDITED_METRICS_ADDRESS")
            container["env"].sort(key=lambda variable: variable["name"])
    return objects


def _differences(left: Any, right: Any, path: str = "") -> list[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        return [
            line
            for key in sorted({*left, *right})
            for line in _differences(left.get(key), right.get(key), f"{path}.{key}")
        ]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [
            line for n, pair in enumerate(zip(left, right, strict=True)) for line in _differences(*pair, f"{path}[{n}]")
        ]
    return [] if left == right and type(left) is type(right) else [f"{path}: chart {left!r}, manifests {right!r}"]


@pytest.mark.parametrize(
    ("values", "directory"),
    [("default", "base"), ("default", "."), ("observe", "observe"), ("patched-nodes", "patched-nodes")],
)
def test_the_manifests_are_the_charts_objects(
    template: Callable[..., str], kustomize: Callable[[str], str], values: str, directory: str
) -> None:
    chart = _plain(by_kind_and_name(template(values)))
    manifests = _plain(by_kind_and_name(kustomize(directory)))
    # Helm makes the namespace itself (--create-namespace)
    namespace = manifests.pop(("Namespace", "expedited"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    assert set(chart) == set(manifests)
    assert [line for key in chart for line in _differences(chart[key], manifests[key], "/".join(key))] == []


def test_the_pod_monitor_is_the_charts(template: Callable[..., str], kustomize: Callable[[str], str]) -> None:
    key = ("PodMonitor", "expedited")
    chart = _plain(by_kind_and_name(template("default", "--set", "podMonitor.enabled=true")))[key]
    assert _differences(chart, _plain(by_kind_and_name(kustomize("pod-monitor")))[key]) == []


def test_the_resource_quota_is_the_charts(template: Callable[..., str], kustomize: Callable[[str], str]) -> None:
    key = ("ResourceQuota", "expedited")
    chart = _plain(by_kind_and_name(template("default", "--set", "resourceQuota.enabled=true")))[key]
    assert _differences(chart, _plain(by_kind_and_name(kustomize("resource-quota")))[key]) == []


def test_a_difference_would_be_found(template: Callable[..., str], kustomize: Callable[[str], str]) -> None:
    key = ("DaemonSet", "expedited")
    chart = _plain(by_kind_and_name(template("observe")))[key]
    (line,) = _differences(chart, _plain(by_kind_and_name(kustomize("base")))[key])
    assert "observe" in line
    assert "strike" in line


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    assert f'\nversion = "{chart["appVersion"]}"\n' in project
    assert chart["version"] == chart["appVersion"]
