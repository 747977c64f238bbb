"""Run a recipe: its inputs, the disk space it needs, its forecast, events and outputs."""
