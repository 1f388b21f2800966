"""Tables of ablate.py that do not come from one run a row."""
