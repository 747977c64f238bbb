"""The glossary: what the words of the screens mean, for readers who meet them first here."""

from __future__ import annotations

import re
from typing import NamedTuple


class Term(NamedTuple):
    """A word, what it means, and how it is found in a text."""

    name: str
    meaning: str
    pattern: str = ""


TERMS = (
    Term("adapter", "A LoRA: two small matrices A and B for each module that it changes."),
    Term("module", "One weight matrix of the model that adapters change, such as h.3.attn.c_attn.",
         r"modules?"),
    Term("layer", "A block of the model, with several modules: layer 3 has all that is called h.3. "
         "In a heat map a layer is a row, a module is a cell.", r"layers?"),
    Term("dW", "The weight change that the model sees: scale x B A. All errors here are relative "
         "errors of dW: 5 % means that the stored dW is off by 5 % of its length."),
    Term("task", "An adapter inside a subspace."),
    Term("subspace", "A compressed collection: one directory that holds all its tasks.",
         r"subspaces?"),
    Term("basis", "Directions that all adapters share in a module; each task then stores only its "
         "coordinates along them.", r"bas[ie]s"),
    Term("k", "How many directions of the basis are kept in a module. A larger k costs bytes and "
         "lowers the error.", r"k"),
    Term("explained variance", "The share of the adapters' squared dW that the first k directions "
         "hold. 99 % leaves a relative error of about 10 %.", r"explained variance|variance"),
    Term("auto", "The default method: for each module and each group of related adapters the "
         "cheapest of own, klt and delta. It takes an error or a size, not a k."),
    Term("own", "Each adapter is coded by itself, nothing is shared. Best for adapters that have "
         "little in common."),
    Term("delta", "One basis per module for the inputs and one for the outputs of dW. A task is a "
         "k x k matrix.", r"delta"),
    Term("columns", "One basis for the rows of A and one for the columns of B, A and B apart. A "
         "task stores r x k numbers a side.", r"columns"),
    Term("flat", "One basis for whole A matrices laid out flat and one for B, as vLoRA does. A "
         "task stores k numbers a side.", r"flat"),
    Term("klt", "Karhunen-Loeve transform: a rotation across related adapters (checkpoints of one "
         "run, say) that puts what they share into a few of them. A part of auto.", r"klt|KLT"),
    Term("codec ratio", "Bytes of all A and B at 16 bit, divided by the bytes stored, without "
         "tensors that are kept bit for bit. It does not profit from originals in fp32.",
         r"codec ratio"),
    Term("ratio", "Bytes of the originals as they lie on disk, divided by the bytes stored: "
         "10.7x smaller than the originals."),
    Term("quantization", "Storing numbers in 8 or 4 bits with a scale per block: int8, int4, NF4.",
         r"quanti[sz]\w+|int8|int4|NF4|nf4|packed|packing"),
    Term("stable rank", "Squared length of dW over its largest squared singular value: how many "
         "directions really matter. It is at most the rank.", r"stable rank"),
    Term("cosine", "How alike two dW point: 1 the same direction, 0 nothing in common, -1 "
         "opposite."),
    Term("interference", "How two adapters disturb each other when merged: the share of what they "
         "have in common that has opposite signs, and the overlap of their inputs and outputs.",
         r"interfere(?:nce)?"),
    Term("outlier", "An adapter far from the others in size, direction or shape. A score of 2 is "
         "what one in twenty healthy collections shows.", r"outliers?"),
    Term("group", "Adapters that fit together: one base model and the same dimensions.",
         r"groups?"),
    Term("merge", "Several adapters made into one that replaces them.", r"merges?|merging|merged"),
)  # fmt: skip


def terms_in(text: str) -> list[Term]:
    """The terms that a text uses, in the order of the glossary."""
    found = []
    for term in TERMS:
        words = term.pattern or rf"{re.escape(term.name)}s?"
        if re.search(rf"(?<![\w<.-])(?:{words})(?![\w>-])", text):
            found.append(term)
    return found
