"""Where torch computes, and with what on a CPU."""

from pathlib import Path
from typing import TYPE_CHECKING

from vlmrm_exp.config import ConfigError

if TYPE_CHECKING:
    import torch

CPU_FACTS = Path("/proc/cpuinfo")


def choose_device(name: str, setting: str = "compute") -> "torch.device":
    """Turn auto, cpu or gpu into a torch device; see `widen_products` for a CPU.

    Args:
        name: as compute.device has it.
        setting: what a user chooses it by, for the message.

    Raises:
        ConfigError: gpu was asked for and there is none that torch can use.
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
    widen_products()
    return torch.device("cpu")


def widen_products(wide: bool = True) -> bool:
    """Have oneDNN compute fp32 matrix products where MKL does not use the processor.

    On AMD processors with AVX-512, PyTorch's MKL uses AVX2: half of the rate of a
    Zen 5. Allowing bf16 is how PyTorch hands such products to oneDNN, which has bf16
    for them with AMX alone and else computes in fp32; that it does is tried first.

    Args:
        wide: False: as PyTorch comes.

    Returns:
        Whether oneDNN computes them now.
    """
    import torch

    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # since torch 2.9
    if matmul is None or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not CPU_FACTS.exists() or "AuthenticAMD" not in CPU_FACTS.read_text():
        return False
    matmul.fp32_precision = "bf16" if wide else "none"
    of_fp32 = torch.full((64, 64), 1 + 2**-20)  # bf16 and TF32 have 8 and 11 bits
    if not torch.equal(of_fp32 @ torch.eye(64), of_fp32):
        matmul.fp32_precision = "none"
    return matmul.fp32_precision == "bf16"
