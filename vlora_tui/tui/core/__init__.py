"""What all steps share: the session, views and panes, and the client of the jobs."""
