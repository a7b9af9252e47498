"""How much does the wording matter? python -m vlmrm_exp.prompts task=... clip=...

Measures the reward of each task's prompt, of paraphrases and of misleading sentences
(studies/sentences), for each model and alpha. Nothing is trained.
"""

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hydra.core.config_store import ConfigStore

from vlmrm_exp import app, figures
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import Config, ConfigError
from vlmrm_exp.files import table
from vlmrm_exp.studies import examine
from vlmrm_exp.studies.settings import PLURAL, StatesConfig, Study

SENTENCES = Path(__file__).parent / "studies" / "sentences"
PROMPT, PARAPHRASE, MISLEADING = "prompt", "paraphrase", "misleading"  # kinds
QUANTILES = ("min", "lower_quartile", "median", "upper_quartile", "max")


@dataclass
class PromptsConfig(StatesConfig):
    """See conf/prompts.yaml."""

    sentences: str | None = None


ConfigStore.instance().store(name="prompts_schema", node=PromptsConfig)


def check(composed: Composed) -> Study:
    """What is to be measured, or a ConfigError."""
    study = examine.check(composed)
    if study.asked.sentences is not None and len(study.tasks) > 1:
        raise ConfigError("sentences are of one task, but several are asked: give one.")
    for task in study.tasks:
        listed = sentences(task.task.name, study.asked.sentences)
        said = [*task.prompts, *itertools.chain(*listed.values())]
        unread = task.baselines if max(study.asked.alphas) > 0 else []
        for text in said:
            if said.count(text) > 1 or text in unread:
                other = "the baseline" if text in unread else "another one of them"
                raise ConfigError(
                    f'"{text}" is a sentence of task={task.task.name} and {other}: '
                    "leave it out."
                )
    return study


def sentences(task: str, file: str | None = None) -> dict[str, list[str]]:
    """Paraphrases and misleading sentences of a task, by kind, or a ConfigError.

    `file` is one of the user's own, instead of that in studies/sentences.
    """
    path = Path(file).expanduser() if file is not None else SENTENCES / f"{task}.yaml"
    form = "two lists of sentences: {paraphrases: [a, b], misleading: [c, d]}"
    if not path.is_file():
        told = f"There is no file {path}"
        if file is None:
            told = f"There are no sentences for task={task}"
        raise ConfigError(f"{told}: give sentences=FILE.yaml with {form}.")
    with contextlib.suppress(KeyError, TypeError, UnicodeDecodeError, yaml.YAMLError):
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
        listed = {PARAPHRASE: held["paraphrases"], MISLEADING: held["misleading"]}
        if all(map(_are_sentences, listed.values())):
            return listed
    raise ConfigError(f"{path} must hold {form}; each sentence once, and none empty.")


def _are_sentences(texts: Any) -> bool:
    if not isinstance(texts, list) or not texts:
        return False
    said = [text.strip() for text in texts if isinstance(text, str)]
    return all(said) and len(set(said)) == len(texts)


def variants(
    task: Config, file: str | None = None
) -> list[tuple[dict[str, Any], Config]]:
    """The task with its own prompts, then with each other sentence; what rows tell."""
    found = [({"kind": PROMPT, "sentence": " / ".join(task.prompts)}, task)]
    for kind, texts in sentences(task.task.name, file).items():
        for text in texts:
            told = {"kind": kind, "sentence": text}
            found.append((told, replace(task, prompt=text)))
    return found


def measure(study: Study) -> dict[str, Any]:
    """Measure, print, plot, write and return what prompts.json holds.

    A ConfigError if a model, states, labels or sentences cannot be had.
    """
    file = study.asked.sentences
    result = examine.measure(study, lambda task: variants(task, file))
    rows = result["rows"]
    result["spread"] = [
        spread([r for r in rows if (r["task"], r["clip"], r["alpha"]) == (t, *model)])
        for t in result["tasks"]
        for model in names_of(rows)
    ]
    study.save("prompts", result, report(result), lambda path: plot(rows, path))
    return result


