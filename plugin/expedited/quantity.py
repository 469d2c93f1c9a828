"""Sizes, times and addresses as people write them: ``64Mi``, ``1.5G``, ``30s``, ``2m``, ``127.0.0.1:9788``."""

from __future__ import annotations

import math
import re
from fractions import Fraction

__all__ = [
    "SECONDS_ACCEPTED",
    "SIZE_ACCEPTED",
    "format_seconds",
    "format_size",
    "parse_address",
    "parse_seconds",
    "parse_size",
]

#: What to write, for messages.
SIZE_ACCEPTED = "a size such as 512Ki, 64Mi or 1G"
SECONDS_ACCEPTED = "a time above zero such as 30, 30s, 500ms or 2m"

# Kubernetes' suffixes (apimachinery/pkg/api/resource/suffix.go) without those below one, which no size needs.
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:([KMGTPE]i|[kMGTPE])|[eE]([+-]?\d{1,3}))?", re.ASCII)
_FACTORS = {f"{letter}i": 1 << 10 * power for power, letter in enumerate("KMGTPE", 1)}
_FACTORS |= {letter: 10 ** (3 * power) for power, letter in enumerate("kMGTPE", 1)}

_SECONDS = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)?", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

_LARGEST_BYTES = (1 << 63) - 1


def parse_size(text: str) -> int:
    """The bytes that a Kubernetes quantity stands for, rounded up as Kubernetes does.

    Raises:
        ValueError: it is no quantity, or none that a size can be.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not {SIZE_ACCEPTED}")
    number, suffix, exponent = match.groups()
    factor = Fraction(10) ** int(exponent) if exponent else Fraction(_FACTORS.get(suffix, 1))
    size = math.ceil(Fraction(number) * factor)
    if size > _LARGEST_BYTES:
        raise ValueError(f"{text!r} is more than any machine has")
    return size


def parse_seconds(text: str) -> float:
    """The seconds that a time stands for: a bare number is seconds already.

    Raises:
        ValueError: it is no time, or not above zero.
    """
    match = _SECONDS.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is not {SECONDS_ACCEPTED}")
    return seconds


def format_size(count: int) -> str:
    """Bytes for people: ``0``, ``812 KiB``, ``34 MiB``, ``1.5 GiB``."""
    if count >= 1 << 30:
        return f"{count / (1 << 30):.1f} GiB"
    if count >= 1 << 20:
        return f"{count / (1 << 20):.0f} MiB"
    return f"{count / (1 << 10):.0f} KiB" if count else "0"


def format_seconds(seconds: float | None) -> str:
    """A duration for people: ``0.042 s``, ``3.1 s``, ``-`` where there is none."""
    if seconds is None:
        return "-"
    return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; an IPv6 address stands in brackets.

    Raises:
        ValueError: it is no such thing, or the port is none that can be asked for.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or any(letter.isspace() for letter in host) or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{text!r} is not HOST:PORT")
    if not 0 < int(port) < 65536:
        raise ValueError(f"{port} is no port")
    return host, int(port)
