"""The report of a run: a folder of static files that a browser opens from the disk, without server or network."""
