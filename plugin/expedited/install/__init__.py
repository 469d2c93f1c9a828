"""Puts the agent onto a node that has no Kubernetes to do it, and takes it back without a trace.

Standard library only. Everything that is made or changed is written down before, so that what was made half-way is taken
back as well; see :mod:`expedited.install.record`.
"""

from expedited.install.host import Starter, install, remove

__all__ = ["Starter", "install", "remove"]
