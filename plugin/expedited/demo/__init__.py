"""The demonstration: a private containerd, workloads in it, and the runtime's kill beside ours.

The tests use the same containerd and the same workloads.
"""

import os

# Before gRPC is loaded: its own handlers abort a child now and then that is forked while a call is under way (what
# `preexec_fn` needs), and no child of ours ever calls gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
