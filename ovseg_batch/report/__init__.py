"""A folder of plain files that shows how a run went: opened from the disk, with no server and no network."""
