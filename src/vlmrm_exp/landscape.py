"""Rewards along a world's states: python -m vlmrm_exp.landscape task=... clip=...

The reward against the pole's angle (CartPole) and the car's position (MountainCar), for
each alpha and appearance, as in the paper's Figure 2. Nothing is trained.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.config_store import ConfigStore

from vlmrm_exp import app, figures
from vlmrm_exp.checks import at_least, one_of
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.envs import mountain_car, world_of
from vlmrm_exp.envs.toy_renderers import LEFT, RIGHT
from vlmrm_exp.files import table
from vlmrm_exp.measures import check_reward, pearson
from vlmrm_exp.studies import settings
from vlmrm_exp.studies.settings import Study, StudyConfig, check_list, resolve
from vlmrm_exp.studies.state_sets import StateSet

if TYPE_CHECKING:
    from vlmrm_exp.studies.rewards import Rewarder

PLURAL = settings.PLURAL | {"task.textures": "textures"}
PICTURES = 5  # under each panel
PICTURE_HEIGHT = 120  # px
ANGLE = "pole angle (rad), cart in the middle"
RANGES = {
    "cartpole": [
        (", near upright", ANGLE, 2, -0.25, 0.25),
        (", all the way round", ANGLE, 2, -np.pi, np.pi),
    ],
    "mountain_car": [("", "car position", 0, LEFT, RIGHT)],
}
"""Of each world: title, label, which number of a state varies, from where to where."""


@dataclass
class LandscapeConfig(StudyConfig):
    """See conf/landscape.yaml."""

    textures: list[str] = field(default_factory=list)
    states: int = 181


ConfigStore.instance().store(name="landscape_schema", node=LandscapeConfig)


@dataclass(frozen=True)
class Panel:
    """One range of one world in one appearance."""

    config: Config
    title: str
    x_label: str
    column: int
    """The number of a state that varies; the others are 0."""
    x: np.ndarray
    """(B,): its values."""

    def states(self, x: np.ndarray) -> np.ndarray:
        """States (B, S) with these values."""
        states = np.zeros((len(x), world_of(self.config.task).state_size or 0))
        states[:, self.column] = x
        return states

    def goal(self) -> tuple[float, float]:
        """The part of the range that is the task's goal."""
        predicate = world_of(self.config.task).predicate(self.config.task)
        assert predicate is not None
        fine = np.linspace(self.x[0], self.x[-1], 2001)
        inside = fine[predicate(self.states(fine))]
        return float(inside.min()), float(inside.max())


def check(composed: Composed) -> Study:
    """What is to be measured, or a ConfigError."""
    study = resolve(composed)
    for task in study.tasks:
        if task.task.env not in RANGES:
            raise ConfigError(
                f"task={task.task.name} has no landscape: give task=cartpole or "
                "task=mountaincar, or search its poses with vlmrm_exp.peak."
            )
    check_list("textures", study.asked.textures)
    for textures in study.asked.textures:
        one_of("task.textures", textures, mountain_car.WORLD.textures)
    at_least("states", study.asked.states, PICTURES)
    return study


def panels(study: Study) -> list[Panel]:
    """What is plotted for each model: each range of each task in each appearance."""
    made = []
    for config in study.tasks:
        known = world_of(config.task).textures
        shown = study.asked.textures if len(known) > 1 else known
        for textures in shown:
            task = replace(config.task, textures=textures)
            title = f"{task.name}, {textures}" if len(known) > 1 else task.name
            for of_range, x_label, column, low, high in RANGES[task.env]:
                x = np.linspace(low, high, study.asked.states)
                seen = replace(config, task=task)
                made.append(Panel(seen, title + of_range, x_label, column, x))
    return made


def measure(study: Study) -> dict[str, Any]:
    """Measure, print, plot, write and return what landscape.json holds.

    A ConfigError if a model cannot be had, or its reward is the same everywhere.
    """
    from vlmrm_exp.studies.rewards import of_each_model, rewarders  # it imports torch

    shown = panels(study)

    def lines_of(rewarder: "Rewarder") -> list[dict[str, Any]]:
        return [x for panel in shown for x in _of_model(study, rewarder, panel)]

    result = {
        "settings": study.settings(),
        "prompts": {t.task.name: [t.prompts, t.baselines] for t in study.tasks},
        **of_each_model(rewarders(study, study.tasks), lines_of),
    }
    lines = result["rows"]
    study.save(
        "landscape", result, report(lines), lambda path: plot(lines, shown, path)
    )
    return result


