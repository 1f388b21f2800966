"""SAM 3: masks of every word alone, and the annotations made of them."""
