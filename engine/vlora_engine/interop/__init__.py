"""Subspaces of the two peers, vlora-dev and lorashare: read as if they were ours, and written.

`read.read_peer` makes a `Manifest` of their index and headers, without torch; `store.open_peer`
makes a subspace of it; `write` has the way back. Nothing is ever changed in a peer's directory.
"""
