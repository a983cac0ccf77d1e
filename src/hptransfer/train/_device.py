"""The machine that trains: its device, memory, processors, and determinism switched on."""

import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hptransfer.train._tokens import cache_root

#: For glibc's malloc, read when a process starts: memory of one step serves the next, in large
#: pages, instead of going back to the system to be mapped and zeroed anew. No effect on results.
GLIBC_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864"
)


#: The variable that says which GPUs a process sees.
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
#: The variable that says how cuBLAS works.
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"

#: What errors that are no `torch.OutOfMemoryError` say when memory has run out.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc")


def find_device() -> str:
    """Return ``cuda`` where an accelerator is at hand, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def count_cores() -> int:
    """Return the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def list_gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that this process sees."""
    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def find_memory(device: str) -> int:
    """Return the memory to plan with, in bytes.

    On a machine's own all of it, used or not, so that plans do not depend on load; on its GPUs
    what is free on the fullest, since others may share them.
    """
    if device == "cuda":
        return min(int(torch.cuda.mem_get_info(i)[0]) for i in range(torch.cuda.device_count()))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has run out, on the device or the machine."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def free_memory() -> None:
    """Give back what dropped tensors held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe_device(device: str) -> str:
    """Return the accelerator's or processor's name."""
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def worker_environment(*, threads: int, gpu: int | None = None) -> dict[str, str]:
    """Return the environment to start a training process of `threads` threads with.

    With `gpu` the process sees that one alone of the GPUs that this process sees.
    """
    environment = {**os.environ, **thread_environment(threads=threads)}
    if gpu is not None:
        visible = os.environ.get(VISIBLE_GPUS, "").split(",")
        environment[VISIBLE_GPUS] = visible[gpu].strip() if visible[0] else str(gpu)
    return environment


def thread_environment(*, threads: int) -> dict[str, str]:
    """Return the part of a training process's environment that we choose."""
    return {
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", GLIBC_TUNABLES),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def set_determinism(*, threads: int) -> None:
    """Fix what bit equality rests on, for this process: thread count and kernels."""
    # cuBLAS reads this when it starts; without it its products may differ between runs.
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    # PyTorch settles where compiled programs are kept as soon as its compiler is loaded.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "compiled"))
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Every tensor we make is written before it is read; filling it first costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def temporary_determinism(*, threads: int) -> Iterator[None]:
    """Fix what `set_determinism` fixes while something is measured, and put it back afterwards."""
    filling: Any = torch.utils.deterministic
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill, before = filling.fill_uninitialized_memory, torch.get_num_threads()
    is_set = CUBLAS_WORKSPACE in os.environ
    set_determinism(threads=threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        filling.fill_uninitialized_memory = fill
        torch.set_num_threads(before)
        if not is_set:
            del os.environ[CUBLAS_WORKSPACE]
