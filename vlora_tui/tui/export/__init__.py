"""Step 5, Export: export, resize or merge adapters for a server."""
