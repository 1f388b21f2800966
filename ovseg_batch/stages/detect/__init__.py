"""Detect: boxes and masks without classes, and the labels that words give them."""
