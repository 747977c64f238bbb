"""Tasks in a torch model: switching them, training them in a subspace, routing, merging."""
