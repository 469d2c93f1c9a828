"""The demonstration: a private containerd, workloads in it, and the runtime's kill beside ours.

The tests use the same containerd and the same workloads.
"""
