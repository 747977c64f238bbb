"""Step 4, Inspect: layers, similarity, outliers and findings of a result."""
