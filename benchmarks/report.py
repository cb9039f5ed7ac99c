"""What the benchmarks have in common: flags, and what becomes of their figures."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emotion.checkpoint import atomic_write


def count(text: str) -> int:
    """The number that a flag is given, at least 1, for argparse.

    Raises:
        ArgumentTypeError: if it is smaller.
    """
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; give at least 1.")
    return number


def offer_runs(parser: argparse.ArgumentParser, runs: int) -> None:
    """Add the flag `--runs`, the number of alternating runs whose medians the table has; `runs` by default."""
    parser.add_argument(
        "--runs", type=count, default=runs, metavar="NUMBER", help="alternating runs (default: %(default)s)"
    )


def offer_to_write(parser: argparse.ArgumentParser, file: Path) -> None:
    """Add the flag `--write`, see `report`."""
    parser.add_argument("--write", action="store_true", help=f"write the figures to {file}, for `python -m docs.make`")


def report(table: str, results: Mapping[str, Any], file: Path | None, indent: int | None = 2) -> None:
    """Print a table, and write the figures that it was made of as JSON to `file`, if there is one."""
    print(table)
    if file:
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(results, indent=indent) + "\n")
