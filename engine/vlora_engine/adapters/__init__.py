"""LoRA adapters as the engine knows them: their factors, addresses, collections and stacks."""
