"""What work on one module of all adapters holds in memory at its peak, from headers alone.

`vlora_engine.utils.workers.map_ordered` is told these figures. Each is a bound from above on what
was measured at shapes from 256 to 4096 wide and 8 to 1,000 adapters
(tests/engine/compress/test_memory_limit.py measures again); the stack in fp64 is always part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.linalg.grams import FULL_EIGH_LIMIT, PARTIAL_COMPONENTS

LEAST = 16 << 20  # what libraries take on first use, and small blocks that are not given back
EIGENSOLVE = 7  # Gram matrices: the Gram, its eigenvectors, and the solver's own
CODED_AT_ONCE = 32  # as in `codec.layer`
MOST_POINTS = 321  # of `spectra.tables.diagonal_k`
TABLES = 128 << 20  # the cumulated Grams of a chunk of tasks, both sides and their products


@dataclass(frozen=True)
class StackShape:
    """The shape of a `LayerStack`: N tasks padded to one rank.

    Args:
        tasks: N. rank: The largest.
    """

    tasks: int
    rank: int
    d_in: int
    d_out: int

    @classmethod
    def of(cls, layer: str, sources: Iterable[AdapterSource]) -> StackShape:
        """That of one module of every source that has it."""
        shapes = [source.modules[layer] for source in sources if layer in source.modules]
        rank = max((shape.rank for shape in shapes), default=1)
        return cls(len(shapes), max(1, rank), shapes[0].d_in, shapes[0].d_out)

    @property
    def rows(self) -> int:
        """The rows of A, or columns of B, of all tasks: N r."""
        return self.tasks * self.rank

    @property
    def nbytes(self) -> int:
        """The bytes of the stack in fp64."""
        return 8 * self.rows * (self.d_in + self.d_out)

    @property
    def side(self) -> int:
        """The bytes of the larger side in fp64."""
        return 8 * self.rows * max(self.d_in, self.d_out)

    def directions(self, method: str) -> int:
        """How many directions of the larger side are found where all are asked for."""
        least = min(self.matrix(method))
        return least if least <= FULL_EIGH_LIMIT else PARTIAL_COMPONENTS

    def basis(self, method: str) -> int:
        """The bytes of these directions in fp64."""
        return 8 * self.directions(method) * self.matrix(method)[1]

    def solving(self, method: str) -> int:
        """What a full eigenbasis of the larger side takes beside the stack."""
        count, width = self.matrix(method)
        if min(count, width) > FULL_EIGH_LIMIT:
            return 2 * self.side + 48 * (count + width) * PARTIAL_COMPONENTS
        gram = 8 * min(count, width) ** 2
        # Fewer rows than dimensions: directions are formed out of the rows, and made orthonormal.
        return EIGENSOLVE * gram + (3 if count <= width else 1) * self.side

    def sampling(self, method: str, k: int) -> int:
        """What the first ``k`` directions of the larger side take beside the stack."""
        count, width = self.matrix(method)
        if min(count, width) <= 8 * (k + 12 + k // 4):  # as `linalg.grams.range_basis` decides
            return self.solving(method)
        return (3 if method == "flat" else 2) * self.side + 48 * (count + width) * (k + 12)

    def matrix(self, method: str) -> tuple[int, int]:
        """The shape of the row matrix of the larger side."""
        width = max(self.d_in, self.d_out)
        return (self.tasks, self.rank * width) if method == "flat" else (self.rows, width)


def building(shape: StackShape, method: str, k: tuple[int, int], *, exact: bool) -> int:
    """What `subspace.basis.build_layer` holds; ``exact``: it solves for all directions."""
    # The basis of one side is there in full while the other is found.
    bases = shape.sampling(method, max(k))
    if exact:
        bases = shape.solving(method) + shape.basis(method) + shape.side
    return LEAST + shape.nbytes + bases + 40 * shape.rows * sum(k)


def measuring(shape: StackShape, methods: Iterable[str]) -> int:
    """What the spectra of one layer hold, with the similarity of its tasks."""
    vectors = most = 0
    for method in methods:
        points = min(MOST_POINTS, shape.directions(method) + 1)
        tables = min(TABLES, 32 * shape.tasks * shape.rank**2 * points)
        most = max(most, tables + shape.side)
        vectors += 2 * 8 * min(shape.matrix(method)) * shape.directions(method)
        most = max(most, shape.solving(method))
        if method == "flat":  # both bases, what they give back, and Grams at each k of a grid
            most = max(most, 4 * shape.side + 84 * 8 * shape.tasks * shape.rank**2)
    similar = 16 * min(shape.rows, 1024) * (shape.d_in + shape.d_out)
    return LEAST + shape.nbytes + max(similar, shape.side + most) + vectors


def looking(shape: StackShape) -> int:
    """What the codec's first pass holds: the stack, A in fp32, and one product of all with all."""
    return LEAST + shape.nbytes + shape.side // 2 + 16 * shape.tasks**2


def coding(shape: StackShape, *, shares: bool) -> int:
    """What coding one layer holds; ``shares``: in groups, each of which is coded as a whole."""
    some = shape.nbytes * min(shape.tasks, CODED_AT_ONCE) // shape.tasks
    most = 10 * some
    if shares:
        most = max(most, 2 * shape.nbytes + 6 * some)  # a transform across the members
        columns = shape.solving("delta") + 5 * shape.basis("delta")
        most = max(most, columns)
    return LEAST + shape.nbytes + shape.nbytes // 8 + most  # an eighth of it: what was coded


def checking(source: AdapterSource) -> int:
    """What the check of one adapter holds: its largest module in fp64, or all that is no module."""
    largest = max((s.rank * (s.d_in + s.d_out) for s in source.modules.values()), default=0)
    rest = sum(prod(tensor_shape) for _, tensor_shape in source.rest.values())
    return LEAST + 24 * largest + 8 * rest


def comparing(shape: StackShape, held: int) -> int:
    """What the inner products of all pairs hold: factors up to ``held`` bytes, blocks of rows."""
    rows = min(shape.rows, 1024)
    blocks = 2 * 8 * rows * (shape.d_in + shape.d_out) + 4 * 8 * rows**2
    return LEAST + min(held, shape.nbytes) + blocks + 32 * shape.tasks**2


def interfering(shape: StackShape) -> int:
    """What the interference of all pairs holds: two blocks of singular directions, and products."""
    rows = min(shape.rows, 512)
    blocks = 6 * 8 * rows * (shape.d_in + shape.d_out) + 8 * 8 * rows**2
    return LEAST + blocks + 64 * shape.tasks**2


def merging(shape: StackShape) -> int:
    """What a merge of one module holds: its factors in fp64, and cores of all against all."""
    core = 8 * min(shape.rows, shape.d_in, shape.d_out) ** 2
    return LEAST + 9 * shape.nbytes + 10 * core


def by_layer(
    sources: Iterable[AdapterSource], need: Callable[[StackShape], int]
) -> Callable[[str], int]:
    """The ``need`` of a layer by its name."""
    every = list(sources)
    return lambda layer: need(StackShape.of(layer, every))
