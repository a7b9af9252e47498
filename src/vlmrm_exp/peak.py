"""Find what a reward wants: python -m vlmrm_exp.peak task=... clip=...

An agent goes where the reward is highest, and that is rarely among the states that a
correlation is measured on. So humanoid poses of highest reward are looked for directly,
by the cross-entropy method (Rubinstein 1999), and judged by the task's predicate.
Nothing is trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlmrm_exp import cli, figures
from vlmrm_exp.config import ClipConfig, Config, ConfigError
from vlmrm_exp.study.folder import result_folder
from vlmrm_exp.study.progress import progress_bar
from vlmrm_exp.study.settings import (
    TEXT,
    ModelsConfig,
    check_alphas,
    check_one_task,
    resolve_models,
    resolve_tasks,
    table,
    with_settings_files,
    worded,
)

POPULATION, ELITE = 96, 12  # poses a round, and how many the next one is drawn around
KEPT = 0.3  # share of the former mean and spread that stays, against settling too soon
TURNS = (100.0, 100.0, 30.0)
"""Degrees by which the body may pitch, roll and yaw, from facing the front camera."""
GOAL_STATES = 2000  # drawn as epic does, of which those count that meet the task
SHOWN = 3  # pictures of either kind
PICTURE_HEIGHT = 160  # px

HELP = f"""\
Searches for the humanoid poses of highest reward, and says whether they meet the task.

  python -m vlmrm_exp.peak task=kneeling clip=nano,tiny,small,base
  python -m vlmrm_exp.peak task=kneeling,splits clip=bigG alpha=[0,0.5]
  python -m vlmrm_exp.peak task=kneeling prompt="a robot on its knees"

Settings:
  task=kneeling     one or more humanoid tasks
  alpha=[0]
  prompt=null       of the goal; null: the task's own; several are averaged: [...]
  baseline=null     null: the task's own
  textures=null     plain or realistic; null: the task's own
  camera=null       fixed, side, track or several, as fixed+side; null: the task's own
  searches=3        the first from a standing body, the others from any pose; the best
                    one counts
  rounds=30         of {POPULATION} poses
  seed=0
  clip=base         models: names in conf/clip, or local-dir:/folder (drawn as for base)
  compute=auto      auto, cpu or gpu
  cache=outputs/cache   where the states that meet the tasks are kept
  out=null          folder of the results; null: outputs/peak/TIME

Poses rest on the floor by their lowest point, pitched and rolled by {TURNS[0]:.0f}
degrees at most and turned by {TURNS[2]:.0f}, and need not be balanced. "Meets" is the
share of the best search's {ELITE} best that meet the predicate. Beside it stands the
highest reward among states of the kind that epic draws that do meet it: where the peak
is higher and does not meet the task, an agent that can hold it learns something else.
Prints a table; writes peak.json, peak.png and peak.svg.
"""


@dataclass
class PeakConfig(ModelsConfig):
    """What to search for; see HELP."""

    task: list[str] = field(default_factory=lambda: ["kneeling"])
    alpha: list[float] = field(default_factory=lambda: [0.0])
    prompt: list[str] | None = None
    baseline: list[str] | None = None
    textures: str | None = None
    camera: str | None = None
    searches: int = 3
    rounds: int = 30
    seed: int = 0


Reward = Callable[[np.ndarray], np.ndarray]
"""State rows (B, 47) -> rewards (B,)."""


def parse(arguments: Sequence[str]) -> PeakConfig:
    """Turn key=value arguments and settings files into checked values.

    Raises:
        ConfigError: one sentence says what is wrong.
    """
    asked = cli.parse(
        PeakConfig,
        with_settings_files(arguments),
        text=(*TEXT, "prompt", "baseline"),
    )
    check_alphas(asked.alpha)
    check_one_task(asked)
    for name in ("searches", "rounds"):
        if getattr(asked, name) < 1:
            raise ConfigError(f"{name} is {getattr(asked, name)}: give at least 1.")
    if asked.seed < 0:
        raise ConfigError(f"seed is {asked.seed}: give a whole number from 0 up.")
    return asked


def resolve(asked: PeakConfig) -> list[Config]:
    """The tasks asked for, with their look and sentences.

    Raises:
        ConfigError: there is no such task or look, or it is not the humanoid's.
    """
    for name in asked.task:
        if name == "gym" or not cli.composed(f"task={name}").task.goal:
            raise ConfigError(
                f"task={name} has no poses to search: give humanoid tasks, or see "
                "vlmrm_exp.landscape for cartpole and mountaincar."
            )
    return worded(resolve_tasks(asked.task, asked), asked)


def search(
    reward: Reward, rounds: int, rng: np.random.Generator, upright: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Find poses of high reward by the cross-entropy method.

    Args:
        reward: to be maximised.
        rounds: each of POPULATION poses.
        rng: of the draws.
        upright: begin around a standing body, else around any pose.

    Returns:
        The ELITE best state rows (ELITE, 47), best first, and their rewards (ELITE,).
    """
    from vlmrm_exp.envs.poses import PoseLibrary, quaternion

    library = PoseLibrary()
    # 17 joint angles in radians, then pitch, roll and yaw in degrees.
    low, high = library.model.jnt_range[1:].T
    low = np.concatenate((low, np.negative(TURNS)))
    high = np.concatenate((high, TURNS))
    spread = (high - low) / 4
    mean = np.zeros(len(low)) if upright else rng.uniform(low, high)
    poses, rows, rewards = np.empty((0, len(low))), np.empty((0, 47)), np.empty(0)
    for _ in range(rounds):
        drawn = np.clip(
            mean + spread * rng.normal(size=(POPULATION, len(low))), low, high
        )
        placed = np.stack(
            [library.place(p[:-3], quaternion(p[-1], p[-3], p[-2])) for p in drawn]
        )
        # The best so far stay among the candidates.
        poses, rows = np.concatenate((poses, drawn)), np.concatenate((rows, placed))
        rewards = np.concatenate((rewards, reward(placed)))
        best = np.argsort(-rewards)[:ELITE]
        poses, rows, rewards = poses[best], rows[best], rewards[best]
        mean = KEPT * mean + (1 - KEPT) * poses.mean(axis=0)
        spread = KEPT * spread + (1 - KEPT) * poses.std(axis=0)
    return rows, rewards


