"""The five steps, one view each."""
