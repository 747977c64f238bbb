"""Finding and opening anything by path or address: adapters, subspaces, their tasks, originals.

`scanner` reads what lies in folders by headers alone, `locate` and `open` find and open one
adapter, `read` a subspace's index, `load` a subspace. Importing it loads no torch.
"""

from __future__ import annotations

from vlora_engine.utils.lazy import lazy_names

# What `vlora_engine.catalog` held while it was one module; importable from here until 0.2.
_HOMES = {
    "vlora_engine.adapters.base_models": ["normalise_base_model"],
    "vlora_engine.catalog.scanner": ["AdapterInfo", "Catalog", "Group", "scan"],
}

__getattr__ = lazy_names(__name__, _HOMES)
