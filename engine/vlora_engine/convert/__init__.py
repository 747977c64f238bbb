"""Convert an adapter from one file format to another, and say first what would be lost."""
