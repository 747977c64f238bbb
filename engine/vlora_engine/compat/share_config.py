"""lorashare's settings, as its checkpoints keep them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vlora_engine.interop.common import read_index
from vlora_engine.utils.file_names import SHARE_INDEX
from vlora_engine.utils.files import write_json


@dataclass
class SHAREConfig:
    """The settings of a lorashare checkpoint, as ``share_config.json`` holds them."""

    share_version: str = "0.1.0"
    num_components: int = 32
    component_selection: str = "fixed"
    variance_threshold: float = 0.95
    base_model_name_or_path: str = ""
    target_modules: list[str] = field(default_factory=list)
    lora_rank: int = 0
    lora_alpha: int = 0
    adapter_names: list[str] = field(default_factory=list)
    num_adapters: int = 0
    layer_keys: list[str] = field(default_factory=list)
    compression_stats: dict[str, Any] = field(default_factory=dict)

    def save(self, output_dir: str | Path) -> None:
        """Write ``share_config.json`` into a directory."""
        directory = Path(output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / SHARE_INDEX, self.to_dict(), indent=2)

    @classmethod
    def load(cls, checkpoint_dir: str | Path) -> SHAREConfig:
        """Read ``share_config.json``; fields that are not known are left out.

        Raises:
            NotFoundError, CorruptFileError: It is not there, or is no JSON object.
        """
        index = read_index(Path(checkpoint_dir) / SHARE_INDEX)
        field_names = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in index.items() if name in field_names})

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)
