"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import hesse

PEERS = ("curvlinops-for-pytorch", "backpack-for-pytorch", "transformers")


def describe_machine() -> dict[str, str | int]:
    """CPU, cores, threads, load and versions."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hesse": hesse.__version__,
    } | {name: _version(name) for name in PEERS}


def one_line(machine: dict[str, str | int]) -> str:
    """The same as a sentence."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "hesse", *PEERS))
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads used, load "
        f"{machine['load']} at the start; {machine['system']}, Python {machine['python']}, "
        f"{versions}. float32."
    )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
