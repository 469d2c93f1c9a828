"""What can go wrong between the agent and the API server."""

from __future__ import annotations

from expedited.errors import ExpeditedError

__all__ = ["ApiError", "ExpiredError", "KubernetesError", "UnreachableError", "strange"]


class KubernetesError(ExpeditedError):
    """Something between the agent and the API server; the agent goes on without it."""


def strange(problem: Exception) -> KubernetesError:
    """Of what nobody has thought of: an answer that is none, no thread to be had. The rest of the agent goes on."""
    if isinstance(problem, KubernetesError):
        return problem
    return KubernetesError(f"something strange between the agent and the API server ({problem!r})")


class UnreachableError(KubernetesError):
    """No answer: no connection, no trust, or one that broke."""


class ApiError(KubernetesError):
    """The API server answered, and the answer is no.

    Attributes:
        status: The HTTP status.
        reason: Kubernetes' word for it: Forbidden, TooManyRequests, Expired.
        retry_after_seconds: When to come again, where the server says so; else 0.
    """

    def __init__(self, status: int, reason: str, message: str, *, asked: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(f"{asked}: the API server says {status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class ExpiredError(ApiError):
    """410: it does not remember so far back; list anew."""
