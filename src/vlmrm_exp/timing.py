"""Times a training loop, each of its stages alone, and a plain sequential loop.

What `python -m vlmrm_exp.bench` does. Ceilings are counted floating-point operations
over the rate of a large matrix product on the same machine.
"""

import contextlib
import copy
import json
import math
import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vlmrm_exp.__main__ import open_parts
from vlmrm_exp.config import Config, ForeignError, cores
from vlmrm_exp.device import choose_device
from vlmrm_exp.log import RunLog
from vlmrm_exp.log.versions import versions
from vlmrm_exp.reward import Episodes, make_model, rewards_of
from vlmrm_exp.reward.clip import Appearance
from vlmrm_exp.reward.pool import Pool
from vlmrm_exp.rl import dqn, means, sac
from vlmrm_exp.rl.cuda_graph import CudaGraph
from vlmrm_exp.rl.rollout import collect
from vlmrm_exp.rl.state import State
from vlmrm_exp.rl.summary import peak_memory_gb
from vlmrm_exp.vlm.encoder import DTYPES, Encoder, load_encoder

COUNTED = 2  # rollouts of the loop in a turn, between one before and one after
REFERENCE_STEPS = 32  # env steps of the reference between embeddings
REFERENCE_ENVS = 2
MATRIX = 2048  # rows and columns of the product that tells the machine's rate
PRODUCTS = [getattr(torch.ops.aten, name) for name in "mm addmm bmm baddbmm".split()]


@dataclass
class Stage:
    """A part of the work that every env step needs."""

    name: str
    item: str
    """What is counted."""
    work: Callable[[], int]
    """Does some; returns of how many items."""
    per_env_step: float
    """Items."""
    bytes: float
    """That an item hands on: states, pixels, embeddings; transitions of an update."""
    flop: float = 0.0
    """Of an item, in matrix products and convolutions; 0: not counted."""
    dtype: torch.dtype = torch.float32


def timed(
    config: Config, other: Config | None, turns: int, turn_s: float
) -> dict[str, Any]:
    """Time everything once in each turn, so that ratios are of the same minute.

    `other` is of the reference, which steps `task.env_id`, if there is one; `turn_s`
    are seconds of a stage's turn, at least. Returns what bench.json holds, its settings
    aside.
    """
    torch.set_num_threads(config.compute.torch_threads)
    device = choose_device(config.compute.device)
    few = replace(config.evaluation, every=10**9, episodes=1)
    kept = replace(config.reward, max_error=1.0)  # the share stays as it is
    config = replace(config, evaluation=few, reward=kept)
    with contextlib.ExitStack() as opened:
        envs, eval_envs, pool = open_parts(config, opened, {})
        about = versions({"device": str(device), **pool.about()})
        loop = partial(time_loop, config, (envs, eval_envs), pool, device)
        state, _ = loop()
        memory = peak_memory_gb()
        learn = learner(state, config, device)
        stages = stages_of(config, state, learn, opened)
        reference = None
        if other is not None:
            encoder = load_encoder(other.clip, device)
            reference = partial(
                time_reference, other, encoder, envs.episode_length, learn
            )
            reference(0)
        for stage in stages:
            stage.work()
        found = [
            {
                "loop": loop()[1],
                "reference": reference and reference(turn_s),
                "stages": [time_stage(stage, turn_s) for stage in stages],
                "matrix": [
                    matrix_rate(stage.dtype, device) if stage.flop else math.nan
                    for stage in stages
                ],
            }
            for _ in range(turns)
        ]
    return {
        "versions": about,
        "cores": cores(),
        **summed_up(stages, found, device),
        "reference_clip": other and other.clip.name,
        "peak_memory_gb": memory,
    }


