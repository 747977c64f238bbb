"""What `subspace.json` records about a subspace. Nothing here imports torch."""
