"""The index of a subspace, `subspace.json`: read, checked and written. Imports no torch."""
