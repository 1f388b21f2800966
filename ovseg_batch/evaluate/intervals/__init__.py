"""95 % intervals of figures, by resampling images."""
