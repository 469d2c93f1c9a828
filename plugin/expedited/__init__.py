"""Gives a killed container's memory back to the node at once."""

__version__ = "0.1.0"
