"""The paper's reward: how well a picture matches a sentence, by CLIP (equations 2, 3).

    states -> [render] -> frames -> [embed] -> embeddings -> [formula] -> rewards

The formula is float32: rewards are small differences of close cosines. Letters: B
states, V views of each, P prompts, D embedding.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.device import choose_device
from vlmrm_exp.envs import frames_of, world_of
from vlmrm_exp.reward import Episodes, RewardModel

if TYPE_CHECKING:  # it takes seconds to import, and workers alone need it
    from vlmrm_exp.vlm.encoder import Encoder


def mean_embedding(prompts: torch.Tensor, renormalise: bool = True) -> torch.Tensor:
    """Average unit embeddings of several prompts (..., P, D) into one (..., D).

    The original code left the mean as it was, so that alpha 0 was no cosine any more;
    `renormalise=False` repeats that.
    """
    mean = prompts.float().mean(dim=-2)
    return functional.normalize(mean, dim=-1) if renormalise else mean


def goal_baseline_reward(
    states: torch.Tensor, goal: torch.Tensor, baseline: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Goal-baseline regularised reward (paper Definition 1, equation 3).

    1 - 1/2 ||alpha proj_L(s) + (1 - alpha) s - g||^2, where L is the line through
    baseline b and goal g. With unit vectors, alpha 0 is the cosine (equation 2), and
    alpha 1 sees only the part of s along g - b.

    Args:
        states: (B, D) unit image embeddings.
        goal: (D,) embedding of the goal prompt, or one for each state, (B, D).
        baseline: the same of the baseline prompt; not read at alpha 0.
        alpha: regularisation strength in [0, 1].

    Returns:
        (B,) float32, at most 1.

    Raises:
        ConfigError: goal and baseline coincide while alpha is above 0: no line.
    """
    offset = states.float() - goal.float()  # (B, D)
    if alpha > 0:
        direction = goal.float() - baseline.float()
        length = direction.norm(dim=-1, keepdim=True)
        if (length < 1e-6).any():
            raise ConfigError(
                "The prompt and the baseline have the same embedding, so there is no "
                "line to project on: say something else in one of them, or set alpha=0."
            )
        direction = direction / length
        along = (offset * direction).sum(-1, keepdim=True) * direction  # (B, D)
        offset = alpha * along + (1 - alpha) * offset
    return 1 - offset.square().sum(dim=1) / 2


class Sentence:
    """What embeddings are worth under a prompt, a baseline and an alpha."""

    def __init__(self, encoder: "Encoder", config: Config) -> None:
        """Embed the sentences.

        Raises:
            ConfigError: prompt and baseline mean the same to the model, and alpha > 0.
        """
        self._goal, self._baseline = (
            mean_embedding(encoder.embed_prompts(sentences), config.renormalise)
            for sentences in (config.prompts, config.baselines)
        )
        self._alpha = config.alpha
        self(self._goal[None, None])  # so that it is refused now

    @property
    def way(self) -> torch.Tensor:
        """From the baseline's embedding to the goal's, (D,)."""
        return self._goal - self._baseline

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, V, D) -> rewards (B,) float32: the mean over views."""
        reward = goal_baseline_reward(
            embeddings.flatten(0, 1), self._goal, self._baseline, self._alpha
        )
        return reward.reshape(embeddings.shape[:2]).mean(dim=1)


class Appearance:
    """Sees states as a model does: renders each view and embeds it."""

    def __init__(
        self, config: Config, at_once: int, embed: Callable[[np.ndarray], torch.Tensor]
    ) -> None:
        """Open the drawing context of the configured task.

        Args:
            config: its task, and the size and effects of frames.
            at_once: pictures that are best made together.
            embed: the model's part: pictures (B, H, W, 3) uint8 -> (B, D).
        """
        self._embed = embed
        self._views = len(config.task.views)
        self.batch_size = max(1, at_once // self._views)
        self._renderer = world_of(config.task).make_renderer(
            config.task, config.frame_height, config.clip.render_effects
        )
        self.drawn_by = self._renderer.drawn_by

    def pictures(self, states: np.ndarray) -> np.ndarray:
        """States (B, S), or frames (B, H, W, 3) -> each view alone: (B V, H, W, 3)."""
        frames = frames_of(self._renderer, states)  # views side by side: (B, H, V W, 3)
        batch, height, width, _ = frames.shape
        views = self._views
        apart = frames.reshape(batch, height, views, width // views, 3).swapaxes(1, 2)
        return apart.reshape(batch * views, height, width // views, 3)

    def batches(self, states: np.ndarray) -> list[np.ndarray]:
        """Parts of states, or frames, that are best seen at once."""
        return np.split(states, range(self.batch_size, len(states), self.batch_size))

    def see(self, states: np.ndarray) -> torch.Tensor:
        """States (B, S), or frames (B, H, W, 3) -> embeddings (B, V, D)."""
        parts = [self._embed(self.pictures(part)) for part in self.batches(states)]
        return torch.cat(parts).unflatten(0, (len(states), self._views))

    def close(self) -> None:
        """Free the drawing context."""
        self._renderer.close()


class ClipReward(RewardModel):
    """Goal-baseline regularised cosine of rendered states and a sentence."""

    sees_pictures = True

    def __init__(self, config: Config, wordings: Sequence[Config] = ()) -> None:
        """Load the model, embed the sentences, open the drawing context.

        `wordings` are the same with each goal that `scores` tells of; none: its own.

        Raises:
            ConfigError: prompts that do not fit, weights that cannot be had, no GPU,
                nothing to render with.
        """
        from vlmrm_exp.vlm.encoder import load_encoder
        from vlmrm_exp.vlm.tokenizer import check_prompts

        wordings = wordings or [config]
        sentences = [s for one in wordings for s in (*one.prompts, *one.baselines)]
        check_prompts(config.clip, sentences)
        encoder = load_encoder(config.clip, choose_device(config.compute.device))
        self._sentences = [Sentence(encoder, one) for one in wordings]
        self._sentence = self._sentences[0]
        encoder.drop_text_tower()  # the sentences do not change any more
        self._facts = encoder.facts
        self._appearance = Appearance(config, encoder.batch_size, encoder.embed_frames)
        self.batch_size = self._appearance.batch_size

    def rewards(self, episodes: Episodes) -> np.ndarray:
        """(T, N) float32."""
        parts = self._appearance.batches(episodes.flat)
        rewards = [self._sentence(self._appearance.see(part)).cpu() for part in parts]
        return torch.cat(rewards).numpy().reshape(episodes.shape)

    def scores(self, states: np.ndarray) -> np.ndarray:
        """States (B, S), or frames -> rewards of each wording's goal (B, K) float32."""
        seen = self._appearance.see(states)  # (B, V, D)
        rewards = torch.stack([sentence(seen) for sentence in self._sentences], 1)
        return rewards.cpu().numpy()

    def embeddings(self, states: np.ndarray) -> torch.Tensor:
        """States (T, N, S), or frames -> embeddings (T, N, V, D)."""
        seen = self._appearance.see(Episodes(states=states).flat)
        return seen.unflatten(0, states.shape[:2])

    def about(self) -> dict[str, Any]:
        """What embeds and what renders."""
        return {"encoder": self._facts, "drawn_by": self._appearance.drawn_by}

    def close(self) -> None:
        """Free the drawing context."""
        self._appearance.close()
