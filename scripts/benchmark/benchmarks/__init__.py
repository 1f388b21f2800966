"""The measurements of bench.py, and what they share."""
