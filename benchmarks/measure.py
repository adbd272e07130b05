"""What the benchmarks share: interleaved timing, peak memory, and the record of where they ran."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

RESULTS = Path(__file__).parent / "results"

PEAK_TFLOPS = {  # dense, from the makers' data sheets: (bf16, tf32, fp32)
    "H200": (989.4, 494.7, 66.9),
    "H100": (989.4, 494.7, 66.9),
    "A100": (312.0, 156.0, 19.5),
    "L40S": (362.05, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
}


def synchronise(device: torch.device) -> None:
    """Wait for the device; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> tuple[str, Callable[[], float]]:
    """CPU seconds of this process with one thread, which others cannot take; else wall seconds."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "cpu", time.process_time
    return "wall", time.perf_counter


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    steps: int,
    warmup: int,
) -> dict[str, list[float]]:
    """Seconds a call of each contender, one number for each round.

    In every round each runs ``steps`` times, the first one of a round rotating, so that what else
    the machine does hits all of them alike.
    """
    names = list(contenders)
    _, now = clock(device)
    for name in names:
        for _ in range(warmup):
            contenders[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            synchronise(device)
            started = now()
            for _ in range(steps):
                contenders[name]()
            synchronise(device)
            seconds[name].append((now() - started) / steps)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """``slow / fast`` round by round, so that drift between rounds cancels."""
    return spread([s / f for s, f in zip(seconds[slow], seconds[fast], strict=True)])


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most memory in use at once during ``call``, beyond what was in use before it.

    On CUDA what the caching allocator reserved, which holds the pools of CUDA graphs and scratch
    memory; on a CPU the running sum of torch's own allocator, as the profiler records it, without
    scratch memory.
    """
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        call()
        synchronise(device)
        return torch.cuda.max_memory_reserved(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results
    events = [e for e in results.events() if e.name() == "[memory]"]
    in_use = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    return peak


def peak_flops(device: torch.device, precision: str) -> tuple[float, str] | None:
    """FLOP/s a device can do at most in this precision, and how it was taken; None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for key, (bf16, tf32, fp32) in PEAK_TFLOPS.items():
        if key in name.split() or key in name.replace("-", " ").split():
            return {"bf16": bf16, "tf32": tf32, "fp32": fp32}[precision] * 1e12, precision
    return None


def cpu() -> dict[str, Any]:
    """Name and the instructions that matter for bf16, from /proc/cpuinfo where there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    return {
        "name": fields.get("model name", platform.processor()),
        "avx512f": "avx512f" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "amx_bf16": "amx_bf16" in flags,
    }


def commit() -> str:
    """What ``COMMIT`` names, as a copy without its history needs it; else git's own answer."""
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; adds ``--out``, and ``--threads``, which it sets."""
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """How a benchmark was called; where its result went is nobody's concern."""
    return {key: value for key, value in vars(args).items() if key != "out"}


def record(device: torch.device, config: Mapping[str, Any]) -> dict[str, Any]:
    """Where, with what and how a benchmark ran."""
    return {
        "config": dict(config),
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "cpu": cpu(),
            "threads": torch.get_num_threads(),
            "clock": clock(device)[0],
            "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        },
    }


def write(path: Path, result: Mapping[str, Any]) -> None:
    """One JSON document, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    beside.replace(path)
