"""The application around the steps: its start, its palette and its keys."""
