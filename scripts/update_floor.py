"""What SAC's update cannot go below: its own parts, timed where they stand.

    python scripts/update_floor.py [task=kneeling key=value ...]

Matrix products take longer within an update than one after another, because the weights
leave the cache in between. Each kind of operation is left out in turn (its results are
those of the first update again); what the update is then shorter by is what it takes.
The floor is the sum of these parts over the products alone, as if all else were free.
Run it on an idle machine. Operations pass through Python here, so the update as a whole
is slower than in training; differences of two such updates are not.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vlmrm_exp import composition
from vlmrm_exp.__main__ import check
from vlmrm_exp.config import ConfigError
from vlmrm_exp.device import widen_products
from vlmrm_exp.envs.in_order import make_envs
from vlmrm_exp.rl import Batch
from vlmrm_exp.rl.sac import SAC
from vlmrm_exp.timing import PRODUCTS, MatrixProducts
from vlmrm_exp.words import to_keys

ROUNDS, UPDATES, WARM_UP = 40, 20, 3
ATEN = torch.ops.aten
PARTS = {
    "nothing": [],
    "matrix products": PRODUCTS,
    "layer norm": [ATEN.native_layer_norm, ATEN.native_layer_norm_backward],
    "Adam's kernels": [ATEN._fused_adam_],
}


class Without(TorchDispatchMode):
    """Gives an update's operations of some kinds their first results again."""

    def __init__(self, kinds: list[Any]) -> None:
        super().__init__()
        self._kinds, self._first = kinds, []
        self.done = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket not in self._kinds:
            return func(*args, **kwargs or {})
        if self.done == len(self._first):
            self._first.append(func(*args, **kwargs or {}))
        self.done += 1
        return self._first[self.done - 1]


def milliseconds(work: Callable[[], object]) -> float:
    """Of one call, the mean of some after a few others."""
    for _ in range(WARM_UP):
        work()
    started = time.perf_counter()
    for _ in range(UPDATES):
        work()
    return (time.perf_counter() - started) / UPDATES * 1000


def main() -> None:
    """Print what each part takes, and the floor."""
    keys = to_keys(sys.argv[1:], {})
    config = check(composition.compose("config", "task=kneeling", "name=x", *keys))
    torch.set_num_threads(1)
    widen_products()
    envs = make_envs(config.task, 1, 1)
    observation, action = envs.observation_space, envs.action_space
    if not isinstance(action, gym.spaces.Box):
        raise ConfigError(
            f"task={config.task.name} is not learned by SAC: give one with continuous "
            "actions, as task=kneeling."
        )

    def agent() -> SAC:
        return SAC(config.algo, observation, action, 0, torch.device("cpu"))

    count = config.algo.batch_size
    first, second = torch.randn(2, count, *observation.shape).unbind()
    reward, last = torch.randn(count), torch.zeros(count, dtype=torch.bool)
    batch = Batch(first, torch.randn(count, *action.shape).tanh(), reward, second, last)
    with (alone := MatrixProducts()):
        agent().update(batch)
    works: dict[str, Callable[[], object]] = {"alone": alone.repeat}
    for name, kinds in PARTS.items():
        learner, mode = agent(), Without(kinds)

        def update(learner: SAC = learner, mode: Without = mode) -> None:
            mode.done = 0
            with mode:
                learner.update(batch)

        works[name] = update
    took: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name in random.sample(list(works), len(works)):
            took[name].append(milliseconds(works[name]))
    median = {name: statistics.median(times) for name, times in took.items()}
    parts = {name: median["nothing"] - median[name] for name in PARTS}
    print(f"matrix products, one after another: {median['alone']:.2f} ms")
    for name in list(PARTS)[1:]:
        part = parts[name]
        print(f"{name}, within: {part:.2f} ms, {part / median['alone']:.2f} times that")
    floor = sum(parts.values()) / median["alone"]
    print(f"the floor of an update: {floor:.2f} times its products alone")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"update_floor: {error}")
