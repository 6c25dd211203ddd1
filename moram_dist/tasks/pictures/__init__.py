"""Data sets of pictures: find their files, read names and labels, draw shots. No pixels."""
