"""Step 3, Run: the jobs, their progress and their messages."""
