"""The agent: puts striker, NRI, containerd, control API and metrics together.

``python -m expedited.agent SETTINGS`` is the resident process; ``expedited run`` reads the configuration and becomes it.
"""