def look_for(asked: PeakConfig) -> dict[str, Any]:
    """Search, print, draw, write and return what peak.json holds.

    Raises:
        ConfigError: a model cannot be had, or nothing can be drawn.
    """
    configs, models = resolve(asked), resolve_models(asked)
    with result_folder(asked, "peak") as folder:
        return _look_for(asked, models, configs, folder)


def _look_for(
    asked: PeakConfig,
    models: Sequence[ClipConfig],
    configs: Sequence[Config],
    folder: Path,
) -> dict[str, Any]:
    """As `look_for`, of what is known to be possible."""
    # Imported here so that --help and refusals are immediate.
    from vlmrm_exp.log import versions, write_json
    from vlmrm_exp.study.embeddings import drawn_by
    from vlmrm_exp.vlm.encoder import check_prompts, fetch_weights
    from vlmrm_exp.vlm.scorer import choose_device

    choose_device(cli.composed(f"compute={asked.compute}").compute.device)
    driver = drawn_by("humanoid")  # says in one sentence where nothing can be drawn
    for clip in models:
        check_prompts(clip, [s for c in configs for s in (*c.prompts, *c.baselines)])
    for clip in models:
        fetch_weights(clip)
    known = {c.task.name: _goal_states(c, asked) for c in configs}
    jobs = [
        replace(config, clip=clip, alpha=alpha)
        for clip in models
        for config in configs
        for alpha in asked.alpha
    ]
    found, facts = [], {}
    total = len(jobs) * asked.searches
    with progress_bar(total, "search") as progress:
        for config in jobs:
            goal_states = known[config.task.name]
            row, encoder = _search_one(config, goal_states, asked, progress.update)
            found.append(row)
            facts[config.clip.name] = encoder
    rows = [{k: v for k, v in one.items() if k != "pictures"} for one in found]
    result = {
        "settings": asdict(asked),
        "models": facts,
        "rows": rows,
        "versions": versions({"drawn_by": driver}),
    }
    print(report(rows))
    write_json(folder / "peak.json", result)
    draw(found, folder / "peak")
    print(f"\nsaved {folder}/peak.json, peak.png, peak.svg")
    return result


def _goal_states(config: Config, asked: PeakConfig) -> np.ndarray:
    """States of the studies' own recipe that meet the task: (G, 47)."""
    from vlmrm_exp.study.state_sets import draw_states, truth_of

    kept = Path(asked.cache).expanduser() / "states"
    states = draw_states(config.task, GOAL_STATES, asked.seed, (), kept)
    assert states.rows is not None
    return states.rows[truth_of(config, states).goal]


