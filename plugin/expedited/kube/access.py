"""Where the API server is, how it is known to be the one, and who we are to it."""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from expedited.errors import ExpeditedError, UsageError

__all__ = ["AUTO", "OFF", "Access", "find_access"]

AUTO, OFF = "auto", "off"

# kubelet puts these into every pod with a service account (kubernetes plugin/pkg/admission/serviceaccount)
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Access:
    """One API server and our credentials for it.

    Attributes:
        host: Name or address, an IPv6 one without brackets.
        path: What goes before ``/api``, where the server is behind a proxy; else empty.
        tls: False: plain HTTP, as `kubectl proxy` speaks it.
        ca: Certificates to trust, as PEM; empty: those of the file ``ca_file``, else the system's.
        ca_file: Read anew for every connection, as it may be rotated.
        server_name: The name that the certificate must have, where it is not ``host``.
        verify: False: take any certificate, which a kubeconfig may ask for.
        token: A bearer token that stays; empty: ``token_file``'s.
        token_file: Read anew for every request: kubelet replaces the token before it expires.
        certificate_file, key_file: The client's certificate.
    """

    host: str
    port: int
    path: str = ""
    tls: bool = True
    ca: str = ""
    ca_file: str = ""
    server_name: str = ""
    verify: bool = True
    token: str = ""
    token_file: str = ""
    certificate_file: str = ""
    key_file: str = ""

    @property
    def address(self) -> str:
        """``HOST:PORT``, as URLs have it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def context(self) -> ssl.SSLContext | None:
        """What TLS needs, from the files as they are now; None without TLS.

        Raises:
            OSError: a file can't be read or holds no certificate.
        """
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.ca_file or None, cadata=self.ca or None)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_file:
            context.load_cert_chain(self.certificate_file, self.key_file or None)
        return context

    def bearer(self) -> str:
        """The token as it is now; empty where there is none.

        Raises:
            OSError: its file can't be read.
        """
        return self.token or (Path(self.token_file).read_text(encoding="ascii").strip() if self.token_file else "")


def find_access(
    wanted: str,
    *,
    environment: Mapping[str, str] = os.environ,
    service_account: Path = _SERVICE_ACCOUNT,
) -> Access | None:
    """The API server that a setting means.

    Args:
        wanted: ``off``; ``auto``: that of the cluster this process is a pod of; else a kubeconfig's path.
        environment: Where kubelet says where the API server is.
        service_account: Where kubelet puts a pod's credentials.

    Returns:
        None: there is none to talk to.

    Raises:
        UsageError: that kubeconfig can't be used.
        ExpeditedError: it is not there (yet), or closed to us.
    """
    if wanted == OFF:
        return None
    if wanted != AUTO:
        return _from_kubeconfig(Path(wanted))
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    token, ca = service_account / "token", service_account / "ca.crt"
    if not (host and port.isdecimal() and token.is_file() and ca.is_file()):
        return None
    return Access(host.strip("[]"), int(port), ca_file=str(ca), token_file=str(token))


def _from_kubeconfig(path: Path) -> Access:
    """The current context of a kubeconfig (kubernetes client-go tools/clientcmd/api/v1/types.go)."""
    import yaml  # only here: costs the resident agent memory that a pod does not need

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        context = _named(data, "context", str(data["current-context"]))
        cluster = _named(data, "cluster", context["cluster"])
        user = (_named(data, "user", context["user"]) if context.get("user") else None) or {}
        url = urlsplit(cluster["server"])
        port = url.port or (443 if url.scheme == "https" else 80)
    except OSError as problem:  # it may be written later, as by kubeadm
        raise ExpeditedError(f"kubeconfig {path} can't be read: {problem.strerror}") from problem
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as problem:
        reason = " ".join(str(problem).split())
        raise UsageError(
            f"kubeconfig {path} has no usable current context ({reason}): see `kubectl config`"
        ) from problem
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"kubeconfig {path}: the cluster's server is {cluster['server']!r}, not https://HOST:PORT")
    if not isinstance(user, dict):
        raise UsageError(f"kubeconfig {path}: its user is {user!r}, not keys such as token: see `kubectl config`")
    if "exec" in user or "auth-provider" in user:
        raise UsageError(
            f"kubeconfig {path} runs a program to log in, which the agent does not: give it a token or a certificate"
        )
    try:
        return Access(
            url.hostname,
            port,
            path=url.path.rstrip("/"),
            tls=url.scheme == "https",
            ca=_decoded(cluster.get("certificate-authority-data")),
            ca_file=_beside(path, cluster.get("certificate-authority")),
            server_name=cluster.get("tls-server-name", ""),
            verify=not cluster.get("insecure-skip-tls-verify", False),
            token=user.get("token", ""),
            token_file=_beside(path, user.get("tokenFile")),
            certificate_file=_beside(path, user.get("client-certificate"))
            or _kept(_decoded(user.get("client-certificate-data")) + _decoded(user.get("client-key-data"))),
            key_file=_beside(path, user.get("client-key")),
        )
    except ValueError as problem:  # binascii.Error and UnicodeDecodeError are
        raise UsageError(f"kubeconfig {path}: a ...-data key is not base64 of PEM") from problem
    except (TypeError, AttributeError) as problem:
        raise UsageError(f"kubeconfig {path} has a value of another kind than it should be ({problem})") from problem


def _named(data: Any, kind: str, name: str) -> Any:
    for entry in data[f"{kind}s"]:
        if entry["name"] == name:
            return entry[kind]
    raise LookupError(f"no {kind} {name}")


def _beside(config: Path, name: str | None) -> str:
    """A kubeconfig's relative paths begin where it lies."""
    return str(config.parent / name) if name else ""


def _decoded(data: str | None) -> str:
    return base64.b64decode(data, validate=True).decode("ascii") if data else ""


def _kept(pem: str) -> str:
    """OpenSSL takes a client's certificate from a file only; this one goes with the process."""
    if not pem:
        return ""
    descriptor = os.memfd_create("client-certificate")
    os.write(descriptor, pem.encode("ascii"))
    return f"/proc/self/fd/{descriptor}"
