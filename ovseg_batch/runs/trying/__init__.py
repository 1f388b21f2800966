"""A trial: a few images of a list before a run over all of it."""
