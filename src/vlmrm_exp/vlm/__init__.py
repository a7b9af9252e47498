"""What a vision-language model sees and says, and the reward made from it."""

from collections.abc import Iterable

from vlmrm_exp.config import ClipConfig


def tell_embedded(clips: Iterable[ClipConfig]) -> None:
    """Say which models know nothing of pictures that people bring."""
    for clip in clips:
        if clip.model == "embedded":
            print(
                f"clip={clip.name} is an embedded model: it knows the pictures of this "
                "project's worlds alone, and its rewards of others mean nothing."
            )
