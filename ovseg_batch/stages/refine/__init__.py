"""Refine: annotations from the dense map and from masks of SAM2."""
