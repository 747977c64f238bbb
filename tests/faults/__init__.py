"""Kills, faults of the disk and rivals at every point where a command writes."""
