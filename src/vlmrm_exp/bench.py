"""How fast is training, and how fast could it be? python -m vlmrm_exp.bench task=...

Times the loop, each of its stages alone (simulate, render, embed, update), and a plain
sequential loop to compare with. Ceilings are counted floating-point operations over the
rate of a large matrix product on the same machine.
"""

import contextlib
import copy
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vlmrm_exp import __main__ as training
from vlmrm_exp import app
from vlmrm_exp.checks import at_least
from vlmrm_exp.config import Config, ConfigError, ForeignError, cores
from vlmrm_exp.files import table, write_json
from vlmrm_exp.log import RunLog
from vlmrm_exp.log.versions import versions
from vlmrm_exp.reward import Episodes, choose_device, make_model, rewards_of
from vlmrm_exp.reward.clip import Appearance
from vlmrm_exp.reward.pool import Pool
from vlmrm_exp.rl import dqn, means, sac
from vlmrm_exp.rl.cuda_graph import CudaGraph
from vlmrm_exp.rl.rollout import Rollout, collect
from vlmrm_exp.rl.state import State
from vlmrm_exp.rl.summary import peak_memory_gb
from vlmrm_exp.studies.settings import check_out
from vlmrm_exp.vlm.encoder import DTYPES, load_encoder

COUNTED = 2  # rollouts of the loop in a turn, between one before and one after
REFERENCE_STEPS = 32  # env steps of the reference between embeddings
REFERENCE_ENVS = 2
MATRIX = 2048  # rows and columns of the product that tells the machine's rate
PRODUCTS = [getattr(torch.ops.aten, name) for name in "mm addmm bmm baddbmm".split()]
IDS = {
    "cartpole": "CartPole-v1",
    "mountain_car": "MountainCarContinuous-v0",
    "humanoid": "Humanoid-v5",
}
"""What Gymnasium has in a world's place."""


@dataclass
class BenchConfig(Config):
    """See conf/bench.yaml."""

    turns: int = 5
    turn_s: float = 1.0
    reference_clip: str | None = None
    out: str = ""


ConfigStore.instance().store(name="bench_schema", node=BenchConfig)


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


def check(composed: app.Composed) -> tuple[BenchConfig, Config | None]:
    """What is to be timed, and the reference where Gymnasium has one.

    Raises:
        ConfigError: one sentence says what is wrong.
    """
    check_out(composed)
    no_folder = replace(composed, folder=None)
    config: Any = training.check(no_folder)
    at_least("turns", config.turns, 1)
    if not (math.isfinite(config.turn_s) and config.turn_s > 0):
        raise ConfigError(f"turn_s is {config.turn_s}: give seconds above 0.")
    if config.reward.model != "clip" or config.task.env not in (*IDS, "gym"):
        return config, None
    reference = training.check(no_folder)
    if config.reference_clip:
        keys = composed.keys
        kept = [key for key in keys if not key.lstrip("+~").startswith("clip.")]
        other = replace(no_folder, keys=tuple(kept))
        reference = training.check(other.again(f"clip={config.reference_clip}"))
        if reference.clip.model != "embedded":
            reference.clip.pretrained = "random"
    reference.clip.precision = "fp32"
    return config, reference


def measure(config: BenchConfig, other: Config | None, folder: Path) -> dict[str, Any]:
    """Time, print, write into `folder` and return what bench.json holds.

    In each turn everything is timed once, so that ratios are of the same minute.

    Args:
        config: what is timed.
        other: of the reference; None: there is none.
        folder: of bench.json.
    """
    torch.set_num_threads(config.compute.torch_threads)
    device = choose_device(config.compute.device)
    with contextlib.ExitStack() as opened:
        few = replace(config.evaluation, every=10**9, episodes=1)
        kept = replace(config.reward, max_error=1.0)  # the share stays as it is
        timed = replace(config, evaluation=few, reward=kept)
        envs, eval_envs, pool = training.open_parts(timed, opened)
        about = versions({"device": str(device), **pool.about()})

        def loop() -> tuple[State, float]:
            return time_loop(timed, (envs, eval_envs), pool, device)

        state, _ = loop()
        memory = peak_memory_gb()
        learn = learner(state, config, device)
        stages = stages_of(config, state, learn, opened)
        reference = None
        if other is not None:
            reference = Reference(other, envs.episode_length, learn)
        for stage in stages:
            stage.work()
        turns = []
        for _ in range(config.turns):
            turn: dict[str, Any] = {"loop": loop()[1]}
            turn["reference"] = reference and reference.env_steps_per_s(config.turn_s)
            turn["stages"] = [time_stage(stage, config.turn_s) for stage in stages]
            turn["matrix"] = [
                matrix_rate(stage.dtype, device) if stage.flop else math.nan
                for stage in stages
            ]
            turns.append(turn)
    result = {
        "settings": asdict(config),
        "versions": about,
        "cores": cores(),
        **summed_up(stages, turns, device),
        "reference_clip": other and other.clip.name,
        "peak_memory_gb": memory,
    }
    print(report(result))
    write_json(folder / "bench.json", result)
    print(f"\nsaved {folder / 'bench.json'}")
    return result


