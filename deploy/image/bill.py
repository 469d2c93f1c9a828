"""The image's bill of materials, in SPDX 2.3 as JSON: every Debian and Python package, with its version and licence."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

__all__ = ["Package", "debian_packages", "python_packages", "write_bill"]


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One package of the image.

    Attributes:
        kind: ``deb`` or ``pypi``, as package URLs have it.
        licence: As the package itself declares it; empty where it does not say, or says it in a file only.
        qualifier: The rest of its package URL.
    """

    kind: str
    name: str
    version: str
    licence: str = ""
    qualifier: str = ""

    @property
    def url(self) -> str:
        """Its package URL."""
        place = "deb/debian" if self.kind == "deb" else "pypi"
        return f"pkg:{place}/{self.name}@{self.version.replace('+', '%2B').replace(':', '%3A')}{self.qualifier}"


def debian_packages(listing: str) -> list[Package]:
    """From the list of list-packages: name, version and architecture, with tabs between."""
    rows = (line.split("\t") for line in listing.splitlines())
    return [Package("deb", name, version, "", f"?arch={architecture}") for name, version, architecture in rows]


def python_packages(site: Path) -> list[Package]:
    """From the metadata of what is installed."""
    found = []
    for metadata in sorted(site.glob("*.dist-info/METADATA")):
        head = HeaderParser().parsestr(metadata.read_text(encoding="utf-8"))
        licence = head["License-Expression"] or ""
        found.append(Package("pypi", re.sub(r"[-_.]+", "-", head["Name"]).lower(), head["Version"], licence))
    return found


def write_bill(path: Path, version: str, packages: Iterable[Package]) -> None:
    """Write it; the same packages give the same bytes."""
    rows = sorted(set(packages))
    name = hashlib.sha256("\n".join(package.url for package in rows).encode()).hexdigest()
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(os.environ["SOURCE_DATE_EPOCH"])))
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"expedited-{version}",
        "documentNamespace": f"https://expedited.io/spdx/{version}/{name}",
        "creationInfo": {"created": created, "creators": ["Tool: expedited-image"]},
        "packages": [_entry(package) for package in rows],
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": _identifier(package),
            }
            for package in rows
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _entry(package: Package) -> dict[str, Any]:
    return {
        "name": package.name,
        "SPDXID": _identifier(package),
        "versionInfo": package.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": package.licence or "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": package.url}
        ],
    }


def _identifier(package: Package) -> str:
    return f"SPDXRef-{package.kind}-{re.sub(r'[^A-Za-z0-9.-]+', '-', package.name)}"
