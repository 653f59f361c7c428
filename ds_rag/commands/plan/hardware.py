"""GPUs as described by their vendors' data sheets, and typical machines around them.

Peak rates are dense (without the sheets' factor two for sparsity), and bandwidths are peaks too. A plan multiplies the
peak rate by --mfu and divides bytes by --bandwidth, the rate per GPU that a ring over all GPUs really reaches.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. A GB is 1e9 bytes, here and in every number of a plan."""

    name: str
    memory: float  # GB that programs can use: the sheet's GiB minus what the driver needs
    tflops: float  # bf16 matrix products (fp16 where there is no bf16)
    fp32_tflops: float  # float32 as torch computes by default: without TF32
    memory_bandwidth: float  # GB/s
    link: float  # GB/s a GPU sends to others in its machine: half of the sheet's sum over both directions
    bf16: bool = True


# Sources: NVIDIA's data sheets of each product (V100 2020, T4 2019, A10 2021, A100 2021, L4 and L40S 2023, RTX 4090
# and RTX 5090 pages, H100 2023, H200 2024, B200 in the HGX sheet of 2024), AMD's of the MI300X (2023).
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", 15.6, 65, 8.1, 320, 16, bf16=False),
        Gpu("v100-32gb", 33.8, 125, 15.7, 900, 150, bf16=False),
        Gpu("a10", 23.6, 125, 31.2, 600, 32),
        Gpu("l4", 23.6, 121, 30.3, 300, 32),
        Gpu("l40s", 47.6, 362, 91.6, 864, 32),
        Gpu("rtx-4090", 25.2, 165, 82.6, 1008, 32),
        Gpu("rtx-5090", 33.6, 210, 105, 1792, 64),
        Gpu("a100-40gb", 42.3, 312, 19.5, 1555, 300),
        Gpu("a100-80gb", 84.9, 312, 19.5, 2039, 300),
        Gpu("h100", 84.9, 989, 67, 3350, 450),
        Gpu("h200", 150.7, 989, 67, 4800, 450),
        Gpu("b200", 191.0, 2250, 80, 8000, 900),
        Gpu("mi300x", 205.0, 1307, 163, 5300, 448),
    )
}

DEFAULT = "h100"  # planned for where this machine's GPU is not in the table
MFU = 0.4  # fraction of a GPU's peak rate that training reaches
LINK_FRACTION = 0.7  # of a link's peak that a ring reaches for large buffers, within a machine
NETWORK = 50.0  # GB/s a GPU sends to other machines: one 400 Gbit/s adapter per GPU, as is usual with H100
GPUS_PER_NODE = 8
HOST_MEMORY = 1000.0  # GB per machine
HOST_LINK = 25.0  # GB/s between a GPU and its host: PCIe 4.0 x16 has a peak of 32
HOST_ADAM = 1.0  # 1e9 parameters per second that AdamW updates on the host, for each rank
MEMORY_FRACTION = 0.92  # of a GPU's memory that a plan uses; the rest is for CUDA, NCCL's buffers, fragmentation

CPU = "cpu"
CORE_TFLOPS = 0.1  # float32 of one core with AVX2 at 3 GHz: 32 operations a cycle
CORE_MFU = 0.6  # of that: what scoring and training of small models reach (docs/performance.md)
DRIVER = Path("/proc/driver/nvidia/gpus")  # of NVIDIA's driver on Linux: a folder for each GPU


def this_machine(driver: Path = DRIVER) -> Gpu | None:
    """The GPU of this machine, or its processor where it has none; None for a GPU that is not in the table."""
    files = sorted(driver.glob("*/information")) if driver.is_dir() else []
    if not files:
        return None if Path("/dev/kfd").exists() else processor()
    words = set(re.findall(r"[a-z0-9]+", files[0].read_text(encoding="utf-8", errors="replace").lower()))
    if "laptop" in words:  # less memory under the same name
        return None
    return next((gpu for name, gpu in GPUS.items() if set(name.split("-")) <= words), None)


def processor() -> Gpu:
    """The processor as a device: memory that is there, float32 rates by the number of cores."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory, rate = psutil.virtual_memory().total / 1e9, CORE_TFLOPS * cores
    return Gpu(CPU, memory, rate, rate, 20, 5, bf16=False)
