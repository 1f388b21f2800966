"""Ground truth: of data sets, and of one's own."""
