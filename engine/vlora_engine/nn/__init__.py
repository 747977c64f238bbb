"""What needs a model: switching tasks in it, training them in a subspace, routing, merging."""
