"""What needs a model: wearing tasks, training them in a subspace, routing between them."""
