"""Draw rewards over a world: python -m vlmrm_exp.landscape task=... clip=...

The reward against the pole's angle (CartPole) and the car's position (MountainCar), for
each alpha, in each look, as in the paper's Figure 2. Nothing is trained.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmrm_exp import cli, figures
from vlmrm_exp.config import TEXTURES, ClipConfig, Config, ConfigError
from vlmrm_exp.study.folder import result_folder
from vlmrm_exp.study.settings import (
    MODELS_HELP,
    TEXT,
    ModelsConfig,
    check_alphas,
    check_list,
    embedders,
    resolve_models,
    table,
    with_settings_files,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = TEXTURES["mountain_car"]
PICTURES = 5  # under each panel
PICTURE_HEIGHT = 120  # px

HELP = f"""\
Draws the reward over the states of cartpole and mountaincar, for each alpha.

  python -m vlmrm_exp.landscape task=[cartpole,mountaincar] clip=nano,tiny,small,base
  python -m vlmrm_exp.landscape task=mountaincar clip=bigG alpha=[0,0.5,1]
  python -m vlmrm_exp.landscape sweeps/landscape_embedded.yaml

Settings:
  task=[cartpole,mountaincar]
  alpha=[0,0.25,0.5,0.75,1]
  textures=[plain,realistic]   of the mountain; cartpole has one look
  states=181        points of each line
{MODELS_HELP}
Each line is rescaled to 0..1 over its panel, as in the paper's Figure 2. Prints where
each has its maximum; writes landscape.json, landscape.png and landscape.svg.
"""


@dataclass
class LandscapeConfig(ModelsConfig):
    """What to draw; see HELP."""

    task: list[str] = field(default_factory=lambda: ["cartpole", "mountaincar"])
    alpha: list[float] = field(default_factory=lambda: [0, 0.25, 0.5, 0.75, 1])
    textures: list[str] = field(default_factory=lambda: list(LOOKS))
    states: int = 181


@dataclass(frozen=True)
class Panel:
    """One range of one world in one look."""

    config: Config
    title: str
    x_label: str
    x: np.ndarray
    """(B,): what varies."""
    rows: np.ndarray
    """(B, S) state rows."""
    goal: tuple[float, float]
    """The range of x that is the task's goal."""
    truth: np.ndarray
    """(B,): what a good reward orders states by."""


def parse(arguments: Sequence[str]) -> LandscapeConfig:
    """Turn key=value arguments and settings files into checked values.

    Raises:
        ConfigError: one sentence says what is wrong.
    """
    asked = cli.parse(LandscapeConfig, with_settings_files(arguments), text=TEXT)
    check_alphas(asked.alpha)
    for name, options in (("task", ("cartpole", "mountaincar")), ("textures", LOOKS)):
        check_list(name, getattr(asked, name))
        for value in getattr(asked, name):
            if value not in options:
                raise ConfigError(
                    f"{name} is {value!r}, but a landscape needs one of "
                    f"{', '.join(options)}."
                )
    if asked.states < PICTURES:
        raise ConfigError(f"states is {asked.states}: give at least {PICTURES}.")
    return asked


def panels(asked: LandscapeConfig) -> list[Panel]:
    """What is drawn for each model: two ranges of cartpole, each look of the other."""
    made = []
    if "cartpole" in asked.task:
        from vlmrm_exp.envs.cartpole import MAX_ANGLE

        config = cli.composed("task=cartpole")
        for title, reach in (("near upright", 0.25), ("all the way round", np.pi)):
            x = np.linspace(-reach, reach, asked.states)
            rows = np.zeros((asked.states, 4))
            rows[:, 2] = x
            label = "pole angle (rad), cart in the middle"
            goal = (-MAX_ANGLE, MAX_ANGLE)
            made.append(
                Panel(config, f"cartpole, {title}", label, x, rows, goal, -np.abs(x))
            )
    if "mountaincar" in asked.task:
        from vlmrm_exp.envs.mountain_car import GOAL, LEFT, RIGHT

        for look in asked.textures:
            config = cli.composed("task=mountaincar", f"task.textures={look}")
            x = np.linspace(LEFT, RIGHT, asked.states)
            rows = np.zeros((asked.states, 2))
            rows[:, 0] = x
            title = f"mountaincar, {look}"
            goal = (GOAL, RIGHT)
            made.append(Panel(config, title, "car position", x, rows, goal, x))
    return made


def survey(asked: LandscapeConfig) -> dict[str, Any]:
    """Measure, print, draw, write and return what landscape.json holds.

    Raises:
        ConfigError: a model cannot be had, or its reward is the same everywhere.
    """
    models = resolve_models(asked)
    shown = panels(asked)
    with result_folder(asked, "landscape") as folder:
        return _survey(asked, models, shown, folder)


