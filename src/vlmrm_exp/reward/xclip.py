"""Rewards of what a video encoder sees in the last frames of an episode, at once.

    states -> [render] -> frames -> [the last F] -> videos -> [X-CLIP] -> rewards

Letters: T steps, N episodes, V views of each state, F frames of a video.
"""

from typing import Any

import numpy as np
import torch

from vlmrm_exp.checks import reward_options, whole_number
from vlmrm_exp.config import Config
from vlmrm_exp.device import choose_device
from vlmrm_exp.reward import Episodes, RewardModel
from vlmrm_exp.reward.clip import Appearance, goal_baseline_reward, mean_embedding

OPTIONS = {"stride": (1, whole_number)}


class XClipReward(RewardModel):
    """Goal-baseline regularised cosine of X-CLIP's video and sentence embeddings.

    A step's video is the frame of its state and those `reward.options.stride`, twice
    that, ... steps before, as many as the model takes; before the episode's beginning
    its first frame is repeated.

    X-CLIP changes a sentence's embedding with the video that it is compared with. So
    each step has a goal and a baseline of its own: the sentences, as the model sees
    them beside that step's video; several are averaged as for CLIP. At alpha 0 and with
    one sentence that is the model's own cosine, `logits_per_video` without its scale.
    """

    sees_pictures = True
    has_options = True
    window = 8  # or as model and stride say: whole episodes

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse impossible options."""
        reward_options(OPTIONS, config.reward.options)

    def __init__(self, config: Config) -> None:
        """Load the model, open the drawing context.

        Raises:
            ConfigError: as of `VideoEncoder`; impossible options; no GPU; nothing to
                render with.
        """
        from vlmrm_exp.vlm.video_encoder import VideoEncoder

        self._stride = reward_options(OPTIONS, config.reward.options)["stride"]
        self._goals, self._alpha = len(config.prompts), config.alpha
        self._renormalise = config.renormalise
        prompts = [*config.prompts, *config.baselines]
        device = choose_device(config.compute.device)
        self._encoder = encoder = VideoEncoder(config.clip, prompts, device)
        self._views = Appearance(config, encoder.batch_size, encoder.pixels)

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """(T, N) float32.

        Raises:
            ConfigError: prompt and baseline mean the same to the model, and alpha > 0.
        """
        assert episodes.states is not None
        return np.stack([self._episode(s) for s in episodes.states.swapaxes(0, 1)], 1)

    def _episode(self, states: np.ndarray) -> np.ndarray:
        """States (T, S) or frames of one episode -> (T,); renders each state once."""
        pixels = self._views.see(states)  # (T, V, 3, h, w)
        back = self._stride * torch.arange(self._encoder.num_frames - 1, -1, -1)
        at = (torch.arange(len(states))[:, None] - back).clamp(min=0)  # (T, F)
        size = max(1, self._encoder.batch_size // self._encoder.num_frames)
        views = [
            torch.cat([self._rewards(view[part]) for part in at.split(size)])
            for view in pixels.swapaxes(0, 1)
        ]
        return torch.stack(views).mean(0).cpu().numpy()

    def _rewards(self, videos: torch.Tensor) -> torch.Tensor:
        """Videos (B, F, 3, h, w) -> (B,)."""
        seen, sentences = self._encoder.embed(videos)
        goals, baselines = (
            mean_embedding(some, self._renormalise)
            for some in (sentences[:, : self._goals], sentences[:, self._goals :])
        )
        return goal_baseline_reward(seen, goals, baselines, self._alpha)

    def about(self) -> dict[str, Any]:
        """What embeds and what renders."""
        return {"encoder": self._encoder.facts, "drawn_by": self._views.drawn_by}

    def close(self) -> None:
        """Free the drawing context."""
        self._views.close()
