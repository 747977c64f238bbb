"""Step 2, Choose k: the curves of error and size, and the target to compress to."""
