"""Where torch computes, and with what on a CPU."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vlmrm_exp.config import ConfigError

if TYPE_CHECKING:
    import torch

CPU_FACTS = Path("/proc/cpuinfo")
AMD = re.compile(r"^vendor_id\s*: AuthenticAMD\ncpu family\s*: (\d+)$", re.MULTILINE)
ZEN_5 = 26  # the first family that computes all 512 bits of AVX-512 at once


def choose_device(
    name: str, setting: str = "compute", widen: bool = True
) -> "torch.device":
    """Turn auto, cpu or gpu into a torch device; a ConfigError if there is no GPU.

    `setting` is what a user chooses it by. With `widen`, a CPU does `widen_products`,
    which holds for all of the process.
    """
    import torch  # here, so that --help and refusals are immediate

    there = torch.cuda.is_available()
    if name == "gpu" and not there:
        raise ConfigError(
            f"{setting}=gpu needs a GPU that torch can use, and torch sees none: "
            f"install a CUDA build of torch, or use {setting}=cpu."
        )
    if there and name != "cpu":
        return torch.device("cuda")
    if widen and not there:  # the setting would let a GPU use TF32
        widen_products()
    return torch.device("cpu")


def widen_products() -> bool:
    """Have oneDNN compute fp32 matrix products where MKL does not use the processor.

    On AMD's Zen 5, PyTorch's MKL has half of the rate, which is that of AVX2.
    Allowing bf16 is how PyTorch hands such products to oneDNN, which has bf16 for them
    with AMX alone and else computes in fp32; that it does is tried first. Whatever
    else was set before stays.

    Returns:
        Whether oneDNN computes them now.
    """
    import torch

    try:
        amd = AMD.search(CPU_FACTS.read_text(encoding="utf-8"))
        untouched = torch.get_float32_matmul_precision() == "highest"
    except (OSError, RuntimeError):  # the second: set by torch's newer names
        return False
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not (amd and int(amd[1]) >= ZEN_5 and wide and untouched):
        return False
    torch.set_float32_matmul_precision("medium")
    if products_are_fp32():
        return True
    torch.set_float32_matmul_precision("highest")
    return False


def products_are_fp32() -> bool:
    """Whether products of fp32 matrices have errors of fp32, not of bf16 or TF32."""
    import torch

    random = torch.Generator("cpu").manual_seed(0)
    shape = (2, 2, 64, 64)
    a, b = torch.randn(shape, generator=random, dtype=torch.float32, device="cpu")
    exact = a.double() @ b.double()
    errors = (a @ b - exact, a[0] @ b[0] - exact[0])
    return all(error.abs().max() < 1e-5 * exact.abs().max() for error in errors)