def summed_up(
    stages: Sequence[Stage], turns: Sequence[dict[str, Any]], device: torch.device
) -> dict[str, Any]:
    """Medians and extremes over turns; ratios are taken within each turn.

    A turn has env steps a second of `loop` and `reference`, seconds (wall, CPU) an item
    of each of `stages`, and FLOP/s of `matrix` products for each stage.
    """
    wall, cpu = np.array([turn["stages"] for turn in turns]).transpose(2, 0, 1)
    matrix = np.array([turn["matrix"] for turn in turns])  # like those, (turns, stages)
    per_env_step = np.array([stage.per_env_step for stage in stages])
    flop = np.array([stage.flop for stage in stages])
    loop = np.array([turn["loop"] for turn in turns])
    least = (cpu * per_env_step).sum(1) / cores()
    if device.type != "cpu":  # which does one thing at a time
        least = np.maximum(least, (wall * per_env_step).max(1))
    of_ceiling = flop / wall / matrix
    plain = [turn["reference"] for turn in turns if turn["reference"] is not None]
    rows = [
        {
            "stage": stage.name,
            "item": stage.item,
            "items_per_s": spread(1 / wall[:, i]),
            "items_per_env_step": stage.per_env_step,
            "s_per_env_step": float(np.median(wall[:, i])) * stage.per_env_step,
            "cpu_s_per_env_step": float(np.median(cpu[:, i])) * stage.per_env_step,
            "bytes_per_env_step": stage.bytes * stage.per_env_step,
            "flop_per_item": stage.flop or None,
            "matrix_flop_per_s": spread(matrix[:, i]) if stage.flop else None,
            "of_ceiling": spread(of_ceiling[:, i]) if stage.flop else None,
        }
        for i, stage in enumerate(stages[:-1])
    ]
    return {
        "stages": rows,
        "update_over_products": spread(wall[:, -2] / wall[:, -1]),
        "loop_env_steps_per_s": spread(loop),
        "loop_over_stages": spread(1 / loop / least),
        "reference_env_steps_per_s": spread(plain) if plain else None,
        "loop_over_reference": spread(loop / np.array(plain)) if plain else None,
    }


def time_loop(
    config: Config, envs: tuple[Any, Any], pool: Pool, device: torch.device
) -> tuple[State, float]:
    """Train as a run does, without random steps and logs.

    Returns the state that it ended in, and env steps a second of the rollouts that have
    others before and after them.
    """
    rollout = config.algo.num_envs * envs[0].episode_length
    config = replace(
        config,
        env_steps=(COUNTED + 2) * rollout,
        algo=replace(config.algo, learning_starts=0, random_steps=0),
        log=replace(config.log, mode="none"),
    )
    train = {"sac": sac, "dqn": dqn}[config.algo.name].train
    with tempfile.TemporaryDirectory() as name:
        with RunLog(Path(name), config) as log:
            state = train(config, *envs, pool, log, device)
        if state.interrupted:
            raise KeyboardInterrupt
        text = (Path(name) / "metrics.jsonl").read_text(encoding="utf-8")
    laps = ("perf/collect_s", "perf/reward_wait_s", "perf/learn_s")
    lines = [json.loads(line) for line in text.splitlines()][1:-1]
    seconds = sum(line.get(lap, 0) for line in lines for lap in laps)
    return state, COUNTED * rollout / seconds


def learner(state: State, config: Config, device: torch.device) -> Callable[[int], int]:
    """Takes so many gradient steps, as the loop does, and returns how many."""
    agent, replay, batch_size = state.agent, state.replay, config.algo.batch_size

    def one_by_one(places: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        return [agent.update(replay.gather(place)) for place in places]

    as_graph = config.compute.cuda_graph and device.type == "cuda"
    take = CudaGraph(agent, replay, batch_size) if as_graph else one_by_one

    def learn(steps: int) -> int:
        if steps:
            means(take(replay.draw(steps, batch_size)))  # waits for the device
        return steps

    return learn


def time_reference(
    config: Config,
    encoder: Encoder,
    episode_length: int,
    learn: Callable[[int], int],
    turn_s: float,
) -> float:
    """Env steps a second of a plain loop, in a turn of so many seconds.

    Gymnasium's environments one by one, then embed, then learn; torch and OpenGL are as
    they come, and may use all cores.
    """
    options: dict[str, Any] = {"render_mode": "rgb_array"}
    if config.task.env == "humanoid":
        options |= {"width": 480, "height": 480, "terminate_when_unhealthy": False}
        options["frame_skip"] = config.task.frame_skip
    rollout = config.algo.num_envs * episode_length
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    # New ones each time: they draw into whatever OpenGL context was current last.
    envs = [gym.make(config.task.env_id, **options) for _ in range(REFERENCE_ENVS)]
    for env in envs:
        env.reset()
        env.render()
    torch.set_num_threads(cores())
    started, blocks, due, frames = time.perf_counter(), 0, 0.0, []
    while (seconds := time.perf_counter() - started) < turn_s or not blocks:
        frames = []
        for _ in range(REFERENCE_STEPS // REFERENCE_ENVS):
            for env in envs:
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                frames.append(env.render())
                if terminated or truncated:
                    env.reset()
        encoder.embed_frames(np.stack(frames)).cpu()
        blocks += 1
        due += config.algo.gradient_steps / rollout * REFERENCE_STEPS
        learn(math.floor(due))
        due -= math.floor(due)
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])
    for env in envs:
        env.close()
    if not np.ptp(frames):
        raise ForeignError(f"Gymnasium's {config.task.env_id} renders nothing here.")
    return blocks * REFERENCE_STEPS / seconds


