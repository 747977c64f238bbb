"""The first library's numerical functions, by the path that its users import them from.

They live in `vlora_engine.linalg.ops`; this path stays until 0.2.
"""

from vlora_engine.linalg.ops import *  # noqa: F403
from vlora_engine.linalg.ops import __all__ as __all__
