"""Reports: a collection or a subspace as one Markdown file, with its plots beside it."""
