from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from expedited.errors import ExpeditedError, UsageError
from expedited.kube import Access, find_access


@pytest.fixture
def service_account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("one\n")
    (tmp_path / "ca.crt").write_text("PEM")
    return tmp_path


_IN_POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def test_a_pod_finds_its_cluster(service_account: Path) -> None:
    access = find_access("auto", environment=_IN_POD, service_account=service_account)
    assert access is not None
    assert (access.host, access.port, access.ca_file) == ("10.96.0.1", 443, str(service_account / "ca.crt"))
    assert access.bearer() == "one"


def test_a_token_that_was_replaced_is_read_anew(service_account: Path) -> None:
    access = find_access("auto", environment=_IN_POD, service_account=service_account)
    assert access is not None
    (service_account / "token").write_text("two\n")
    assert access.bearer() == "two"


def test_an_ipv6_service_address_goes_into_brackets(service_account: Path) -> None:
    access = find_access(
        "auto", environment=_IN_POD | {"KUBERNETES_SERVICE_HOST": "fd00::1"}, service_account=service_account
    )
    assert access is not None
    assert access.address == "[fd00::1]:443"


@pytest.mark.parametrize("missing", ["token", "ca.crt", "KUBERNETES_SERVICE_HOST"])
def test_outside_of_a_cluster_there_is_none(service_account: Path, missing: str) -> None:
    environment = {name: value for name, value in _IN_POD.items() if name != missing}
    (service_account / missing).unlink(missing_ok=True)
    assert find_access("auto", environment=environment, service_account=service_account) is None


def test_off_is_off(service_account: Path) -> None:
    assert find_access("off", environment=_IN_POD, service_account=service_account) is None


def _kubeconfig(path: Path, cluster: dict[str, object], user: dict[str, object]) -> str:
    data = {
        "current-context": "here",
        "contexts": [
            {"name": "other", "context": {"cluster": "gone"}},
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
        ],
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(data))
    return str(path)


def test_a_kubeconfigs_current_context_is_used(tmp_path: Path) -> None:
    cluster = {"server": "https://cp.example:6443/proxy/", "certificate-authority": "ca.crt", "tls-server-name": "k"}
    access = find_access(_kubeconfig(tmp_path / "config", cluster, {"tokenFile": "token"}))
    assert access == Access(
        "cp.example",
        6443,
        path="/proxy",
        ca_file=str(tmp_path / "ca.crt"),
        server_name="k",
        token_file=str(tmp_path / "token"),
    )


def test_a_client_certificate_in_a_kubeconfig_is_loaded(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in certificate]
    cluster = {"server": "https://127.0.0.1:6443", "certificate-authority-data": encoded[0]}
    user = {"client-certificate-data": encoded[0], "client-key-data": encoded[1]}
    access = find_access(_kubeconfig(tmp_path / "config", cluster, user))  # type: ignore[arg-type]
    assert access is not None
    context = access.context()
    assert context is not None
    assert [each["subjectAltName"] for each in context.get_ca_certs()] == [
        (("IP Address", "127.0.0.1"), ("DNS", "kubernetes.default.svc"))
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "no usable current context"),
        ("current-context: x\ncontexts: []", "no context x"),
        ("[]", "no usable current context"),
    ],
)
def test_a_kubeconfig_that_is_none_is_told_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        find_access(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cluster", "user", "says"),
    [
        ({}, "tok", "its user is 'tok'"),
        ({"certificate-authority-data": "ü"}, {}, "not base64 of PEM"),
        ({"certificate-authority": 5}, {}, "a value of another kind"),
    ],
)
def test_a_kubeconfig_with_a_wrong_value_is_told_in_one_line(
    tmp_path: Path, cluster: dict[str, Any], user: Any, says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        find_access(_kubeconfig(tmp_path / "config", {"server": "https://x:1", **cluster}, user))
    assert "\n" not in str(caught.value)


def test_a_kubeconfig_with_an_empty_user_is_nobodys(tmp_path: Path) -> None:
    access = find_access(_kubeconfig(tmp_path / "config", {"server": "https://x:1"}, None))  # type: ignore[arg-type]
    assert access is not None
    assert access.token == ""


def test_a_kubeconfig_that_runs_a_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs a program to log in"):
        find_access(_kubeconfig(tmp_path / "config", {"server": "https://x:1"}, {"exec": {"command": "aws"}}))


def test_a_kubeconfig_that_is_absent_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExpeditedError, match="can't be read: No such file") as caught:
        find_access(str(tmp_path / "absent"))
    assert caught.value.exit_code == 1  # it may be written later, and systemd is to try again
