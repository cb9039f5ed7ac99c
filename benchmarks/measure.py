"""How the benchmarks measure: alternating runs, their median and spread, and the machine that they ran on."""

import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

RUN_SECONDS: Final = 1.0
"""A run repeats its step for at least this long."""


def run(step: Callable[[], Any], least: float = RUN_SECONDS) -> float:
    """Seconds per call of `step`, called for at least `least` seconds."""
    steps, start = 0, time.perf_counter()
    while not steps or time.perf_counter() - start < least:
        step()
        steps += 1
    return (time.perf_counter() - start) / steps


def alternate(steps: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Seconds per call of each step in every run; they take turns, so that what else the machine does meets all."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            seconds[name].append(run(step))
    return seconds


def memory(field: str, process: int | str = "self") -> int:
    """Resident bytes of a process now (VmRSS) or at their peak (VmHWM), as Linux counts them."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])


def processor() -> str:
    """Name of the processor, which may be that of a family, and whether it computes in bfloat16."""
    text = Path("/proc/cpuinfo").read_text()
    named = re.search(r"model name\s*: (.+)", text)
    native = re.search(r"\b(avx512_bf16|amx_bf16)\b", text)
    return f"{named[1] if named else platform.machine()} {'with' if native else 'without'} bfloat16"


def machine() -> str:
    """Processor, threads and PyTorch."""
    return f"{processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__.split('+')[0]}"


def milliseconds(values: Sequence[float]) -> str:
    """The median of some seconds, and the smallest and the largest of them."""
    digits = 0 if median(values) > 0.1 else 1
    low, middle, high = (f"{1000 * value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} ms ({low} to {high})"