def spread(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum up the sentences of one task, model and alpha.

    Returns:
        For epic and auroc: min, quartiles and max over paraphrases, the prompt's own
        value and its rank among them and itself (1: best), and, where the states are a
        sample, half a 95 % interval over states: the median over paraphrases. And the
        share of pairs of a paraphrase and a misleading sentence in which the
        paraphrase has the higher AUROC.
    """
    kinds = (PROMPT, PARAPHRASE, MISLEADING)
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in kinds}
    summed: dict[str, Any] = {key: rows[0][key] for key in ("task", "clip", "alpha")}
    summed["paraphrases"] = len(of[PARAPHRASE])
    summed["misleading"] = len(of[MISLEADING])
    for key, better in (("epic", -1), ("auroc", 1)):
        values = np.array([row[key] for row in of[PARAPHRASE]])
        quarters = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
        summed |= {f"{key}_{n}": q for n, q in zip(QUANTILES, quarters, strict=True)}
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


def names_of(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, float], str]:
    """A name for each model and alpha; alpha is part of it if there are several."""
    found = dict.fromkeys((row["clip"], row["alpha"]) for row in rows)
    several = len({alpha for _, alpha in found}) > 1
    return {(c, a): f"{c}, alpha {a:g}" if several else c for c, a in found}


def report(result: dict[str, Any]) -> str:
    """Tables for people: every sentence with each model, then the spread."""
    names = names_of(result["rows"])
    parts = []
    for task, about in result["tasks"].items():
        # A sentence's cells, one for each model; its kind is part of what it is.
        cells: dict[tuple[str, str], list[str]] = {}
        for row in (row for row in result["rows"] if row["task"] == task):
            line = cells.setdefault((row["sentence"], row["kind"]), [])
            line.append(f"{row['epic']:.3f} {row['auroc']:.3f}")
        head = ["sentence", "kind", *(f"{n} EPIC AUROC" for n in names.values())]
        parts.append(
            f"{task}: {about['states']} states, {about['goal_states']} of them goals; "
            f"baseline {' / '.join(about['baseline'])}"
        )
        parts.append(table(head, [[*said, *line] for said, line in cells.items()]))
    head = ["task, model", "prompt's rank", "EPIC min median max",
            "AUROC min median max", "misleading is worse"]  # fmt: skip
    lines = [
        [
            f"{s['task']}, {names[s['clip'], s['alpha']]}",
            f"{s['epic_prompt_rank']} of {s['paraphrases'] + 1}",
            *(_range(s, key) for key in ("epic", "auroc")),
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


def _range(summed: dict[str, Any], key: str) -> str:
    """Smallest, median and largest value, with half an interval if there is one."""
    values = [summed[f"{key}_{name}"] for name in ("min", "median", "max")]
    text = " ".join(f"{value:.3f}" for value in values)
    half = summed.get(f"{key}_half_interval")
    return text if half is None else f"{text} ± {half:.3f}"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot every sentence as a mark: EPIC and AUROC, models beside each other."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    with figures.figure(8, 0.4 + 2.7 * len(tasks)) as made:
        axes = made.subplots(len(tasks), 2, squeeze=False)
        for (left, right), task in zip(axes, tasks, strict=True):
            mine = [row for row in rows if row["task"] == task]
            _plot_marks(left, mine, "epic", np.sqrt(0.5))
            _plot_marks(right, mine, "auroc", 0.5)
            left.set_title(task, loc="left")
            left.set_ylabel("EPIC (0 best; dotted: unrelated)")
            right.set_ylabel("AUROC (1 best; dotted: chance)")
        # A handle of each kind: further models' marks look the same.
        handles = axes[0, 0].get_legend_handles_labels()[0][: len(MARKS)]
        made.legend(handles=handles, loc="outside upper center", ncols=3)
        figures.save(made, path)


BLUE, ORANGE, BLACK = figures.COLORS[0], figures.COLORS[1], figures.COLORS[6]
MARKS: dict[str, tuple[float, str, dict[str, Any]]] = {
    PARAPHRASE: (-0.15, BLUE, {"label": "paraphrases (bar: median)", "s": 20}),
    MISLEADING: (0.2, ORANGE, {"label": "misleading sentences", "marker": "x"}),
    PROMPT: (
        -0.15,
        BLACK,
        {"label": "the task's prompt (line: 95 %)", "marker": "*", "s": 90},
    ),
}
"""Of each kind: its place beside the model's tick, its colour and its style."""


def _plot_marks(
    ax: Any, rows: Sequence[dict[str, Any]], key: str, chance: float
) -> None:
    """The paraphrases of each model beside its misleading sentences."""
    names = names_of(rows)
    for i, model in enumerate(names):
        for kind, (beside, color, style) in MARKS.items():
            wanted = (*model, kind)
            mine = [r for r in rows if (r["clip"], r["alpha"], r["kind"]) == wanted]
            values = [row[key] for row in mine]
            middle = i + beside
            # Beside each other in the order of the file, so that marks stay apart.
            x = middle + np.linspace(-0.12, 0.12, len(values) + 2)[1:-1]
            ax.scatter(x, values, color=color, alpha=0.85, linewidths=1.1, **style)
            if kind == PARAPHRASE:
                ends = [middle - 0.17, middle + 0.17]
                ax.plot(ends, [np.median(values)] * 2, color=color, lw=1.2)
            if kind == PROMPT and f"{key}_low" in mine[0]:
                ends = [mine[0][f"{key}_low"], mine[0][f"{key}_high"]]
                ax.plot([middle] * 2, ends, color=color, lw=1, zorder=1)
    ax.set_xticks(range(len(names)), [n.replace(", ", "\n") for n in names.values()])
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.axhline(chance, color="#888888", lw=0.8, ls=":", zorder=0)


if __name__ == "__main__":
    app.start(lambda composed: measure(check(composed)), "prompts", check, PLURAL)
