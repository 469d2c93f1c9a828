"""JSON schemas for kubeconform, made of what the API server itself publishes about its API.

Kubernetes' module carries that description for each release (api/openapi-spec/swagger.json). It is turned into one
schema a kind, strict: a field that the release does not have is an error. What a schema can't say (the API server's own
validation, such as which fields exclude each other) is not covered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from expedited.demo.cache import built_once, content_key

__all__ = ["RELEASES", "schema_location"]

#: Kubernetes releases that the manifests are checked against.
RELEASES = ("1.34.4", "1.35.4", "1.36.3", "1.37.2")

_KINDS = {
    "ClusterRole": "io.k8s.api.rbac.v1.ClusterRole",
    "ClusterRoleBinding": "io.k8s.api.rbac.v1.ClusterRoleBinding",
    "DaemonSet": "io.k8s.api.apps.v1.DaemonSet",
    "Namespace": "io.k8s.api.core.v1.Namespace",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "ResourceQuota": "io.k8s.api.core.v1.ResourceQuota",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
}
_REFERENCE = "#/definitions/"
# Whatever JSON a quantity or an int-or-string may be (k8s.io/apimachinery's own unmarshalling)
_TEXT_OR_NUMBER = {"type": ["string", "number"]}


def schema_location(release: str) -> str:
    """kubeconform's ``-schema-location`` for one release; made once, and kept in the cache."""
    key = content_key([release.encode(), Path(__file__).read_bytes()])
    place = built_once("schemas", key, lambda directory: _make(release, directory))
    return f"{place}/{{{{ .ResourceKind }}}}.json"


def _make(release: str, directory: Path) -> None:
    definitions = json.loads((_module(release) / "api/openapi-spec/swagger.json").read_text())["definitions"]
    for kind, name in _KINDS.items():
        wanted, pending = {}, [name]
        while pending:
            each = pending.pop()
            if each not in wanted:
                wanted[each] = _strict(each, definitions[each])
                pending += _references(definitions[each])
        schema = {**wanted[name], "definitions": wanted}
        # kubeconform looks for kinds in lower case
        (directory / f"{kind.lower()}.json").write_text(json.dumps(schema))


def _strict(name: str, definition: dict[str, Any]) -> dict[str, Any]:
    if name.endswith((".Quantity", ".IntOrString")):
        return dict(_TEXT_OR_NUMBER)
    if "properties" in definition and "additionalProperties" not in definition:
        return {**definition, "additionalProperties": False}
    return definition


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"].removeprefix(_REFERENCE)] if isinstance(part.get("$ref"), str) else []
        return own + [name for value in part.values() for name in _references(value)]
    return [name for value in part for name in _references(value)] if isinstance(part, list) else []


def _module(release: str) -> Path:
    command = ["go", "mod", "download", "-json", f"k8s.io/kubernetes@v{release}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "GOFLAGS": ""})
    if answer.returncode:
        sys.exit(f"schemas: {' '.join(command)} failed: {answer.stderr.strip() or answer.stdout.strip()}")
    return Path(json.loads(answer.stdout)["Dir"])


if __name__ == "__main__":
    for each in RELEASES:
        schema_location(each)
