"""What adapter.json says of an adapter: written by training, read by sampling, `merge`, the studio."""

from dataclasses import dataclass, field
from typing import Any

ADAPTER_FACTS = "adapter.json"
ADAPTER_WEIGHTS = "adapter.safetensors"


@dataclass(frozen=True)
class AdapterRecord:
    """One adapter of one level's prior."""

    level: str = ""
    base: str = ""  # fingerprint of the weights it was trained beside
    fingerprint: str = ""  # sha256 of adapter.safetensors
    config: dict[str, Any] = field(default_factory=dict)  # of models/adapters.py
    vqvae: str | None = None  # fingerprint of the VQ-VAE whose codes it was trained on
    names: dict[str, Any] = field(
        default_factory=dict
    )  # condition -> new names, in the order of their rows
    labels: dict[str, Any] = field(
        default_factory=dict
    )  # condition -> name that every song was given
    base_precision: str = "float32"  # in which the base was kept while it was trained
    step: int = 0
    songs: int = 0  # trained on
    held_out_songs: int = 0
    hours: float = 0.0  # of audio of the songs trained on
    bits_before: float | None = None  # bits per code of the held-out songs: of the base alone ...
    bits_after: float | None = None  # ... and with the adapter
    licence: str | None = None  # of the base, which the adapter takes on
    made_by: dict[str, Any] = field(default_factory=dict)
