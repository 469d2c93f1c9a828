"""The files that are put onto a node. deploy/systemd, deploy/nri and deploy/containerd have the same, to be copied by hand."""

from __future__ import annotations

__all__ = ["CONTAINERD_DROP_IN", "NRI_PLUGIN", "UNIT"]

#: The unit; ``{program}`` is the absolute path of `expedited`.
UNIT = """\
[Unit]
Description=Gives a killed container's memory back to the node at once
After=containerd.service docker.service crio.service k3s.service rke2-server.service
StartLimitIntervalSec=0

[Service]
ExecStart={program} run
Restart=always
RestartSec=2
# A wrong configuration does not get better by trying
RestartPreventExitStatus=2
# The agent ends its striker itself: the gate opens, and strikes in progress end. An agent that crashed has not, and finds it again
KillMode=process
TimeoutStopSec=20
RuntimeDirectory=expedited
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=restart
OOMScoreAdjust=-900
LimitMEMLOCK=infinity

CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_IPC_LOCK CAP_KILL CAP_SYS_ADMIN CAP_SYS_NICE CAP_SYS_PTRACE CAP_SYS_RESOURCE
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectClock=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK

[Install]
WantedBy=multi-user.target
"""

#: What a runtime starts as its plugin 10-expedited.
NRI_PLUGIN = """\
#!/bin/sh
# Started by the runtime, with its NRI socket as descriptor 3 and no other environment
exec {program} run
"""

#: NRI on. Version 2 is read by every containerd since 1.3; one that is newer than the root file's would not be.
CONTAINERD_DROP_IN = """\
version = 2

[plugins."io.containerd.nri.v1.nri"]
  disable = false
"""
