"""How much does the wording matter? python -m vlmrm_exp.prompts task=... clip=...

Measures the reward of each task's prompt, of paraphrases and of misleading sentences
(study/sentences), for each model. Nothing is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from vlmrm_exp import cli, figures
from vlmrm_exp.config import ClipConfig, Config, ConfigError, check
from vlmrm_exp.study.folder import result_folder
from vlmrm_exp.study.settings import (
    MODELS_HELP,
    STATES_HELP,
    TEXT,
    Examined,
    StatesConfig,
    check_alphas,
    check_states,
    embedders,
    examine,
    parameters,
    resolve_models,
    resolve_tasks,
    save_state_sets,
    table,
    tell_embedded,
    with_settings_files,
)

SENTENCES = Path(__file__).parent / "study" / "sentences"

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROMPT, PARAPHRASE, MISLEADING = "prompt", "paraphrase", "misleading"

HELP = f"""\
Measures how sensitive a reward is to wording: the task's prompt, paraphrases of it, and
sentences that mean something else, from the package's study/sentences. A sentence of
your own is judged by epic: python -m vlmrm_exp.epic task=kneeling prompt="...".

  python -m vlmrm_exp.prompts task=[kneeling,lotus] clip=nano,tiny,small,base
  python -m vlmrm_exp.prompts task=mountaincar clip=bigG alpha=0.5
  python -m vlmrm_exp.prompts sweeps/prompts_embedded.yaml

Settings:
  task=kneeling     or several, as [kneeling,lotus]
  alpha=0
  baseline=null     null: the task's own
{MODELS_HELP}{STATES_HELP}
EPIC: 0 best, 0.71 unrelated. AUROC: 1 best, 0.5 chance; share of pairs of a goal and
another state that the reward ranks rightly. 95 % intervals resample states, as epic's:
sentences that differ by less may not differ. Prints tables; writes prompts.json,
prompts.png and prompts.svg.
"""


@dataclass
class PromptsConfig(StatesConfig):
    """What to measure; see HELP."""

    task: list[str] = field(default_factory=lambda: ["kneeling"])
    alpha: float = 0.0
    baseline: list[str] | None = None


def parse(arguments: Sequence[str]) -> PromptsConfig:
    """Turn key=value arguments and settings files into checked values.

    Raises:
        ConfigError: one sentence says what is wrong.
    """
    asked = cli.parse(
        PromptsConfig, with_settings_files(arguments), text=(*TEXT, "baseline")
    )
    check_alphas([asked.alpha])
    return asked


def sentences(task: str) -> dict[str, list[str]]:
    """Paraphrases and misleading sentences of a task, by kind.

    Raises:
        ConfigError: there are none in study/sentences, or the file is not such a one.
    """
    path = SENTENCES / f"{task}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"There are no sentences for task={task}: write {path} with the lists "
            "paraphrases and misleading."
        )
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
        listed = {PARAPHRASE: held["paraphrases"], MISLEADING: held["misleading"]}
        usable = all(
            texts and all(isinstance(text, str) for text in texts)
            for texts in listed.values()
        )
    except (KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError):
        usable = False
    if not usable:
        raise ConfigError(
            f"{path} must hold two lists of sentences, paraphrases and misleading."
        )
    return listed


def measure(asked: PromptsConfig) -> dict[str, Any]:
    """Measure, print, draw, write and return what prompts.json holds.

    Raises:
        ConfigError: a model, states, labels or sentences cannot be had.
    """
    models = resolve_models(asked)
    configs = resolve_tasks(asked.task, asked)
    if asked.baseline is not None:
        configs = [replace(config, baseline=asked.baseline) for config in configs]
    for config in configs:
        check(replace(config, alpha=asked.alpha))
    check_states(configs, asked)
    said = {
        config.task.name: {PROMPT: config.prompts} | sentences(config.task.name)
        for config in configs
    }
    with result_folder(asked, "prompts") as folder:
        return _measure(asked, models, configs, said, folder)


def _measure(
    asked: PromptsConfig,
    models: Sequence[ClipConfig],
    configs: Sequence[Config],
    said: Mapping[str, dict[str, list[str]]],
    folder: Path,
) -> dict[str, Any]:
    """As `measure`, of what is known to be possible; `said` by task and kind."""
    if asked.frames:
        tell_embedded(models)
    spoken = [s for kinds in said.values() for texts in kinds.values() for s in texts]
    spoken += [s for config in configs for s in config.baselines]
    loading = embedders(models, asked, spoken)
    examined = examine(configs, asked)

    # Imported here so that --help and refusals are immediate.
    from vlmrm_exp.log import versions, write_json

    rows, facts, drawn_by = [], {}, set()
    for embedder in loading:
        facts[embedder.facts["name"]] = embedder.facts
        for one in examined:
            rows += _of_model(embedder, one, said[one.config.task.name], asked)
        drawn_by |= embedder.drawn_by
        del embedder
    result = {
        "settings": asdict(asked),
        "tasks": {one.config.task.name: one.about() for one in examined},
        "models": facts,
        "rows": rows,
        "spread": [
            spread([r for r in rows if (r["task"], r["clip"]) == (task, clip)])
            for task in said
            for clip in facts
        ],
        "versions": versions({"drawn_by": "; ".join(sorted(drawn_by))}),
    }
    print(report(result))
    save_state_sets(folder, examined)
    write_json(folder / "prompts.json", result)
    draw(rows, folder / "prompts")
    print(f"\nsaved {folder}/prompts.json, prompts.png, prompts.svg")
    return result


def _of_model(
    embedder: Any, one: Examined, said: dict[str, list[str]], asked: PromptsConfig
) -> list[dict[str, Any]]:
    """The measures of each sentence; the task's own prompts count as one."""
    config = one.config
    embeddings = embedder.embed(one.states, config.task)
    spoken = [(PROMPT, said[PROMPT])]
    spoken += [(kind, [s]) for kind in (PARAPHRASE, MISLEADING) for s in said[kind]]
    rows = []
    for kind, prompts in spoken:
        reward = embedder.reward(embeddings, prompts, config.baselines, asked.alpha)
        about = {
            "task": config.task.name,
            "clip": embedder.facts["name"],
            "parameters": parameters(embedder.facts),
            "alpha": asked.alpha,
            "kind": kind,
            "sentence": " / ".join(prompts),
        }
        rows.append(about | one.agreement(reward, asked))
    return rows


