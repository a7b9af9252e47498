"""What can be set: the types behind the YAML files in `conf/`, and what is derived.

The YAML files hold the numbers with their units and origins; what is possible is in
`checks.py`. Nothing of ours and nothing heavy is imported, so that `--help` and every
refusal are immediate.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

MAX_WORKERS = 16  # each has a model of its own in memory
MAX_PHYSICS_THREADS = 8  # the rest of a step is Python's, in one thread
VIDEO_MODEL = "xclip:"  # begins `clip.model` of a video encoder


class ConfigError(ValueError):
    """Bad input from the person who started the program; its text is one sentence."""


class UnavailableError(ConfigError):
    """What a run needs from elsewhere cannot be had now, but may be later."""


class FolderTakenError(ConfigError):
    """The folder holds another run, which is left as it is."""


class FinishedError(FolderTakenError):
    """The folder holds this very run, and it is finished: nothing is wrong."""


class ForeignError(RuntimeError):
    """Code of others failed; the text is one sentence, the cause is their error."""


@dataclass
class TaskConfig:
    """What is simulated and how it looks."""

    name: str = MISSING
    env: str = MISSING
    """World: cartpole, mountain_car, humanoid, gym, or `module:NAME` of one's own."""
    env_id: str = ""
    """Gymnasium id; only read when `env` is `gym`."""
    version: str = "v5"
    """Gymnasium's Humanoid version whose observation is given: v5 or v4."""
    observation: str = "full"
    """Humanoid: full (Gymnasium's), or joints: positions and velocities alone."""
    frame_skip: int = 5
    """Humanoid: physics steps of 3 ms for which an action is held, one env step."""
    goal: str = ""
    """The predicate of success, one of the world's `goals`; empty: none, or the first
    of them."""
    before: list[str] = field(default_factory=list)
    """Goals that must be met before it, in order."""
    hold: int = 1
    """Where there are some: env steps in a row for which each goal must be met."""
    episode_length: int | None = None
    """Env steps per episode; None: the Gymnasium id's own limit (`env: gym` only)."""
    textures: str = "plain"
    camera: str = "fixed"
    """A view, or several as fixed+side: each state's rewards are averaged."""
    frame_height: int = 480
    """Pixels; `clip.frame_height` overrides it. `env: gym` draws itself: the most that
    is kept."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of a world of one's own."""

    @property
    def views(self) -> list[str]:
        """The cameras, one by one."""
        return self.camera.split("+")


@dataclass
class ClipConfig:
    """The vision-language model and the picture it is shown."""

    name: str = MISSING
    model: str = MISSING
    """open_clip architecture, `hf-hub:org/repo`, `local-dir:/path` or `embedded`; for
    reward=xclip `xclip:org/repo` or `xclip:/path`."""
    pretrained: str | None = None
    """open_clip tag, weights file or `random`; None: `model` names weights itself."""
    download_gb: float | None = None
    """Size of the download in GB (1e9 bytes), told when it cannot be had."""
    quick_gelu: bool | None = None
    """Whether a weights file was trained with QuickGELU; None: as all of its kind."""
    precision: str = "auto"
    """Weights while embedding: fp32, bf16, fp16, on a CPU int8 (image tower alone);
    auto: bf16 on a GPU, else fp32."""
    preprocess: str = "pad"
    """How a frame that is not square meets the model: pad, squash or crop."""
    mean: list[float] | None = None
    std: list[float] | None = None
    """RGB normalisation; None: the checkpoint's own, which it must not contradict."""
    frame_height: int | None = None
    """Pixels; None: the task's."""
    render_effects: bool = True
    """MuJoCo shadows, reflections and 4x multisampling."""
    batch_size: int | None = None
    """Frames per forward pass; None: 64 on a GPU, 16 on a CPU, where that is as fast
    and workers get more even shares."""


@dataclass
class RewardConfig:
    """What a state is worth, and who says so."""

    name: str = MISSING
    model: str = MISSING
    """clip, video, xclip, stages, ensemble, predicate, environment, by_hand, or
    `module:Class` of a `RewardModel` of one's own."""
    every: int = 1
    """Training rewards each n-th state of an episode; the steps between get linear
    interpolations. Evaluation rewards all; so does training where rewards cost nothing
    or depend on several states in a row."""
    query_share: float = 1.0
    """Share of training's states that the reward model looks at; networks learn the
    rewards of the others from it. 1: all, or each `every`-th."""
    max_error: float = 0.7
    """Of these, over the spread of rewards: above it more states are looked at."""
    pessimism: float = 0.0
    """Standard deviations over these networks that are taken off their mean."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of reward=video, xclip, stages or ensemble, or of one's own model."""


@dataclass
class StageConfig:
    """One of several sentences in order, and when it is reached: one of two ways."""

    prompt: Any = MISSING
    """A string, or a list whose embeddings are averaged."""
    quantile: float | None = None
    """Where its reward is above this share of those of random actions' states."""
    margin: float | None = None
    """Where its reward is so much above that of each other stage's sentence."""
    hold: int = 1
    """Env steps in a row for which it must be reached, until the next stage begins."""

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list."""
        return as_list(self.prompt)


@dataclass
class AlgoConfig:
    """SAC (continuous actions) or DQN (discrete actions)."""

    name: str = MISSING
    num_envs: int = 8
    """Environments that step together; one rollout is one episode of each."""
    gradient_steps: int = 200
    """Gradient steps after each rewarded rollout."""
    learning_starts: int = 0
    """Env steps in replay before the first gradient step."""
    random_steps: int = 0
    """Env steps with uniformly random actions at the start."""
    random_action_repeat: int = 1
    """SAC: steps for which each of these is held; longer holds explore further."""
    batch_size: int = 256
    buffer_size: int = 1_000_000
    """Replay capacity in transitions, rounded down to whole rollouts."""
    learning_rate: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    hidden: list[int] = field(default_factory=lambda: [256, 256])
    layer_norm: bool = False
    """SAC: normalise the critics' hidden layers."""
    bootstrap_at_time_limit: bool = True
    """Whether the value after an episode's last step counts (it is a truncation)."""
    normalise_rewards: bool = False
    """Learn from rewards of mean 0 and standard deviation 1 over the replay buffer."""
    squash_observations: bool = False
    """sign(o) log(1 + |o|) on every observation, for ones of mixed magnitude."""
    temperature: float = 0.2
    """SAC: weight of the entropy; the start value when `learn_temperature`."""
    learn_temperature: bool = True
    target_entropy: float | None = None
    """SAC: None means minus the number of action dimensions."""
    exploration_start: float = 1.0
    exploration_end: float = 0.05
    exploration_steps: int = 10_000
    """DQN: epsilon falls linearly from start to end over this many env steps."""


