"""Edit images by their masks."""