def summed_up(
    stages: Sequence[Stage], turns: Sequence[dict[str, Any]], device: torch.device
) -> dict[str, Any]:
    """Medians and extremes over turns; ratios are taken within each turn.

    Args:
        stages: as `stages_of` gives them.
        turns: of each, env steps a second of `loop` and `reference`, seconds (wall,
            CPU) an item of `stages`, and FLOP/s of `matrix` products for each stage.
        device: of the embeddings and the updates.
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
    result: dict[str, Any] = {
        "stages": rows,
        "update_over_products": spread(wall[:, -2] / wall[:, -1]),
        "loop_env_steps_per_s": spread(loop),
        "loop_over_stages": spread(1 / loop / least),
        "reference_env_steps_per_s": None,
        "loop_over_reference": None,
    }
    if None not in (references := [turn["reference"] for turn in turns]):
        result["reference_env_steps_per_s"] = spread(references)
        result["loop_over_reference"] = spread(loop / np.array(references))
    return result


def time_loop(
    config: BenchConfig, envs: tuple[Any, Any], pool: Pool, device: torch.device
) -> tuple[State, float]:
    """Train as a run does, without random steps and logs.

    Returns:
        The state that it ended in, and env steps a second of the rollouts that have
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
        log = RunLog(Path(name), config)
        try:
            state = train(config, *envs, pool, log, device)
        finally:
            log.close()
        if state.interrupted:
            raise KeyboardInterrupt
        text = (Path(name) / "metrics.jsonl").read_text(encoding="utf-8")
    laps = ("perf/collect_s", "perf/reward_wait_s", "perf/learn_s")
    lines = [json.loads(line) for line in text.splitlines()][1:-1]
    seconds = sum(line.get(lap, 0) for line in lines for lap in laps)
    return state, COUNTED * rollout / seconds


def learner(
    state: State, config: Config, device: torch.device
) -> Callable[[int], None]:
    """Takes so many gradient steps, as the loop does."""
    agent, replay, algo = state.agent, state.replay, config.algo
    graph = None
    if config.compute.cuda_graph and device.type == "cuda":
        graph = CudaGraph(agent, replay, algo.batch_size)

    def learn(steps: int) -> None:
        if not steps:
            return
        places = replay.draw(steps, algo.batch_size)
        if graph is not None:
            losses = graph(places)
        else:
            losses = [agent.update(replay.gather(place)) for place in places]
        means(losses)  # waits for the device

    return learn


class Reference:
    """A plain loop: Gymnasium's environments one by one, then embed, then learn."""

    def __init__(
        self, config: Config, episode_length: int, learn: Callable[[int], None]
    ) -> None:
        """Load the model and take a first turn.

        Args:
            config: its task and CLIP.
            episode_length: in env steps.
            learn: takes so many gradient steps.
        """
        self._options: dict[str, Any] = {"render_mode": "rgb_array"}
        if config.task.env == "humanoid":
            self._options |= {"width": 480, "height": 480}
            self._options["frame_skip"] = config.task.frame_skip
            self._options["terminate_when_unhealthy"] = False
        self._env_id = IDS.get(config.task.env, config.task.env_id)
        self._encoder = load_encoder(config.clip, choose_device(config.compute.device))
        rollout = config.algo.num_envs * episode_length
        self._share = config.algo.gradient_steps / rollout * REFERENCE_STEPS
        self._learn = learn
        self.env_steps_per_s(0)

    def env_steps_per_s(self, turn_s: float) -> float:
        """Of one turn; torch and OpenGL may use all cores, as they come."""
        before = torch.get_num_threads()
        # New ones each time: they draw into whatever OpenGL context was current last.
        envs = [gym.make(self._env_id, **self._options) for _ in range(REFERENCE_ENVS)]
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
            self._encoder.embed_frames(np.stack(frames)).cpu()
            blocks, due = blocks + 1, due + self._share
            self._learn(math.floor(due))
            due -= math.floor(due)
        torch.set_num_threads(before)
        for env in envs:
            env.close()
        if not np.ptp(frames):
            raise ForeignError(f"Gymnasium's {self._env_id} renders nothing here.")
        return blocks * REFERENCE_STEPS / seconds


