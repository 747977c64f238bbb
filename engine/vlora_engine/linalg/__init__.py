"""Linear algebra on low-rank factors and row matrices; tensors only, no adapters."""