def spread(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum up the sentences of one task and model.

    Returns:
        For epic and auroc: min, quartiles and max over paraphrases, the prompt's own
        value and rank among them and itself (1: best), and half a 95 % interval over
        states, where there are such: the median of the paraphrases'. And of all pairs
        of a paraphrase and a misleading sentence the share in which the paraphrase's
        AUROC is higher.
    """
    summed: dict[str, Any] = {key: rows[0][key] for key in ("task", "clip", "alpha")}
    of = {
        kind: [row for row in rows if row["kind"] == kind]
        for kind in (PROMPT, PARAPHRASE, MISLEADING)
    }
    summed["paraphrases"] = len(of[PARAPHRASE])
    summed["misleading"] = len(of[MISLEADING])
    for key, better in (("epic", -1), ("auroc", 1)):
        values = np.array([row[key] for row in of[PARAPHRASE]])
        names = ("min", "lower_quartile", "median", "upper_quartile", "max")
        quantiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
        summed |= {
            f"{key}_{n}": float(q) for n, q in zip(names, quantiles, strict=True)
        }
        own = of[PROMPT][0][key]
        summed[f"{key}_prompt"] = own
        if f"{key}_low" in rows[0]:
            halves = [(r[f"{key}_high"] - r[f"{key}_low"]) / 2 for r in of[PARAPHRASE]]
            summed[f"{key}_half_interval"] = float(np.median(halves))
        summed[f"{key}_prompt_rank"] = 1 + int((better * (values - own) > 0).sum())
    right = np.array([row["auroc"] for row in of[PARAPHRASE]])
    wrong = np.array([row["auroc"] for row in of[MISLEADING]])
    summed["pairs_ranked_rightly"] = float((right[:, None] > wrong).mean())
    return summed


def report(result: dict[str, Any]) -> str:
    """Tables for people: every sentence with each model, then the spread."""
    names = list(result["models"])
    parts = []
    for task, about in result["tasks"].items():
        rows = [row for row in result["rows"] if row["task"] == task]
        parts.append(
            f"{task}: {about['states']} states, {about['goal_states']} of them goals; "
            f"baseline {' / '.join(about['baseline'])}"
        )
        head = ["sentence", "kind", *(f"{n} EPIC AUROC" for n in names)]
        # A sentence's rows, one of each model; its kind is part of what it is.
        said: dict[tuple[str, str], dict[str, str]] = {}
        for row in rows:
            of_models = said.setdefault((row["sentence"], row["kind"]), {})
            of_models[row["clip"]] = f"{row['epic']:.3f} {row['auroc']:.3f}"
        lines = [
            [sentence, kind, *(of_models[name] for name in names)]
            for (sentence, kind), of_models in said.items()
        ]
        parts.append(table(head, lines))
    head = [
        "task, model",
        "prompt's rank",
        "EPIC min median max",
        "AUROC min median max",
        "misleading is worse",
    ]
    lines = [
        [
            f"{s['task']}, {s['clip']}",
            f"{s['epic_prompt_rank']} of {s['paraphrases'] + 1}",
            *(
                " ".join(f"{s[f'{key}_{n}']:.3f}" for n in ("min", "median", "max"))
                + (f" ± {s[half]:.3f}" if (half := f"{key}_half_interval") in s else "")
                for key in ("epic", "auroc")
            ),
            f"{s['pairs_ranked_rightly']:.0%} of pairs",
        ]
        for s in result["spread"]
    ]
    parts.append(
        "Over paraphrases. The prompt's rank is by EPIC, 1 the best; a pair is a "
        "paraphrase\nand a misleading sentence, compared by AUROC; ± is half a 95 % "
        "interval of one\nsentence over states, where these are a sample.\n"
        + table(head, lines)
    )
    return "\n\n".join(parts)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw every sentence as a mark: EPIC and AUROC, models beside each other."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    with figures.figure(8, 0.4 + 2.7 * len(tasks)) as made:
        axes = made.subplots(len(tasks), 2, squeeze=False)
        for (left, right), task in zip(axes, tasks, strict=True):
            mine = [row for row in rows if row["task"] == task]
            _draw_strips(left, mine, "epic")
            _draw_strips(right, mine, "auroc")
            left.set_title(task, loc="left")
            left.set_ylabel("EPIC (0 best; dotted: unrelated)")
            right.set_ylabel("AUROC (1 best; dotted: chance)")
        handles, names = axes[0, 0].get_legend_handles_labels()
        made.legend(handles, names, loc="outside upper center", ncols=3)
        figures.save(made, path)


def _draw_strips(ax: "Axes", rows: Sequence[dict[str, Any]], key: str) -> None:
    """A strip of each model's paraphrases and one of its misleading sentences."""
    clips = list(dict.fromkeys(row["clip"] for row in rows))
    for kind, (label, middle, marker, color, size) in _STRIPS.items():
        for i, clip in enumerate(clips):
            mine = [r for r in rows if r["clip"] == clip and r["kind"] == kind]
            values = [row[key] for row in mine]
            # Beside each other in the order of the file, so that marks stay apart.
            beside = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0]
            ax.scatter(
                i + middle + np.asarray(beside),
                values,
                size,
                marker=marker,
                color=color,
                alpha=0.85,
                linewidths=1.1,
                label=None if i else label,
            )
            if kind == PARAPHRASE:
                ends = [i + middle - 0.17, i + middle + 0.17]
                ax.plot(ends, [np.median(values)] * 2, color=color, lw=1.2)
            if kind == PROMPT and f"{key}_low" in mine[0]:
                ends = [mine[0][f"{key}_low"], mine[0][f"{key}_high"]]
                ax.plot([i + middle] * 2, ends, color=color, lw=1, zorder=1)
    ax.set_xticks(range(len(clips)), clips)
    ax.set_xlim(-0.6, len(clips) - 0.4)
    chance = {"epic": np.sqrt(0.5), "auroc": 0.5}[key]
    ax.axhline(chance, color="#888888", lw=0.8, ls=":", zorder=0)


# Label, place beside the model's tick, marker, colour and area of each kind.
_STRIPS = {
    PARAPHRASE: ("paraphrases (bar: median)", -0.15, "o", figures.COLORS[0], 20),
    MISLEADING: ("misleading sentences", 0.2, "x", figures.COLORS[1], 24),
    PROMPT: ("the task's prompt (line: 95 %)", -0.15, "*", figures.COLORS[6], 90),
}


def main() -> None:
    """Measure as the command line says; bad input ends in one sentence."""
    cli.run_verb("prompts", HELP, lambda arguments: measure(parse(arguments)))


if __name__ == "__main__":
    main()
