"""What a run tells as it begins: which settings and judges change nothing.

They are told and not refused, since one sweep may compare rewards or models.
"""

import fnmatch
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, conf_dir
from vlmrm_exp.reward import reward_class
from vlmrm_exp.reward.ensemble import member_configs
from vlmrm_exp.told import keys_of
from vlmrm_exp.vlm import tell_embedded


def tell(composed: Composed, config: Config, judges: Mapping[str, Config]) -> None:
    """Print it: of a run as it was `composed`, its checked `config` and its judges."""
    typed = {key: value for key, _, value in (k.partition("=") for k in composed.keys)}
    for note in notes(judges, config, typed):
        print(note)
    preset = f"{typed.get('experiment')}_{typed.get('task', 'mountaincar')}.yaml"
    if preset.startswith("paper") and not (conf_dir() / "preset" / preset).exists():
        print(f"The paper has no settings of its own for task={typed['task']}.")
    if config.stages and config.reward.model == "clip":
        print("reward=clip reads one prompt; reward=stages goes through the stages.")
    if config.task.env == "gym" or ":" in config.task.env:  # a world of one's own
        opinions = config, *member_configs(config).values(), *judges.values()
        asked = [one for one in opinions if reward_class(one).sees_pictures]
        tell_embedded({one.clip.name: one.clip for one in asked}.values())


def notes(
    judges: Mapping[str, Config], config: Config, typed: Collection[str]
) -> list[str]:
    """What changes nothing in a run, and which judges say what the reward says.

    `judges` are configurations by name, `typed` what somebody typed for the run.
    """
    members = member_configs(config)
    told = {name: keys_of(config.judge[name]) for name in judges}
    others = [(told[name], judge) for name, judge in judges.items()]
    others += [(config.member[name], member) for name, member in members.items()]
    read = {
        key
        for key in typed
        for own, other in others
        if key not in own and not unread(other, [key])
    }
    found = unread(config, [key for key in typed if key not in read])
    for name, judge in judges.items():
        found += [f"judge.{name}: {note}" for note in unread(judge, told[name])]
        if _said(judge) == _said(config):
            found.append(
                f"judge.{name} says the same as the reward: nothing that it is told "
                "changes it, or the run's own settings win."
            )
    for (one, own), (other, same) in itertools.combinations(members.items(), 2):
        if _said(own) == _said(same):
            found.append(
                f"member.{other} says the same as member.{one}, which so counts twice: "
                "nothing tells them apart, or the run's own settings win."
            )
    return found


def _said(config: Config) -> tuple[Any, ...]:
    """Settings that a reward depends on."""
    reward = config.reward
    by_all = reward.model, reward.options, config.member, config.task
    if not reward_class(config).sees_pictures:
        return by_all
    # An embedded model is found by its name; others may be called anything.
    clip = config.clip
    if clip.model != "embedded":
        clip = replace(clip, name="")
    by_pictures = clip, config.prompts, config.baselines, config.renormalise
    return *by_all, *by_pictures, config.alpha


def unread(config: Config, typed: Iterable[str]) -> list[str]:
    """Which of the settings that somebody typed change nothing here, and why."""
    return [
        f"{key} changes nothing here: {why}."
        for patterns, why in _rules(config)
        for key in dict.fromkeys(one.lstrip("+") for one in typed)
        if any(fnmatch.fnmatch(key, pattern) for pattern in patterns.split())
    ]


def _rules(config: Config) -> Iterator[tuple[str, str]]:
    """What this run does not read, as `clip.*` or several such, and why."""
    task, reward, algo, clip = config.task, config.reward, config.algo, config.clip
    model, named = reward_class(config), f"reward={config.reward.name}"
    if not model.sees_pictures:
        yield "baseline alpha renormalise clip clip.*", f"{named} has none of it"
    if model.cheap:
        learned = "reward.query_share reward.max_error reward.pessimism"
        yield f"reward.every {learned}", f"{named} has none of it"
        yield "compute.overlap", f"{named} is there at once"
    if model.window > 1:
        yield "reward.every", f"{named} looks at every state"
    if reward.query_share < 1:
        yield "reward.every", f"reward.query_share={reward.query_share} decides"
    if reward.query_share == 1:
        yield "reward.max_error", "no reward is estimated"
    if ":" not in reward.model and not model.has_options:
        yield "reward.options.*", f"{named} has no options"
    if reward.model != "ensemble":
        yield "member.*", f"{named} has no members"
    if model.online:
        yield "prompt", "the stages are read"
    else:
        yield "stages", f"{named} reads the prompt"
    if not task.before:
        yield "task.hold", "task.before is empty"
    if ":" not in task.env:
        yield "task.options.*", f"task={task.name} has no options"
    if task.env == "gym":
        yield "clip.frame_height", "Gymnasium's frames have task.frame_height"
    elif clip.frame_height is not None:
        decides = f"clip.frame_height={clip.frame_height} decides, but for videos"
        yield "task.frame_height", decides
    formula = reward.model in ("clip", "stages", "xclip", "ensemble")
    formula = formula or (reward.model, reward.options.get("of")) == ("video", "mean")
    if config.alpha == 0 and formula:
        yield "baseline", "alpha is 0"
    prompts = [stage.prompts for stage in config.stages] if model.online else []
    sentences = config.prompts, config.baselines, *prompts
    if all(len(several) == 1 for several in sentences):
        yield "renormalise", "there is but one prompt"
    if task.env != "humanoid":
        yield "clip.render_effects", "only humanoids have them"
    if clip.model == "embedded":
        yield "render", f"clip={clip.name} sees pictures as in its training"
    if not algo.learn_temperature:
        yield "algo.target_entropy", "algo.learn_temperature is false"
    if algo.random_steps == 0:
        yield "algo.random_action_repeat", "algo.random_steps is 0"
    if config.log.mode in ("tensorboard", "none"):
        of_wandb = "log.project log.entity log.group log.tags log.notes"
        yield of_wandb, f"log.mode is {config.log.mode}"
    if config.compute.workers == 0:
        yield "compute.pool", "compute.workers is 0"
