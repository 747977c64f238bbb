"""The error surface of a collection: tables, sizes in bytes, choosing k, and curves. No torch."""
