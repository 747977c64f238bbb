"""The interface: a Textual application over the recipe and the jobs. It never imports torch."""
