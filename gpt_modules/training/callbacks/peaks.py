"""The most floating-point operations a second that a device makes in products of matrices: what utilisation is of."""

import re
import time
from collections.abc import Callable

import torch
from torch import Tensor

# In half precision with float32 sums, and in float32 itself: NVIDIA's datasheets, without sparsity.
DATASHEETS = {
    "H200|H100 80GB|H100 SXM": (989e12, 67e12),
    "H100 NVL": (835e12, 60e12),
    "H100 PCIe": (756e12, 51e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}
SIZES = {"cpu": 512, "cuda": 8192}  # of the products that are timed
COPIED = {"cpu": 2**27, "cuda": 2**31}  # bytes, more than caches hold


def peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """Of one device in products of this type: by its datasheet, where that is known, or measured for so long.

    Float32 on CUDA counts as itself unless torch may multiply it in TF32, which is measured.
    """
    half, exact = dtype != torch.float32, torch.get_float32_matmul_precision() == "highest"
    if device.type == "cuda" and (half or exact):
        name = torch.cuda.get_device_name(device)
        for pattern, (in_half, in_float32) in DATASHEETS.items():
            if re.search(rf"\b({pattern})\b", name):
                return in_half if half else in_float32
    return measured_flops(device, dtype, seconds)


def measured_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """Of the fastest of some large products; waits for the device, and draws none of the run's random numbers."""
    size, own = SIZES.get(device.type, 2048), torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, dtype=dtype, generator=own) for _ in range(2))
    return 2.0 * size**3 / _fastest(lambda: left @ right, seconds)


def copied_bytes(device: torch.device, seconds: float = 0.1) -> float:
    """Bytes a second that a device's memory gives to a large copy, those that are read and those that are written."""
    source = torch.ones(COPIED.get(device.type, 2**28), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / _fastest(lambda: target.copy_(source), seconds)


def _fastest(act: Callable[[], Tensor], seconds: float) -> float:
    """Seconds of the fastest of as many calls as fit, as others may be at work meanwhile; the first, which also makes
    ready, does not count.
    """
    taken: list[float] = []
    while sum(taken[1:]) < seconds:
        started = time.perf_counter()
        act().flatten()[0].item()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])
