"""What the five steps are made of."""
