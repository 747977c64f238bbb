"""Compress a collection: measure its spectra, build a subspace, add tasks, requantize, compact."""
