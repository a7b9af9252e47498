"""open_clip, imported in a third of the time that it would take by itself.

torchvision imports PyTorch's compiler for one operator, timm for marking a few
functions, and wandb for its own training. Nothing of it is used here, and each reward
worker would wait for it.
"""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """In this block, let the compiler be an empty module, and wandb not installed."""
    compiler, utils = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    vars(compiler)["disable"] = lambda function, *args, **options: function
    vars(utils)["is_compile_supported"] = lambda device_type: False
    wanted: dict[str, Any] = {
        **{module.__name__: module for module in (compiler, utils)},
        "wandb": None,
    }
    new = wanted.keys() - sys.modules.keys()
    sys.modules.update({name: wanted[name] for name in new})
    try:
        yield
    finally:
        for name in new:
            del sys.modules[name]


def _import() -> None:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # The package index's torchvision is built for CUDA; beside a CPU-only torch its
        # compiled part does not load and its import fails on two operators that it then
        # never uses. Their schemas are enough.
        for op in ("nms", "qnms"):
            _torchvision_ops.define(
                f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    import open_clip  # noqa: F401


_torchvision_ops = torch.library.Library("torchvision", "FRAGMENT")
try:
    with _stand_ins():
        _import()
except Exception:  # other versions may want more of the compiler
    _import()

import open_clip  # noqa: E402

__all__ = ["open_clip"]
