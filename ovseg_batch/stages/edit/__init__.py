"""Edit: what a run makes of its images and masks."""
