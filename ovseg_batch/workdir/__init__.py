"""The content of a workdir, and the progress of its run."""
