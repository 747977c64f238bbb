"""The first library's numerical functions, by the path that its users import them from.

They live in `vlora_engine.linalg.ops` and `vlora_engine.quantization.nf4`; this path stays until
0.2.
"""

from vlora_engine.linalg import ops as _ops
from vlora_engine.linalg.ops import *  # noqa: F403
from vlora_engine.quantization import nf4 as _nf4
from vlora_engine.quantization.nf4 import *  # noqa: F403

__all__ = [*_ops.__all__, *_nf4.__all__]
