"""Step 1, Adapters: find the adapters of a folder or a repository and choose among them."""