@dataclass
class ComputeConfig:
    """Where the work runs."""

    name: str = MISSING
    device: str = "auto"
    """auto, cpu or gpu: where embeddings and gradient steps are computed."""
    pool: str = "processes"
    """What computes rewards: processes on this machine, or ray: actors on any nodes."""
    workers: int | None = None
    """How many of them; 0: the training process does it itself; null: `num_workers`, or
    with ray one for each GPU of the cluster, for each core if it has none."""
    overlap: bool = True
    """Reward a rollout while the next one is simulated and learned from."""
    torch_threads: int = 1
    """Threads of each process's tensor operations on the CPU."""
    physics_threads: int | None = None
    """Threads of the humanoids' physics; null: half of the cores, at most 8."""
    checkpoint_s: float = 60.0
    """Seconds between states from which a killed run goes on, at least: saving takes
    2 % of the time at most. 0: after each rollout."""
    cuda_graph: bool = True
    """On a GPU, replay gradient steps as a CUDA graph; false: launch each kernel."""

    @property
    def num_workers(self) -> int:
        """`workers`; or one for each core, but only one where a GPU embeds."""
        if self.workers is not None:
            return self.workers
        # Asked without importing torch: a GPU that torch cannot use costs speed only.
        on_gpu = self.device != "cpu" and os.path.exists("/proc/driver/nvidia")
        return 1 if on_gpu else min(cores(), MAX_WORKERS)

    @property
    def num_physics_threads(self) -> int:
        """`physics_threads`, or half of the cores, at most 8."""
        # Two on two cores took a fourth more of their time, which rewards need.
        return self.physics_threads or min(max(cores() // 2, 1), MAX_PHYSICS_THREADS)


@dataclass
class EvaluationConfig:
    """When the policy is tried without exploration, and on how many episodes."""

    every: int = 8_000
    """Env steps between evaluations during training."""
    episodes: int = 8
    final_episodes: int = 100
    """Episodes on which the kept policy is judged at the end."""
    reward_episodes: int = 8
    """Of those, the first so many are rendered and rewarded; success needs states."""
    video_episodes: int = 2
    """Episodes of the final evaluation that are shown in the video."""


@dataclass
class LogConfig:
    """Weights & Biases or TensorBoard; `metrics.jsonl` is written always."""

    name: str = MISSING
    mode: str = "offline"
    """W&B's offline or online; tensorboard; or none of it."""
    project: str = "vlmrm_exp"
    entity: str | None = None
    group: str | None = None
    """None: the sweep's name, or task, model and prompt of a single run."""
    tags: list[str] = field(default_factory=list)
    notes: str | None = None


@dataclass
class Config:
    """One training run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    judge: dict[str, Any] = field(default_factory=dict)
    """Second opinions on evaluations, by name: what each is told differently, as on the
    command line; a text or a list of them."""
    member: dict[str, Any] = field(default_factory=dict)
    """Opinions of which reward=ensemble is made, told as judges are. Once checked
    (`told.with_members`), the settings that each changes: {"clip": {"name": ...}}."""
    prompt: Any = MISSING
    """The goal in words: a string, or a list whose embeddings are averaged."""
    stages: list[StageConfig] = field(default_factory=list)
    """The goals in words, one after another: what reward=stages reads for `prompt`."""
    baseline: Any = MISSING
    """The scene in words, without the goal: a string or a list."""
    alpha: float = MISSING
    """Strength of goal-baseline regularisation, 0..1 (paper Definition 1)."""
    renormalise: bool = True
    """Several prompts: bring their mean back to unit length."""
    seed: int = 0
    name: str = MISSING
    """Name of the run's folder under `outputs/<task>/`; not read in a sweep."""
    env_steps: int = MISSING
    """Total env steps, summed over environments; runs on to the end of a rollout, as
    all counts of env steps do."""

    @property
    def prompts(self) -> list[str]:
        """The goal prompts as a list."""
        return as_list(self.prompt)

    @property
    def baselines(self) -> list[str]:
        """The baseline prompts as a list."""
        return as_list(self.baseline)

    @property
    def frame_height(self) -> int:
        """Pixels of the frame that a reward is made from."""
        return self.clip.frame_height or self.task.frame_height


def conf_dir() -> Path:
    """The folder of YAML files: inside an installed wheel, or at a checkout's top."""
    package = Path(__file__).resolve().parent
    places = package / "conf", package.parents[1] / "conf"
    for place in places:
        if (place / "config.yaml").is_file():
            return place
    raise ConfigError(
        "The configuration files are missing: neither {} nor {} holds config.yaml; "
        "reinstall vlmrm_exp.".format(*places)
    )


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def as_list(value: Any) -> list[Any]:
    """The elements of a list or tuple; anything else alone, a text too."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [value]
