"""Every benchmark of cost, one after the other: `python -m benchmarks`, with `--write` to renew the figures."""

import sys

from benchmarks import live, page, prediction, traditional, training


def main(arguments: list[str] | None = None) -> int:
    """Run them all with the same arguments; returns the exit code."""
    for benchmark in (traditional, prediction, page, live, training):
        print(f"{benchmark.__doc__.splitlines()[0]}\n", flush=True)
        benchmark.main(arguments)
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
