"""The Python interfaces of other packages over this engine, for code that was written for them."""
