"""Load the modules behind a package's public names on first use.

Importing the package stays cheap that way: `import vlora_engine` loads no torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package that re-exports names of its modules lazily.

    Args:
        package: The package's ``__name__``.
        homes: For every module, the names that live in it. No name may be one of the package's own
            submodules: importing that would put the module in the name's place.

    Raises:
        AttributeError: From the function returned, for a name that no module has.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
