"""A subspace whose tasks are stored entropy-coded: build it, measure it, read it."""
