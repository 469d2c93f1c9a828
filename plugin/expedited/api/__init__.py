"""The control API, ``expedited.v1``: gRPC on a unix socket, and what answers and asks on either side of it."""
