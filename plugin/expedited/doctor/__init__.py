"""Looks a machine over: what the agent would find here, what is missing, what that costs and how to get it.

Every finding comes of a try, and none of a version number: kernels carry backports, and configurations lie.
"""

from expedited.doctor.examine import examine
from expedited.doctor.finding import Area, Finding, Level, works

__all__ = ["Area", "Finding", "Level", "examine", "works"]