def _search_one(
    config: Config, known: np.ndarray, asked: PeakConfig, done: Callable[[], object]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Search as one run would be rewarded.

    Args:
        config: with its model and alpha.
        known: states that meet the task, (G, 47).
        asked: how to search.
        done: called after each search.

    Returns:
        A row of the table with its pictures, and facts about the model.

    Raises:
        ConfigError: a reward is not finite.
    """
    from vlmrm_exp.envs import make_renderer
    from vlmrm_exp.envs.goals import HumanoidGoal
    from vlmrm_exp.study.metrics import check_finite
    from vlmrm_exp.vlm.scorer import LocalScorer

    clip, task = config.clip, config.task
    config = replace(config, compute=cli.composed(f"compute={asked.compute}").compute)
    height = config.frame_height
    scorer = LocalScorer(
        config, partial(make_renderer, task, height, clip.render_effects)
    )

    def reward(rows: np.ndarray) -> np.ndarray:
        rewards = scorer.score(rows)
        check_finite(rewards)
        return rewards

    try:
        searched = []
        for number in range(asked.searches):
            rng = np.random.default_rng([asked.seed, number])
            searched.append(search(reward, asked.rounds, rng, number == 0))
            done()
        of_known = reward(known)
        facts = scorer.facts()["encoder"]
    finally:
        scorer.close()
    meets = HumanoidGoal(task.goal)
    rows, rewards = max(searched, key=lambda found: found[1][0])
    best_known = known[np.argsort(-of_known)[:SHOWN]]
    renderer = make_renderer(task, PICTURE_HEIGHT, effects=False)
    try:
        pictures = renderer.render(np.concatenate((rows[:SHOWN], best_known)))
    finally:
        renderer.close()
    row = {
        "task": task.name,
        "clip": clip.name,
        "alpha": config.alpha,
        "textures": task.textures,
        "camera": task.camera,
        "prompt": config.prompts,
        "baseline": config.baselines,
        "reward_peak": float(rewards[0]),
        "meets": float(meets(rows).mean()),
        "reward_each_search": [float(found[1][0]) for found in searched],
        "meets_each_search": [float(meets(found).mean()) for found, _ in searched],
        "reward_goal_states": float(of_known.max()),
        "fell_short": bool(rewards[0] < of_known.max()),
        "goal_states": len(known),
        "rewards": rewards.tolist(),
        "rows": rows.tolist(),
        "pictures": pictures,
    }
    return row, facts


def report(rows: Sequence[dict[str, Any]]) -> str:
    """A table for people."""
    head = ["task", "model", "alpha", "highest reward", "meets the task",
            "each search", "highest of goal states"]  # fmt: skip
    text = table(
        head,
        [
            [
                row["task"],
                row["clip"],
                f"{row['alpha']:g}",
                f"{row['reward_peak']:.3f}",
                f"{row['meets']:.2f}",
                " ".join(f"{share:.2f}" for share in row["meets_each_search"]),
                f"{row['reward_goal_states']:.3f}",
            ]
            for row in rows
        ],
    )
    short = [
        f"{row['task']} ({row['clip']}, alpha {row['alpha']:g})"
        for row in rows
        if row["fell_short"]
    ]
    if short:
        text += (
            "\n\nThe search did not even reach the goal states' reward, and says "
            f"nothing there: {', '.join(short)}; give more searches or rounds."
        )
    return text


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a line for each search: poses of highest reward, then goal states."""
    wide = 1.25 * found[0]["pictures"].shape[2] / PICTURE_HEIGHT  # views side by side
    with figures.figure(wide * 2 * SHOWN + 1.6, 0.4 + 1.35 * len(found)) as made:
        axes = made.subplots(len(found), 2 * SHOWN, squeeze=False)
        for line, one in zip(axes, found, strict=True):
            for ax, picture in zip(line, one["pictures"], strict=False):
                # Sky above and floor beside the body say nothing.
                edge = len(picture) // 6
                views = np.split(picture, picture.shape[1] // len(picture), axis=1)
                cut = [view[edge:, edge // 2 : -edge // 2] for view in views]
                ax.imshow(np.concatenate(cut, axis=1))
            for ax in line:
                ax.set_xticks([])
                ax.set_yticks([])
            alpha = f", alpha {one['alpha']:g}" if one["alpha"] else ""
            line[0].set_ylabel(f"{one['task']}\n{one['clip']}{alpha}", fontsize=8)
            said = f"{one['meets']:.0%} meet the task"
            if one["fell_short"]:
                said = "the search fell short"
            line[SHOWN - 1].set_xlabel(
                f"reward {one['reward_peak']:.2f}, {said}", fontsize=7, loc="right"
            )
            line[-1].set_xlabel(
                f"reward {one['reward_goal_states']:.2f}", fontsize=7, loc="right"
            )
        axes[0, 0].set_title("highest reward", loc="left")
        axes[0, SHOWN].set_title("states that meet the task", loc="left")
        figures.save(made, path)


def main() -> None:
    """Search as the command line says; bad input ends in one sentence."""
    cli.run_verb("peak", HELP, lambda arguments: look_for(parse(arguments)))


if __name__ == "__main__":
    main()
