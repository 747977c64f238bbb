"""Upload an adapter or a subspace to the Hugging Face Hub, with its model card."""
