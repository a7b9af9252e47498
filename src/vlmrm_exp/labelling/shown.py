"""What raters are shown: pictures of states or of a folder, or videos of episodes.

All of it is made before the first rater comes, under names that tell nothing, and
items.json says what each is. So a session goes on without rendering anything again.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmrm_exp.config import Config, ConfigError, FolderTakenError, TaskConfig
from vlmrm_exp.envs import frames_of, world_of
from vlmrm_exp.envs.in_order import make_envs
from vlmrm_exp.files import sha256, write_json, written_whole
from vlmrm_exp.log.progress import progress_bar
from vlmrm_exp.studies.pictures import read_one
from vlmrm_exp.studies.state_sets import StateSet
from vlmrm_exp.video import write_episodes

LARGEST = 1280
"""Pixels of a picture's longer side; a screen shows hardly more."""
CONTENT = "SHA-256 of "
"""Begins the settings that say what was in a file or folder."""


@dataclass(frozen=True)
class Item:
    """One picture or video."""

    name: str
    """Of a picture its file, of a state its row, of an episode its number."""
    file: str
    """In the folder `shown`."""
    run: str = ""
    """Of an episode: the folder of its run."""
    goal: bool | None = None
    """What the task's predicate says, of an episode whether it is a success; None:
    there is no predicate."""
    share: float | None = None
    """Of an episode: share of its steps in the goal, by the predicate."""
    policy: str = ""
    """Of an episode: SHA-256 of the file of the policy that played it."""

    @property
    def key(self) -> str:
        """What raters' files call it."""
        return f"{self.run}#{self.name}" if self.run else self.name


@dataclass(frozen=True)
class Played:
    """A run whose episodes are judged."""

    folder: str
    """As it was typed."""
    config: Config
    checkpoint: Path
    """The file of its policy."""
    seed: int
    """Of the start states."""


class Session:
    """The folder in which items are, and what they were asked with."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """Look whether the folder has been begun; it need not be there.

        `about` are the settings that decide what is judged and how. A FolderTakenError
        if it was begun with others, a ConfigError if its items.json is damaged or a
        file that it names is missing.
        """
        self.folder, self._shown = folder, folder / "shown"
        self.about = json.loads(json.dumps(about))
        self.items: list[Item] | None = None
        """None: they are to be made."""
        path = folder / "items.json"
        if not path.is_file():
            return
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            before = {**held["about"]}
            self.items = [Item(**item) for item in held["items"]]
            files = [self._shown / item.file for item in self.items]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} cannot be read ({error}): choose another out=..., or bring "
                "the file back."
            ) from error
        for key, now in self.about.items():
            then = before.get(key, now)  # an older version said less
            told = f"{key}={then}, not {now}"
            if key.startswith(CONTENT):
                told = f"another content of {key.removeprefix(CONTENT)} than it has now"
            if then != now:
                raise FolderTakenError(
                    f"{folder} holds labels that were begun with {told}: give the "
                    "same, or another out=...."
                )
        for file in files:
            if not file.is_file():
                raise ConfigError(
                    f"{file}, which raters are shown, is missing: bring it back, or "
                    "give another out=...."
                )

    def make_pictures(self, config: Config, states: StateSet) -> list[Item]:
        """Render states, or convert files; a ConfigError if one is not one picture."""
        predicate, goals = world_of(config.task).predicate(config.task), None
        if states.states is not None and predicate is not None:
            goals = np.asarray(predicate(states.states), bool).tolist()
        items = []
        with progress_bar(len(states), "picture", "pictures") as bar:
            for i, frame in enumerate(_pixels(config.task, states)):
                name = states.files[i].name if states.files else str(i)
                picture, made = Image.fromarray(frame), self._shown / "made.png"
                picture.thumbnail((LARGEST, LARGEST))
                with written_whole(made) as part:
                    picture.save(part)
                goal = goals[i] if goals else None
                items.append(Item(name, _renamed(made), goal=goal))
                bar.update()
        return self._keep(items)

    def make_videos(self, runs: Sequence[Played], episodes: int) -> list[Item]:
        """Play so many episodes of each run, and render them without words or reward.

        A ConfigError if what a run needs cannot be had.
        """
        from vlmrm_exp.rl.evaluation import VIDEO_FPS  # here, as --help is immediate

        items = []
        with progress_bar(len(runs) * episodes, "video", "videos") as bar:
            for run in runs:
                config, policy = run.config, sha256(run.checkpoint)
                renderer = world_of(config.task).make_renderer(
                    config.task, config.task.frame_height, config.clip.render_effects
                )
                with contextlib.closing(renderer):
                    for number, (states, goal) in enumerate(episodes_of(run, episodes)):
                        made = self._shown / "made.mp4"
                        shown = [(frames_of(renderer, states), None)]
                        write_episodes(made, shown, VIDEO_FPS, "")
                        name, file = str(number), _renamed(made)
                        items.append(
                            Item(name, file, run.folder, policy=policy, **goal)
                        )
                        bar.update()
        return self._keep(items)

    def _keep(self, items: list[Item]) -> list[Item]:
        held = {"about": self.about, "items": [asdict(item) for item in items]}
        write_json(self.folder / "items.json", held)
        return items


def _renamed(made: Path) -> str:
    """Name a file by its content: browsers keep it for a year. Return the name."""
    return made.replace(made.with_stem(sha256(made)[:16])).name


def _pixels(task: TaskConfig, states: StateSet) -> Iterator[np.ndarray]:
    """The picture of each state: (H, W, 3) uint8."""
    if states.states is None:
        yield from map(read_one, states.files)
        return
    # As the task looks, with shadows: they show what touches the floor.
    renderer = world_of(task).make_renderer(task, task.frame_height, True)
    with contextlib.closing(renderer):
        for state in states.states:
            yield frames_of(renderer, state[None])[0]


def episodes_of(run: Played, count: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Episodes as `evaluate` plays them from the same seed.

    Each has states (T, S), and `Item`'s goal and share if they are known.
    """
    from vlmrm_exp.rl.evaluation import first  # here, as --help is immediate
    from vlmrm_exp.rl.policy import load_policy
    from vlmrm_exp.rl.rollout import collect

    config, policy = run.config, load_policy(run.checkpoint)
    # As many at once as there, though fewer may be shown: a network's output for one
    # observation depends, in its last bits, on how many it is given together.
    envs = make_envs(
        config.task, config.algo.num_envs, config.compute.num_physics_threads
    )
    with contextlib.closing(envs):
        policy.check_fits(envs, run.folder, config.task.name)
        seed: int | None = run.seed
        while count > 0:
            rollout = first(collect(envs, policy.act, seed), count)
            seed = None
            assert rollout.states is not None
            known: dict[str, np.ndarray] = {}
            if (goal := rollout.goal) is not None:
                known = {"goal": envs.episode_success(goal), "share": goal.mean(axis=0)}
            for n in range(rollout.shape[1]):
                yield rollout.states[:, n], {k: v[n].item() for k, v in known.items()}
            count -= rollout.shape[1]
