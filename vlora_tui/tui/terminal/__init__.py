"""The terminal itself: its driver, colours, clipboard and what is typed ahead."""
