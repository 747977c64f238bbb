"""Numbers as bytes: storage dtypes, and packing in 8 or 4 bits with shared scales."""
