"""Turns the .proto files beside it into the Python stubs of ``expedited.pb``.

Runs as hatchling's build hook (a wheel and an editable install both get the stubs) and, after an edit, by hand:
``python proto/generate.py``. The stubs are build products: they are never committed.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import sys
from pathlib import Path

with contextlib.suppress(ImportError):  # by hand, hatchling need not be there
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTO = Path(__file__).resolve().parent
STUBS = PROTO.parent / "plugin" / "expedited" / "pb"


def generate() -> None:
    """Write the stubs of every .proto file, replacing what was there.

    Raises:
        RuntimeError: protoc refused a file; what it said is on stderr.
    """
    from grpc_tools import protoc

    sources = sorted(path.relative_to(PROTO) for path in PROTO.rglob("*.proto"))
    fresh = STUBS.with_name("pb.new")
    shutil.rmtree(fresh, ignore_errors=True)
    root = fresh / "root"
    root.mkdir(parents=True)
    well_known = Path(protoc.__file__).with_name("_proto")
    arguments = [
        "protoc",
        # A file is known to protobuf by this virtual path, so that its Python module is expedited.pb.<path>
        # and no other package's copy of the same contract can clash with it.
        f"--proto_path=expedited/pb={PROTO}",
        f"--proto_path={well_known}",
        f"--python_out={root}",
        f"--pyi_out={root}",
        f"--grpc_python_out={root}",
        *(f"expedited/pb/{source}" for source in sources),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc refused a file of proto/: see its message above")
    made = root / "expedited" / "pb"
    for folder in [made, *(path for path in made.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text('"""Stubs made from proto/ by proto/generate.py."""\n')
    shutil.rmtree(STUBS, ignore_errors=True)
    made.rename(STUBS)
    shutil.rmtree(fresh)


if "BuildHookInterface" in globals():

    class ProtoBuildHook(BuildHookInterface):  # type: ignore[misc]
        """Makes the stubs before hatchling collects the files of a wheel or an editable install."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, object]) -> None:
            """Called once for each target; ``version`` is hatchling's word for the kind of build."""
            if self.target_name == "wheel":
                generate()


if __name__ == "__main__":
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once, each of which readies the checkout
        generate()
    sys.exit(0)