def stages_of(
    config: Config,
    state: State,
    learn: Callable[[int], None],
    opened: contextlib.ExitStack,
) -> list[Stage]:
    """The stages of a loop, each alone in this process; the last one is not one.

    It is the matrix products of the update before it.

    Args:
        config: checked.
        state: where the loop ended.
        learn: takes gradient steps.
        opened: closes what is opened here.
    """
    algo, envs, agent, replay = config.algo, state.envs, state.agent, state.replay

    def simulate() -> int:
        return collect(envs, agent.act_greedily).env_steps

    def update() -> int:
        learn(algo.gradient_steps)
        return algo.gradient_steps

    rollout = collect(envs, agent.act_greedily)
    assert rollout.states is not None
    batch = replay.gather(replay.draw(algo.batch_size))
    with (products := MatrixProducts()):
        agent.update(batch)
    return [
        Stage(
            "simulate" if rollout.states.ndim == 3 else "simulate and render",
            "env step",
            simulate,
            1,
            rollout.states[0, 0].nbytes,
        ),
        *reward_stages(config, rollout, opened),
        *estimate_stage(state, rollout),
        Stage(
            "update",
            "gradient step",
            update,
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

        def reward() -> int:
            return rewards_of(model, rollout).size

        return [Stage("reward", "state", reward, share, 4)]
    encoder = load_encoder(config.clip, choose_device(config.compute.device))
    appearance = Appearance(config, encoder)
    opened.callback(appearance.close)
    states = rollout.column().states
    assert states is not None
    some = states[: appearance.batch_size, 0]
    pictures = appearance.pictures(some)
    per_state = len(pictures) / len(some)
    # What renders itself did so when it was simulated.
    rendered = rollout.states is not None and rollout.states.ndim > 3

    def render() -> int:
        appearance.pictures(some)
        return len(some)

    def embed() -> int:
        encoder.embed_frames(pictures).cpu()
        return len(pictures)

    of_state = pictures.nbytes / len(some)
    return [
        *([] if rendered else [Stage("render", "state", render, share, of_state)]),
        Stage(
            "embed",
            "picture",
            embed,
            share * per_state,
            4 * encoder.embed_frames(pictures[:1]).shape[1],
            count_flop(lambda: encoder.embed_frames(pictures[:1])),
            DTYPES[str(encoder.facts["precision"])],
        ),
    ]


def estimate_stage(state: State, rollout: Rollout) -> list[Stage]:
    """Learning the rewards of states that nobody looked at, where a run does."""
    if state.pool.estimator is None:
        return []
    estimator = copy.deepcopy(state.pool.estimator)  # the loop goes on with its own

    def estimate() -> int:
        estimator.choose(rollout)
        estimator.estimate(state.replay, newest=True)
        return rollout.env_steps

    return [Stage("estimate", "env step", estimate, 1, 4)]


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
    times = []
    for _ in range(4):
        started = time.perf_counter()
        product(a, a)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(times)


class MatrixProducts(TorchDispatchMode):
    """Records the matrix products that run within it."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self._calls: list[Callable[[], torch.Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute, and remember how."""
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
    kinds = {"median": np.median, "min": np.min, "max": np.max}
    return {name: float(kind(values)) for name, kind in kinds.items()}


def report(result: dict[str, Any]) -> str:
    """Tables for people."""
    about, rows = result["versions"], result["stages"]
    total = sum(row["cpu_s_per_env_step"] for row in rows)
    lines = []
    for row in rows:
        ceiling = row["of_ceiling"] and f"{row['of_ceiling']['median']:.0%}"
        lines.append(
            [
                row["stage"],
                f"{told(row['items_per_s'])} {row['item']}s/s",
                f"{row['items_per_env_step']:.3g}",
                f"{1e3 * row['cpu_s_per_env_step']:.3g} ms",
                f"{row['cpu_s_per_env_step'] / total:.0%}",
                f"{row['bytes_per_env_step'] / 1e3:.3g} kB",
                ceiling or "-",
            ]
        )
    head = ["alone", "rate", "items", "CPU time", "share", "hands on", "of its ceiling"]
    config, update = result["settings"], rows[-1]["items_per_s"]["median"]
    text = [
        f"{config['task']['name']}, clip={config['clip']['name']}: "
        f"{about['gpu'] or about['cpu']}, {result['cores']} cores, torch "
        f"{about['packages']['torch']}, {about.get('drawn_by', '')}",
        "Medians (extremes) of the turns; items, CPU time and bytes of an env step.",
        table(head, lines),
        f"A gradient step takes {1e3 / update:.3g} ms, "
        f"{told(result['update_over_products'])} times its matrix products alone.",
        f"The loop: {told(result['loop_env_steps_per_s'])} env steps/s, "
        f"{told(result['loop_over_stages'])} times as long as its stages' CPU time "
        f"over {result['cores']} cores; {result['peak_memory_gb']:.2g} GB of memory.",
    ]
    if result["reference_env_steps_per_s"] is None:
        text.append("No reference: Gymnasium has no such world, or CLIP is not asked.")
    else:
        text.append(
            f"The reference (clip={result['reference_clip']}, fp32): "
            f"{told(result['reference_env_steps_per_s'])} env steps/s; the loop is "
            f"{told(result['loop_over_reference'])} times as fast."
        )
    return "\n".join(text)


def told(rate: dict[str, float]) -> str:
    """A median and its extremes."""
    return f"{rate['median']:.3g} ({rate['min']:.3g} to {rate['max']:.3g})"


if __name__ == "__main__":
    app.start(
        lambda composed: measure(*check(composed), composed.folder or Path()),
        "bench",
        check,
    )
