"""From rendered frames to the pixels a checkpoint was trained on, on their device.

open_clip's own evaluation transform takes one PIL image at a time; this is the same
arithmetic on whole batches. Of the three ways to fit a picture that is not square, two
are open_clip's (`squash`, and `crop`, its `shortest`); the third, `pad`, is its
`longest` with another border: docs/decisions/0001-whole-picture-by-default.md.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch.nn import functional

from vlmrm_exp.vlm.imported import open_clip


def preprocess(
    frames: torch.Tensor,
    size: tuple[int, int],
    fit: str,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """Fit, resize and normalise a batch of frames.

    Args:
        frames: (B, H, W, 3) uint8, B at least 1.
        size: height and width of the model's picture in pixels.
        fit: `pad` shows the whole frame in its own proportions, centred, the border
            filled with `mean`; `squash` stretches the frame to `size`; `crop` fills
            `size` and cuts off what sticks out, the same on both sides.
        interpolation: `bicubic` or `bilinear`, antialiased.
        mean: RGB, of values in 0..1.
        std: RGB, of values in 0..1.

    Returns:
        (B, 3, *size) float32, in channels-last memory like the frames.
    """
    pixels = frames.permute(0, 3, 1, 2)  # (B, 3, H, W)
    height, width = pixels.shape[2:]
    pixels = resize(pixels, resized_size((height, width), size, fit), interpolation)
    # (B, 3, h, w), h and w at most `size` (pad), it (squash), or at least it (crop)
    mean_, std_ = (
        torch.tensor(list(x), device=frames.device).view(3, 1, 1) for x in (mean, std)
    )
    normalised = (pixels.float() / 255 - mean_) / std_
    # The border is of zeros: `mean`, normalised.
    return open_clip.transform.center_crop_or_pad(normalised, list(size))


def resized_size(
    frame: tuple[int, int], size: tuple[int, int], fit: str
) -> tuple[int, int]:
    """Height and width before the border or the cut, rounded as open_clip does."""
    (height, width), (to_height, to_width) = frame, size
    is_wide = width * to_height >= height * to_width
    match fit:
        case "squash":
            return size
        case "pad" if is_wide:
            return max(1, round(height * to_width / width)), to_width
        case "pad":
            return to_height, max(1, round(width * to_height / height))
        case "crop" if is_wide:
            return to_height, width * to_height // height
        case "crop":
            return height * to_width // width, to_width
    raise ValueError(f"fit is {fit!r}: pad, squash or crop.")


def resize(
    pixels: torch.Tensor, size: tuple[int, int], interpolation: str
) -> torch.Tensor:
    """Resize (B, 3, H, W) as PIL does: antialiased, width first, 8 bits in between.

    On a CPU torch has that very loop for uint8 (15 times faster than in float32);
    elsewhere the same is done in float32, so that the picture, and with it the reward,
    does not depend on the device.
    """
    scale = partial(
        functional.interpolate, mode=interpolation, antialias=True, align_corners=False
    )
    if pixels.shape[2:] == size:
        return pixels
    if pixels.device.type == "cpu" and pixels.dtype == torch.uint8:
        return scale(pixels, size)
    wide = scale(pixels.float(), (pixels.shape[2], size[1])).round().clamp(0, 255)
    return scale(wide, size).round().clamp(0, 255)
