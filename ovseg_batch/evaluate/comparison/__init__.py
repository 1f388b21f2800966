"""Two runs over the same images."""
