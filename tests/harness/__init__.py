"""Harnesses that try to break the program, and their shared parts. `python -m tests.harness --help` lists them."""
