"""mergekit's names of merge methods, and which method here each one is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Alias(NamedTuple):
    """What a ``merge_method`` of mergekit is here, and whether mergekit normalises its weights."""

    method: str
    normalize: bool | None = None

    @property
    def text(self) -> str:
        """The alias in words, as it is printed."""
        words = {True: ", weights normalised", False: ", weights as given", None: ""}
        return f"{self.method}{words[self.normalize]}"


ALIASES: Mapping[str, Alias] = {
    "linear": Alias("task_arithmetic", True),
    "task_arithmetic": Alias("task_arithmetic", False),
    "ties": Alias("ties", True),
    "dare_linear": Alias("dare", False),
    "dare_ties": Alias("dare_ties", False),
    "della": Alias("della", True),
    "della_linear": Alias("della_linear", False),
    "breadcrumbs": Alias("breadcrumbs", False),
    "breadcrumbs_ties": Alias("breadcrumbs_ties", False),
    "sce": Alias("sce"),
    "slerp": Alias("slerp"),
    "nuslerp": Alias("slerp"),
    "model_stock": Alias("model_stock"),
    "tsv": Alias("tsv_m"),
    "iso_c": Alias("iso_c"),
    "knots": Alias("knots"),
}
