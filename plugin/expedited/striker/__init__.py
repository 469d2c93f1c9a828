"""The striker: the kill gate, the teardown engine's threads, and nothing else.

Its own processes, standard library only, memory locked, real-time: it has to work when the node does not. Nothing is
imported here: the supervisor must stay as small as a Python process can be.
"""
