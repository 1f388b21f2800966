"""Tables of scripts/ablate.py that need a measurement of their own."""
