"""What tests of several folders start, make and wait for; fixtures are in the folders' conftest.py."""
