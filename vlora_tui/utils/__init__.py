"""Settings, paths, locks and the formatting of figures, for the whole application."""
