"""Vision transformers whose matrix products are of 8-bit integers, for CPUs.

A weight matrix has a scale for each output, its inputs one for each token, found as
they come (Dettmers et al. 2022, arXiv 2208.07339, section 3, without outliers apart).
Sums are exact; all between the products stays float32. Letters: M tokens, I inputs, O
outputs.
"""

import contextlib

import torch
from torch import nn
from torch.nn import functional

from vlmrm_exp.config import ConfigError

INPUT_MAX = 127
"""Of an int8; -128 is not used, so that both signs reach equally far."""
WEIGHT_MAX = 63
"""Processors without VNNI add pairs of products in 16 bits, inputs raised by 128 so
that they have no sign: 2 x 255 x 63 still fits."""


class Int8Linear(nn.Module):
    """A linear layer in int8."""

    weight_scale: torch.Tensor
    weight_int8: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Round a weight (O, I) float32; the bias (O,) is kept."""
        super().__init__()
        scale = _scale(weight, WEIGHT_MAX)
        self.register_buffer("weight_scale", scale.squeeze(1))  # (O,)
        self.register_buffer("weight_int8", _rounded(weight, scale).T.contiguous())
        zeros = weight.new_zeros(len(weight))
        self.register_buffer("bias", zeros if bias is None else bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) -> (..., O), both float32."""
        tokens = x.flatten(0, -2)  # (M, I)
        scale = _scale(tokens, INPUT_MAX)
        sums = torch.ops.aten._int_mm(_rounded(tokens, scale), self.weight_int8)
        y = torch.addcmul(self.bias, sums.float().mul_(scale), self.weight_scale)
        return y.unflatten(0, x.shape[:-1])


class Int8Attention(nn.Module):
    """`nn.MultiheadAttention` of a sequence to itself, its projections in int8."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Take over its weights."""
        super().__init__()
        self.num_heads = attention.num_heads
        self.in_proj = Int8Linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = Int8Linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        need_weights: bool = False,
        attn_mask: None = None,
    ) -> tuple[torch.Tensor, None]:
        """(B, L, D) -> (B, L, D), and no weights; key and value are the query."""
        qkv = self.in_proj(query).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, D / heads) each
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(y.transpose(1, 2).flatten(2)), None


def to_int8(visual: nn.Module, name: str) -> None:
    """Turn the blocks of a vision transformer (open_clip's image tower) to int8.

    Raises:
        ConfigError: it has no such blocks; `name` is that of the model.
    """
    for blocks in ("transformer.resblocks", "trunk.blocks"):  # open_clip's own, timm's
        with contextlib.suppress(AttributeError):
            _replace(visual.get_submodule(blocks))
    if not any(isinstance(module, Int8Linear) for module in visual.modules()):
        raise not_for(name)


def not_for(name: str) -> ConfigError:
    """Says that a model has no blocks that could be int8."""
    return ConfigError(
        "clip.precision=int8 is for vision transformers as open_clip and timm have "
        f"them, and clip={name} is none: use fp32 or bf16."
    )


def _replace(module: nn.Module) -> None:
    # With a q_bias, as in timm's EVA, a module reads its layers' weights itself.
    for name, child in module.named_children():
        match child:
            case nn.MultiheadAttention(batch_first=True, _qkv_same_embed_dim=True):
                setattr(module, name, Int8Attention(child))
            case nn.Linear() if getattr(module, "q_bias", None) is None:
                setattr(module, name, Int8Linear(child.weight, child.bias))
            case _:
                _replace(child)


def _scale(rows: torch.Tensor, most: int) -> torch.Tensor:
    """What 1 stands for in each row, (R, 1), if its largest magnitude is `most`."""
    return rows.abs().amax(1, keepdim=True).clamp_(min=1e-30).div_(most)


def _rounded(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (rows * scale.reciprocal()).round_().to(torch.int8)
