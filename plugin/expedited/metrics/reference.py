"""``python -m expedited.metrics.reference``: the metrics' reference as Markdown, from the table (docs/metrics.md)."""

from __future__ import annotations

from expedited.metrics.table import TABLE, Kind, Metric

__all__ = ["reference"]

_HEAD = """\
# Metrics

<!-- Made by `python -m expedited.metrics.reference` from the table that the agent's exporter uses: do not edit. -->

The agent answers Prometheus at `metrics-address` (`127.0.0.1:9788`, or the pod's address by the Helm chart), under
`/metrics`. No label has the name of a pod or container: one node makes at most {series} series. Events on the pod and
`kubectl expedited stops` tell of single stops.

With the Prometheus operator: `podMonitor.enabled=true` and `prometheusRule.enabled=true` (Helm), each with the labels that the operator
selects by (`podMonitor.labels.release=prometheus`, say); by kustomize deploy/manifests/pod-monitor. Without the operator, add a scrape job
named `expedited` that discovers pods, keeps the container port named `metrics` (9788) and sets the label `instance` from
`__meta_kubernetes_pod_node_name`. If your Prometheus discovers targets by annotations, set the chart's `podAnnotations` to
`prometheus.io/scrape: "true"` and `prometheus.io/port: "9788"`. The agent listens at the pod's address alone, so `kubectl port-forward` is refused; `kubectl get --raw /api/v1/namespaces/expedited/pods/POD:9788/proxy/metrics` shows them.

`deploy/prometheus/rules.yaml` has recording rules and alerts, `deploy/grafana/expedited.json` a dashboard. The alert
ExpeditedAgentMissing needs kube-state-metrics, ExpeditedAgentNotScraped a job that has `expedited` in its name. What each alert means:
[troubleshooting](troubleshooting.md#alerts).

Events have the reasons `MemoryReturned` (at least `event-min-size` came back) and `MemoryReturnSlow` (a container that held that much was
not gone by the strike's deadline): `kubectl get events -A --field-selector reason=MemoryReturned`. With
`kubernetes.nodeCondition` (Helm) a node where kills can't be caught has the condition `MemoryReturnUnavailable`.

| metric | kind | labels | what it says |
|---|---|---|---|
"""


def reference() -> str:
    """All of it."""
    rows = [f"| `{each.name}` | {each.kind} | {_labels(each)} | {each.words} |\n" for each in TABLE]
    text = _HEAD.format(series=sum(each.series for each in TABLE)) + "".join(rows)
    return text + "\n## Labels and buckets\n" + "".join(_values())


def _labels(metric: Metric) -> str:
    return ", ".join(f"`{label.name}`" for label in metric.labels) or "-"


def _values() -> list[str]:
    lines = []
    for name in dict.fromkeys(label.name for metric in TABLE for label in metric.labels):
        values = next(label.values for metric in TABLE for label in metric.labels if label.name == name)
        if len(values) > 1:
            lines.append(f"\n- `{name}`: {', '.join(f'`{value}`' for value in values)}")
    histograms = (metric for metric in TABLE if metric.kind is Kind.HISTOGRAM)
    lines += [
        f"\n- buckets of `{each.name}`: {', '.join(f'{bound:g}' for bound in each.bounds)} s" for each in histograms
    ]
    return [*lines, "\n"]


if __name__ == "__main__":
    print(reference(), end="")
