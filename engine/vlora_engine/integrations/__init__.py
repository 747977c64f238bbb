"""Where this engine meets other libraries; each module imports its library when it is imported."""
