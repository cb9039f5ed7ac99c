"""The networks that the page offers."""

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emotion.checkpoint import find_metadata
from emotion.predict import DEFAULT_CHECKPOINT, EmotionPredictor

TRIM: Final = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
"""Gives the system what glibc keeps of the memory that each thread has freed: a tenth of all after many photos."""


@dataclass(frozen=True)
class Network:
    """One network that the page offers, loaded.

    Attributes:
        checkpoint: folder, `.pth` file or Hub id that it came from.
        predictor: answers every visitor, from several threads.
        metrics: content of the checkpoint's `metrics.json`; empty if it has none.
    """

    checkpoint: str | Path
    predictor: EmotionPredictor
    metrics: Mapping[str, Any]

    @property
    def threshold(self) -> float:
        """Top probability below which no class is clear, as measured on validation data; 0 if it was not measured."""
        clear = self.metrics.get("clear_answer")
        threshold = clear.get("threshold") if isinstance(clear, dict) else None
        return threshold if isinstance(threshold, float) else 0.0


def load_networks(source: str | Path | None = None) -> dict[str, Network]:
    """Load what the page is to offer, by name; the first is the one that the page starts with.

    Args:
        source: a checkpoint (folder, `.pth` file or Hub id) or a folder with several checkpoint folders; by default
            the folder of the network that ships with the project. That network comes first, the rest by name.

    Raises:
        FileNotFoundError: if there is no such checkpoint, or the Hub does not give it.
        ValueError: if one is damaged or not what it should be.
    """
    source = source or DEFAULT_CHECKPOINT.parent
    checkpoints: list[str | Path] = [source]
    if os.path.isdir(source) and not (Path(source) / "config.json").exists():
        found = [file.parent for file in Path(source).glob("*/config.json")]
        # Without any, the folder itself is refused, in the words of `load_checkpoint`.
        checkpoints = sorted(found, key=lambda folder: (folder != DEFAULT_CHECKPOINT, folder.name)) or checkpoints
    # Made absolute, "." has a name, too; of a Hub id the name stays what it is.
    networks = {os.path.basename(os.path.abspath(checkpoint)): _load(checkpoint) for checkpoint in checkpoints}
    # GNU's C library keeps the 100 MB that went into building the graphs, unless it is asked.
    if TRIM:
        TRIM(0)
    return networks


def _load(checkpoint: str | Path) -> Network:
    predictor = EmotionPredictor.from_checkpoint(checkpoint)
    metrics = find_metadata(checkpoint, "metrics")
    return Network(checkpoint, predictor, metrics if isinstance(metrics, dict) else {})