def _survey(
    asked: LandscapeConfig,
    models: Sequence[ClipConfig],
    shown: Sequence[Panel],
    folder: Path,
) -> dict[str, Any]:
    """As `survey`, of what is known to be possible."""
    # Imported here so that --help and refusals are immediate.
    from vlmrm_exp.log import versions, write_json
    from vlmrm_exp.study.metrics import check_reward, pearson
    from vlmrm_exp.study.state_sets import StateSet

    said = [s for p in shown for s in (*p.config.prompts, *p.config.baselines)]
    lines, facts, drawn_by = [], {}, set()
    for embedder in embedders(models, asked, said):
        name = str(embedder.facts["name"])
        facts[name] = embedder.facts
        for panel in shown:
            config = panel.config
            states = StateSet(
                config.task.env, np.full(len(panel.x), "line"), panel.rows
            )
            embeddings = embedder.embed(states, config.task)
            for alpha in asked.alpha:
                reward = embedder.reward(
                    embeddings, config.prompts, config.baselines, alpha
                )
                check_reward(reward)
                lines.append(
                    {
                        "clip": name,
                        "task": config.task.name,
                        "panel": panel.title,
                        "textures": config.task.textures,
                        "alpha": alpha,
                        "maximum_at": float(panel.x[reward.argmax()]),
                        "pearson_graded": float(pearson(reward, panel.truth)),
                        "x": panel.x.tolist(),
                        "reward": reward.tolist(),
                    }
                )
        drawn_by |= embedder.drawn_by
        del embedder
    result = {
        "settings": asdict(asked),
        "prompts": {
            p.config.task.name: [p.config.prompts, p.config.baselines] for p in shown
        },
        "models": facts,
        "rows": lines,
        "versions": versions({"drawn_by": "; ".join(sorted(drawn_by))}),
    }
    print(report(lines))
    write_json(folder / "landscape.json", result)
    draw(lines, shown, folder / "landscape")
    print(f"\nsaved {folder}/landscape.json, landscape.png, landscape.svg")
    return result


def report(lines: Sequence[dict[str, Any]]) -> str:
    """A table for people: where each line has its maximum, and how well it orders."""
    head = ["panel", "model", "alpha", "maximum at", "Pearson with the truth"]
    return (
        "The truth is minus the pole's angle from upright, and the car's position.\n\n"
        + table(
            head,
            [
                [
                    line["panel"],
                    line["clip"],
                    f"{line['alpha']:g}",
                    f"{line['maximum_at']:+.2f}",
                    f"{line['pearson_graded']:.2f}",
                ]
                for line in lines
            ],
        )
    )


def rescaled(reward: np.ndarray) -> np.ndarray:
    """Bring the smallest reward to 0 and the largest to 1."""
    return (reward - reward.min()) / np.ptp(reward)


def draw(lines: Sequence[dict[str, Any]], shown: Sequence[Panel], path: Path) -> None:
    """Draw two panels in a row, all of one model under each other."""
    names = list(dict.fromkeys(line["clip"] for line in lines))
    colors = figures.ladder([line["alpha"] for line in lines])
    strips = [_strip(panel) for panel in shown]
    per_model = -(-len(shown) // 2)
    with figures.figure(8, 0.3 + 3.1 * per_model * len(names)) as made:
        blocks = made.subfigures(len(names), 1, squeeze=False)[:, 0]
        for name, block in zip(names, blocks, strict=True):
            block.suptitle(f"clip={name}", x=0.01, ha="left", weight="bold")
            axes = block.subplots(
                2 * per_model,
                min(2, len(shown)),
                squeeze=False,
                height_ratios=[1, 0.19] * per_model,
            )
            above, below = axes[::2].ravel(), axes[1::2].ravel()
            for ax in (*above[len(shown) :], *below[len(shown) :]):
                ax.set_axis_off()
            for i, panel in enumerate(shown):
                mine = [
                    line
                    for line in lines
                    if line["clip"] == name and line["panel"] == panel.title
                ]
                _draw_lines(above[i], panel, mine, colors)
                _draw_strip(below[i], panel, strips[i])
            above[0].legend(title="alpha", fontsize=8, loc="lower center")
        figures.save(made, path)


def _draw_lines(
    ax: "Axes",
    panel: Panel,
    lines: Sequence[dict[str, Any]],
    colors: dict[float, Any],
) -> None:
    low, high = np.clip(panel.goal, panel.x[0], panel.x[-1])
    ax.axvspan(low, high, color="#e4efe4", lw=0, zorder=0)
    ax.text((low + high) / 2, 1.06, "goal", ha="center", fontsize=8, color="#4a7a4a")
    for line in lines:
        reward = rescaled(np.array(line["reward"]))
        alpha = line["alpha"]
        ax.plot(panel.x, reward, color=colors[alpha], label=f"{alpha:g}")
    ax.set_title(panel.title, loc="left")
    ax.set_xlim(panel.x[0], panel.x[-1])
    ax.set_ylim(-0.03, 1.15)
    ax.set_yticks([0, 0.5, 1])
    ax.set_ylabel("reward, rescaled")
    ax.tick_params(labelbottom=False)


def _strip(panel: Panel) -> np.ndarray:
    """Pictures of states across a panel, side by side: (H, W, 3) uint8."""
    from vlmrm_exp.envs import make_renderer

    middles = (np.arange(PICTURES) + 0.5) / PICTURES * (len(panel.rows) - 1)
    renderer = make_renderer(panel.config.task, PICTURE_HEIGHT, effects=False)
    try:
        pictures = renderer.render(panel.rows[np.round(middles).astype(int)])
    finally:
        renderer.close()
    if panel.config.task.env == "cartpole":
        # The pole is short: what it never reaches is cut off, above and beside.
        height, width = pictures.shape[1:3]
        pictures = pictures[:, height // 3 :, width // 6 : -width // 6]
    gap = ((0, 0), (0, 0), (2, 2), (0, 0))
    return np.hstack(list(np.pad(pictures, gap, constant_values=190)))


def _draw_strip(ax: "Axes", panel: Panel, strip: np.ndarray) -> None:
    """Lay the pictures under the panel, each with its middle at the state it shows."""
    ax.imshow(strip, extent=(panel.x[0], panel.x[-1], 0, 1), aspect="auto")
    ax.grid(False)
    ax.set_yticks([])
    ax.set_xlabel(panel.x_label)


def main() -> None:
    """Draw as the command line says; bad input ends in one sentence."""
    cli.run_verb("landscape", HELP, lambda arguments: survey(parse(arguments)))


if __name__ == "__main__":
    main()
