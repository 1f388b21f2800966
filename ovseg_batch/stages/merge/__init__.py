"""Merge: the masks of objects from one method, and those of stuff from another."""
