"""A trained policy without exploration, read from its file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmrm_exp.config import ConfigError
from vlmrm_exp.files import reason
from vlmrm_exp.rl.dqn import QNetwork
from vlmrm_exp.rl.experience import network_input
from vlmrm_exp.rl.sac import Actor, to_bounds


class Policy:
    """Chooses what the agent holds best: SAC's mean action, DQN's greedy one."""

    observation_dim: int
    """O, the numbers in an observation."""
    env_steps: int
    """Of training behind it."""

    def __init__(
        self, checkpoint: Mapping[str, Any], device: torch.device | str = "cpu"
    ) -> None:
        """Build the network of a checkpoint."""
        self.observation_dim = checkpoint["observation_dim"]
        self.env_steps = checkpoint["env_steps"]
        self._squash = checkpoint["squash_observations"]
        self._device = device
        action = checkpoint["action"]
        match checkpoint["algo"]:
            case "sac":
                network, outputs = Actor, len(action["low"])
                self._low = np.asarray(action["low"], np.float32)
                self._high = np.asarray(action["high"], np.float32)
            case "dqn":
                network, outputs = QNetwork, action["count"]
            case other:
                raise ValueError(f"unknown algorithm {other!r}")
        self._network = network(self.observation_dim, outputs, checkpoint["hidden"])
        self._network.load_state_dict(checkpoint["policy"])
        self._network.requires_grad_(False).to(device)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Observations (N, O) float32 -> actions (N, A) float32, or (N,) int64."""
        inputs = network_input(observation, self._squash)
        output = self._network(torch.from_numpy(inputs).to(self._device))
        if isinstance(self._network, QNetwork):
            return output.argmax(-1).cpu().numpy()
        mean, _ = output
        return to_bounds(torch.tanh(mean).cpu().numpy(), self._low, self._high)


def load_policy(path: Path, device: torch.device | str = "cpu") -> Policy:
    """Read a policy that a run kept.

    Raises:
        ConfigError: there is no such file, or it holds no policy of ours.
    """
    if not path.is_file():
        raise ConfigError(
            f"There is no policy at {path}: give the folder of a run that has been "
            "evaluated at least once."
        )
    checkpoint = None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return Policy(checkpoint, device)
    except Exception as error:  # a damaged file can raise nearly anything
        # Of what it does not read, PyTorch says how to load it all the same.
        why = f" ({reason(error, named=True)})" if checkpoint is not None else ""
        raise ConfigError(
            f"{path} is not a policy that this version can read{why}: it is damaged, "
            "or was written by something else; train again or give another."
        ) from error
