"""Runs: manifest, plan, stages, outputs and progress."""
