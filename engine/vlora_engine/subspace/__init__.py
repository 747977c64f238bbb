"""A compressed collection: bases, loadings and tasks, in memory and as a directory.

`space` says what every subspace gives; `basis_space` holds one with a basis, `coded` one whose
directions are coded each by itself. `vlora_engine.SharedSubspace` is the class for users.
"""

from __future__ import annotations

from vlora_engine.utils.lazy import lazy_names

# What `vlora_engine.subspace` held while it was one module; importable from here until 0.2.
__getattr__ = lazy_names(__name__, {"vlora_engine.shared_subspace": ["SharedSubspace"]})