def stages_of(
    config: Config,
    state: State,
    learn: Callable[[int], int],
    opened: contextlib.ExitStack,
) -> list[Stage]:
    """The stages of a loop that ended in `state`, each alone in this process.

    The last one is none: the matrix products of the update before it.
    """
    algo, envs, agent, replay = config.algo, state.envs, state.agent, state.replay
    rollout = collect(envs, agent.act_greedily)
    assert rollout.states is not None
    batch = replay.gather(replay.draw(algo.batch_size))
    with (products := MatrixProducts()):
        agent.update(batch)
    estimator: Any = copy.deepcopy(state.pool.estimator)  # the loop keeps its own

    def estimate() -> int:
        """Learn the rewards of states that nobody looked at."""
        estimator.choose(rollout)
        estimator.estimate(replay, newest=True)
        return rollout.env_steps

    return [
        Stage(
            "simulate" if rollout.states.ndim == 3 else "simulate and render",
            "env step",
            lambda: collect(envs, agent.act_greedily).env_steps,
            1,
            rollout.states[0, 0].nbytes,
        ),
        *reward_stages(config, rollout, opened),
        *([Stage("estimate", "env step", estimate, 1, 4)] if estimator else []),
        Stage(
            "update",
            "gradient step",
            partial(learn, algo.gradient_steps),
            algo.gradient_steps / rollout.env_steps,
            sum(part.nbytes for part in batch),
            count_flop(lambda: agent.update(batch)),
        ),
        Stage("products", "gradient step", products.repeat, 0, 0),
    ]


def reward_stages(
    config: Config, rollout: Episodes, opened: contextlib.ExitStack
) -> list[Stage]:
    """How a rollout's states become rewards: rendered and embedded, if by CLIP."""
    share = -(-rollout.shape[0] // config.reward.every) / rollout.shape[0]
    if config.reward.query_share < 1:
        share = config.reward.query_share
    if config.reward.model != "clip":
        model = make_model(config)
        opened.callback(model.close)
        if model.cheap or model.window > 1:  # all states then, as in training
            share = 1
        return [
            Stage("reward", "state", lambda: rewards_of(model, rollout).size, share, 4)
        ]
    encoder = load_encoder(config.clip, choose_device(config.compute.device))
    appearance = Appearance(config, encoder.batch_size, encoder.embed_frames)
    opened.callback(appearance.close)
    some = rollout.flat[: appearance.batch_size]
    pictures = appearance.pictures(some)
    per_state = len(pictures) / len(some)
    # What renders itself did so when it was simulated.
    rendered = rollout.states is not None and rollout.states.ndim > 3

    def render() -> int:
        appearance.pictures(some)
        return len(some)

    of_state = pictures.nbytes / len(some)
    return [
        *([] if rendered else [Stage("render", "state", render, share, of_state)]),
        Stage(
            "embed",
            "picture",
            lambda: len(encoder.embed_frames(pictures).cpu()),
            share * per_state,
            4 * encoder.embed_frames(pictures[:1]).shape[1],
            count_flop(lambda: encoder.embed_frames(pictures[:1])),
            DTYPES[str(encoder.facts["precision"])],
        ),
    ]


def time_stage(stage: Stage, turn_s: float) -> tuple[float, float]:
    """Seconds on the clock, and of all threads, that an item takes: one turn's mean."""
    items, started, cpu = 0, time.perf_counter(), time.process_time()
    while (taken := time.perf_counter() - started) < turn_s or not items:
        items += stage.work()
    return taken / items, (time.process_time() - cpu) / items


def count_flop(work: Callable[[], object]) -> float:
    """Floating-point operations in matrix products, attention and convolutions."""
    of_int8: Any = {
        torch.ops.aten._int_mm: lambda a, b, out_shape: 2 * math.prod(a) * b[1]
    }
    counter = FlopCounterMode(display=False, custom_mapping=of_int8)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused operations are not counted
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return float(counter.get_total_flops())


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large matrix product, with torch's threads: the best of four."""
    a = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    product = torch.ops.aten._int_mm if dtype == torch.int8 else torch.mm
    # Reading a number waits for the device.
    times = timeit.repeat(lambda: product(a, a)[0, 0].item(), number=1, repeat=4)
    return 2 * MATRIX**3 / min(times)


class MatrixProducts(TorchDispatchMode):
    """Records the matrix products that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Callable[[], torch.Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        call = partial(func, *args, **kwargs or {})
        if func.overloadpacket in PRODUCTS:
            self._calls.append(call)
        return call()

    @torch.no_grad()
    def repeat(self) -> int:
        """Compute them all once more, on the same memory."""
        for call in self._calls:
            last = call()
        last.flatten()[0].item()  # waits for the device
        return 1


def spread(values: np.ndarray | Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {name: float(getattr(np, name)(values)) for name in ("median", "min", "max")}
