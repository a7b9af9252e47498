"""A trained policy without exploration, read from its file."""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vlmrm_exp.checks import check_extra
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs import VectorEnv
from vlmrm_exp.files import reason, written_whole
from vlmrm_exp.rl import network_input
from vlmrm_exp.rl.dqn import QNetwork
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
        self._bounds = None  # DQN
        self._device = device
        action = checkpoint["action"]
        match checkpoint["algo"]:
            case "sac":
                network, outputs = Actor, len(action["low"])
                low, high = np.array([action["low"], action["high"]], np.float32)
                self._bounds = low, high
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
        if self._bounds is None:
            return output.argmax(-1).cpu().numpy()
        mean, _ = output
        return to_bounds(torch.tanh(mean).cpu().numpy(), *self._bounds)

    def check_fits(self, envs: VectorEnv, run: object, task: str) -> None:
        """Refuse, with a ConfigError, to act where observations are of another size."""
        shown = envs.observation_space.shape[0]
        if self.observation_dim != shown:
            raise ConfigError(
                f"The policy in {run} acts on observations of {self.observation_dim} "
                f"numbers, but task={task} has {shown}: its config.yaml is of another "
                "run."
            )

    def predict(
        self,
        observation: np.ndarray,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, Any]:
        """What to do, as Stable-Baselines3 asks; it has no memory.

        Args:
            observation: (O,), or (N, O) of several environments.
            state: returned as it is.
            episode_start: not read.
            deterministic: nothing else is possible.

        Returns:
            SAC: (A,) or (N, A) float32, within the environment's bounds. DQN: a number
            or (N,) int64, from 0. And `state`.

        Raises:
            ConfigError: observations of another shape, or not deterministic.
        """
        if not deterministic:
            raise ConfigError(
                "The policy acts without exploration: deterministic=True."
            )
        given = np.asarray(observation, np.float32)
        if given.ndim not in (1, 2) or given.shape[-1] != self.observation_dim:
            size = self.observation_dim
            raise ConfigError(
                f"The observation has the shape {given.shape}, but must have "
                f"({size},), or (N, {size}) for several environments: give those of "
                "the task that the policy was trained in."
            )
        action = self.act(np.atleast_2d(given))
        return (action if given.ndim == 2 else action[0]), state

    def to_onnx(self, path: str | Path) -> None:
        """Write what `predict` computes as ONNX: `observation` in, `action` out.

        float32 (N, O) -> float32 (N, A), or int64 (N,), for any N.

        Raises:
            ConfigError: the exporter's packages are not installed.
        """
        for name in ("onnx", "onnxscript"):
            check_extra("to_onnx", name, "onnx", "vlmrm_exp's load_policy")
        quiet = warnings.catch_warnings(action="ignore")  # of PyTorch's own code
        with written_whole(Path(path)) as part, quiet:
            torch.onnx.export(
                _Whole(self._network, self._squash, self._bounds).eval(),
                (torch.zeros(2, self.observation_dim),),
                part,
                input_names=["observation"],
                output_names=["action"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )


class _Whole(nn.Module):
    """All of `Policy.act` in PyTorch, for export."""

    def __init__(self, network: nn.Module, squash: bool, bounds: Any) -> None:
        super().__init__()
        self._network = copy.deepcopy(network).cpu()
        self._squash, self._bounds = squash, bounds

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """Observations (N, O) -> actions (N, A) or (N,)."""
        if self._squash:
            observation = observation.sign() * observation.abs().log1p()
        output = self._network(observation)
        if self._bounds is None:
            return output.argmax(-1)
        low, high = map(torch.from_numpy, self._bounds)
        action = low + (output[0].tanh() + 1) * ((high - low) / 2)
        return action.maximum(low).minimum(high)


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> Policy:
    """Read a policy that a run kept; with reward=stages it wants its stage, too.

    `path` is a run's folder, of which `checkpoints/best.pt` is read; or such a file.

    Raises:
        ConfigError: there is no such file, or it holds no policy of ours.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / "best.pt"
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
