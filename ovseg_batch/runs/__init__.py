"""What a run is: its plan, its manifest, its stages one after the other, its outputs, and what it reports."""