def _of_model(study: Study, rewarder: "Rewarder", panel: Panel) -> list[dict[str, Any]]:
    """The rewards of one model along one panel, for each alpha."""
    task, states = panel.config.task, panel.states(panel.x)
    graded = world_of(task).graded_of(task)
    state_set = StateSet(task.env, np.full(len(states), "line"), states)
    jobs = study.jobs(panel.config, rewarder.model)
    lines = []
    for job, reward in zip(jobs, rewarder.rewards(state_set, jobs), strict=True):
        check_reward(reward)
        lines.append(
            {
                "clip": rewarder.name,
                "task": task.name,
                "panel": panel.title,
                "textures": task.textures,
                "alpha": job.alpha,
                "maximum_at": float(panel.x[reward.argmax()]),
                "pearson_graded": None
                if graded is None
                else float(pearson(reward, graded(states))),
                "x": panel.x.tolist(),
                "reward": reward.tolist(),
            }
        )
    return lines


def report(lines: Sequence[dict[str, Any]]) -> str:
    """A table for people: where each line has its maximum, and how well it orders."""
    columns = {
        "panel": "{panel}",
        "model": "{clip}",
        "alpha": "{alpha:g}",
        "maximum at": "{maximum_at:+.2f}",
        "Pearson with the truth": "{ordered}",
    }
    cells = []
    for line in lines:
        found = line["pearson_graded"]
        ordered = "" if found is None else f"{found:.2f}"
        cells.append([c.format(**line, ordered=ordered) for c in columns.values()])
    about = "The truth is minus the pole's angle from upright, and the car's position."
    return f"{about}\n\n{table(list(columns), cells)}"


def plot(lines: Sequence[dict[str, Any]], shown: Sequence[Panel], path: Path) -> None:
    """Plot two panels in a row, all of one model under each other."""
    names = list(dict.fromkeys(line["clip"] for line in lines))
    colors = figures.ladder([line["alpha"] for line in lines])
    strips = [_strip(panel) for panel in shown]
    per_model = -(-len(shown) // 2)
    with figures.figure(8, 0.3 + 3.1 * per_model * len(names)) as made:
        blocks = made.subfigures(len(names), 1, squeeze=False)[:, 0]
        for name, block in zip(names, blocks, strict=True):
            block.suptitle(f"clip={name}", x=0.01, ha="left", weight="bold")
            shape, ratios = (2 * per_model, min(2, len(shown))), [1, 0.19] * per_model
            axes = block.subplots(*shape, squeeze=False, height_ratios=ratios)
            above, below = axes[::2].ravel(), axes[1::2].ravel()
            for ax in (*above[len(shown) :], *below[len(shown) :]):
                ax.set_axis_off()
            for i, panel in enumerate(shown):
                of_panel = (name, panel.title)
                mine = [x for x in lines if (x["clip"], x["panel"]) == of_panel]
                _plot_lines(above[i], panel, mine, colors)
                # Each picture's middle is at the state that it shows.
                extent = (panel.x[0], panel.x[-1], 0, 1)
                below[i].imshow(strips[i], extent=extent, aspect="auto")
                below[i].grid(False)
                below[i].set(yticks=[], xlabel=panel.x_label)
            above[0].legend(title="alpha", fontsize=8, loc="lower center")
        figures.save(made, path)


def rescaled(reward: np.ndarray) -> np.ndarray:
    """Bring the smallest reward to 0 and the largest to 1."""
    return (reward - reward.min()) / np.ptp(reward)


def _plot_lines(
    ax: Any, panel: Panel, lines: Sequence[dict[str, Any]], colors: dict[float, Any]
) -> None:
    low, high = panel.goal()
    ax.axvspan(low, high, color="#e4efe4", lw=0, zorder=0)
    ax.text((low + high) / 2, 1.06, "goal", ha="center", fontsize=8, color="#4a7a4a")
    for line in lines:
        reward, alpha = rescaled(np.array(line["reward"])), line["alpha"]
        ax.plot(panel.x, reward, color=colors[alpha], label=f"{alpha:g}")
    ax.set_title(panel.title, loc="left")
    ax.set(xlim=(panel.x[0], panel.x[-1]), ylim=(-0.03, 1.15), yticks=[0, 0.5, 1])
    ax.set_ylabel("reward, rescaled")
    ax.tick_params(labelbottom=False)


def _strip(panel: Panel) -> np.ndarray:
    """Pictures of states across a panel, side by side: (H, W, 3) uint8."""
    task = panel.config.task
    middles = (np.arange(PICTURES) + 0.5) / PICTURES * (len(panel.x) - 1)
    states = panel.states(panel.x[np.round(middles).astype(int)])
    renderer = world_of(task).make_renderer(task, PICTURE_HEIGHT, False)
    with contextlib.closing(renderer):
        pictures = renderer.render(states)
    if task.env == "cartpole":
        # The pole is short: what it never reaches is cut off, above and beside.
        height, width = pictures.shape[1:3]
        pictures = pictures[:, height // 3 :, width // 6 : -width // 6]
    gap = ((0, 0), (0, 0), (2, 2), (0, 0))
    return np.hstack(list(np.pad(pictures, gap, constant_values=190)))


if __name__ == "__main__":
    app.start(lambda composed: measure(check(composed)), "landscape", check, PLURAL)
