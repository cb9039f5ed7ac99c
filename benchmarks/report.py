"""What the benchmarks do with their figures: print a table, and write them down if asked to."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emotion.checkpoint import atomic_write


def offer_to_write(parser: argparse.ArgumentParser, file: Path) -> None:
    """Add the flag `--write`, see `report`."""
    parser.add_argument("--write", action="store_true", help=f"write the figures to {file}, for `python -m docs.make`")


def report(table: str, results: Mapping[str, Any], file: Path | None, indent: int | None = 2) -> None:
    """Print a table, and write the figures that it was made of as JSON to `file`, if there is one."""
    print(table)
    if file:
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(results, indent=indent) + "\n")
