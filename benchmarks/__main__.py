"""Every benchmark of cost, one after the other: `python -m benchmarks`."""

import argparse
import sys

from benchmarks import live, page, prediction, traditional, training


def main(arguments: list[str] | None = None) -> int:
    """Run them all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", metavar="CSV", help="FER2013, for `python -m benchmarks.prediction`")
    parser.add_argument("--votes", metavar="CSV", help="FER+'s votes, with --data")
    parser.add_argument("--write", action="store_true", help="write the figures, for `python -m docs.make`")
    options = parser.parse_args(arguments)
    write = ["--write"] if options.write else []
    data = [f"--{name}={file}" for name in ("data", "votes") if (file := getattr(options, name))]
    # What may be missing shows first: the page needs a browser.
    for benchmark in (page, prediction, traditional, live, training):
        print(f"{benchmark.__doc__.splitlines()[0]}\n", flush=True)
        benchmark.main(write + (data if benchmark is prediction else []))
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
