"""What scripts/bench.py measures with, and its larger parts."""
