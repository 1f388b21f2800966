"""What a workdir holds, and how far its run is."""
