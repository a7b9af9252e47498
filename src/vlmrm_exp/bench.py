"""How fast is training, and how fast could it be? python -m vlmrm_exp.bench task=...

Times the loop, each of its stages alone (simulate, render, embed, update), and a plain
sequential loop to compare with.
"""

import copy
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from vlmrm_exp import __main__ as training
from vlmrm_exp import app
from vlmrm_exp.checks import at_least
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.files import table, write_json
from vlmrm_exp.studies.settings import check_out

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


def check(composed: Composed) -> tuple[BenchConfig, Config | None, Path]:
    """What is timed, the reference where Gymnasium has one, and the results' folder."""
    folder = check_out(composed)
    composed = replace(composed, folder=None)
    config: Any = training.check(composed)
    at_least("turns", config.turns, 1)
    if not (math.isfinite(config.turn_s) and config.turn_s > 0):
        raise ConfigError(f"turn_s is {config.turn_s}: give seconds above 0.")
    if config.reward.model != "clip" or config.task.env not in (*IDS, "gym"):
        return config, None, folder
    reference = copy.deepcopy(config)
    if config.reference_clip:
        other = composed.again(f"clip={config.reference_clip}", without=("clip.",))
        reference = training.check(other)
        if reference.clip.model != "embedded":
            reference.clip.pretrained = "random"
    reference.clip.precision = "fp32"
    if config.task.env in IDS:
        reference.task.env_id = IDS[config.task.env]
    return config, reference, folder


def measure(config: BenchConfig, other: Config | None, folder: Path) -> dict[str, Any]:
    """Time, print, write into `folder` and return what bench.json holds."""
    from vlmrm_exp.timing import timed  # here, as --help is immediate

    found = timed(config, other, config.turns, config.turn_s)
    result = {"settings": asdict(config), **found}
    print(report(result))
    write_json(folder / "bench.json", result)
    print(f"\nsaved {folder / 'bench.json'}")
    return result


def report(result: dict[str, Any]) -> str:
    """Tables for people."""
    about, rows = result["versions"], result["stages"]
    total = sum(row["cpu_s_per_env_step"] for row in rows)
    lines = [
        [
            row["stage"],
            f"{told(row['items_per_s'])} {row['item']}s/s",
            f"{row['items_per_env_step']:.3g}",
            f"{1e3 * row['cpu_s_per_env_step']:.3g} ms",
            f"{row['cpu_s_per_env_step'] / total:.0%}",
            f"{row['bytes_per_env_step'] / 1e3:.3g} kB",
            f"{row['of_ceiling']['median']:.0%}" if row["of_ceiling"] else "-",
        ]
        for row in rows
    ]
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
    app.start(lambda composed: measure(*check(composed)), "bench", check)
