"""Is a pretrained model right here? python -m vlmrm_exp.accept clip=...

The first hour with real weights: downloads a model, tells plain pictures apart with it,
measures EPIC on the paper's humanoid tasks as `epic` does, and says beside the figures
of others (studies/published.yaml) whether that is what one should expect.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlmrm_exp import app, epic
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import ClipConfig, ConfigError
from vlmrm_exp.device import choose_device
from vlmrm_exp.files import short_count, table, write_json
from vlmrm_exp.measures import epic as epic_of
from vlmrm_exp.studies import examine
from vlmrm_exp.studies.settings import PLURAL, Study
from vlmrm_exp.vlm import tell_embedded

PUBLISHED = Path(__file__).parent / "studies" / "published.yaml"
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white")
WORDS = ("dog", "piano", "train", "apple", "doctor", "winter", "kitchen", "money")
SIDE = 224  # px
NEEDED = 8
"""Right answers of 16 at which a model counts as seeing: one in eight is right by
chance, and so many by chance once in 3,000 times."""
UNRELATED = np.sqrt(0.5)
"""EPIC distance of a reward that knows nothing of the goal."""
PUBLISHED_WITH = (
    *("tasks", "prompt", "baseline", "alphas", "reward"),
    *("task.camera", "task.textures", "task.frame_height"),
)
"""Settings that the published figures have, too."""
SHARES = (0.5, 0.05)
"""Goals among the states: EPIC is least at a half; the share of others is not known."""
SLACK = 0.1
"""For all else that is not alike: clip=base's EPIC on other kinds of states, brought to
one share of goals, differs by up to .08, under other textures or resolutions by .02."""


def check(composed: Composed) -> Study:
    """What is to be measured, or a ConfigError."""
    for key in composed.keys:
        name = key.partition("=")[0]
        if name in PUBLISHED_WITH:
            raise ConfigError(
                f"{name} is what the published figures are of: leave it out, or use "
                "python -m vlmrm_exp.epic."
            )
    return examine.check(composed)


def accept(study: Study) -> bool:
    """Measure, print, write, and say whether all is as expected.

    A ConfigError if a model or states cannot be had.
    """
    from vlmrm_exp.vlm.source import fetch  # here, as --help is immediate
    from vlmrm_exp.vlm.tokenizer import load_tokenizer

    # Nobody should wait to hear that a package, or the last model, is missing.
    for model in study.models:
        load_tokenizer(model)
    for model in study.models:
        fetch(model)
    tell_embedded(study.models)
    right = {model.name: told_apart(study, model) for model in study.models}
    result = examine.measure(study, lambda task: [({}, task)])
    result["sizes"] = epic.over_models(result["rows"])
    folder = study.folder
    epic.plot(result, folder / "epic")
    published = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    answers = judge(result, right, published)
    write_json(folder / "epic.json", result)
    write_json(folder / "accept.json", {"pictures": right, "answers": answers})
    print(report(result, published))
    print(f"\nsaved {folder}/epic.json, epic.png, epic.svg, accept.json\n")
    for one in answers:
        mark = "yes" if one["expected"] else "NO "
        print(f"  {mark}  {one['model']}: {one['question']}: {one['found']}")
    if failed := sum(not answer["expected"] for answer in answers):
        print(f"\nNot as expected, {failed} of {len(answers)}: see docs/accept.md.")
    else:
        print("\nAs expected.")
    return not failed


def plain_pictures() -> tuple[np.ndarray, list[str]]:
    """Eight colours and eight written words, which none of our worlds shows.

    (16, 224, 224, 3) uint8, and for each the sentence that is true of it alone.
    """
    from PIL import Image, ImageDraw, ImageFont

    pictures = [Image.new("RGB", (SIDE, SIDE), colour) for colour in COLOURS]
    font = ImageFont.load_default(size=SIDE / 4)
    for word in WORDS:
        picture = Image.new("RGB", (SIDE, SIDE), "white")
        middle = (SIDE / 2, SIDE / 2)
        ImageDraw.Draw(picture).text(middle, word, "black", font, anchor="mm")
        pictures.append(picture)
    sentences = [f"a plain {colour} picture" for colour in COLOURS]
    sentences += [f'a picture of the word "{word}"' for word in WORDS]
    return np.stack([np.asarray(picture) for picture in pictures]), sentences


def told_apart(study: Study, model: ClipConfig) -> int:
    """How many of the plain pictures are nearest to their own sentence of the eight."""
    from vlmrm_exp.vlm.encoder import load_encoder

    encoder = load_encoder(model, choose_device(study.tasks[0].compute.device))
    frames, sentences = plain_pictures()
    likeness = encoder.embed_frames(frames) @ encoder.embed_prompts(sentences).T
    halves = (likeness[:8, :8], likeness[8:, 8:])
    own = np.arange(8)
    return sum(int((half.argmax(1).cpu().numpy() == own).sum()) for half in halves)


def at_share(correlation: float, share: float, other: float) -> float:
    """A reward's correlation with the goal if another share of the states were goals.

    As Var(reward) = v + p (1 - p) d^2, where p is the share of goals, d how far their
    mean is from that of others and v the variance within both (here taken to be the
    same in both), the correlation is d sqrt(p (1 - p) / Var(reward)), and d^2 / v
    follows from it.
    """
    odds = correlation**2 / (1 - correlation**2)
    odds *= other * (1 - other) / (share * (1 - share))
    return float(np.sign(correlation) * np.sqrt(odds / (1 + odds)))


def judge(
    result: Mapping[str, Any], right: Mapping[str, int], published: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What should be so of each model, and whether it is.

    By what `examine.measure` gives, how many of the plain pictures each model told
    apart, and studies/published.yaml.
    """
    other = published["replication"]
    answers = []
    first = {name: _rows(result, other["task"], name)[0] for name in right}
    for name, row in first.items():
        asks = "plain colours and written words are told apart"
        told = f"{right[name]} of 16 ({NEEDED} or more are expected, 2 are chance)"
        answers.append((name, asks, told, right[name] >= NEEDED))
        asks = f"EPIC on {other['task']}, alpha 0, is below .707 (unrelated)"
        high = row.get("epic_high", row["epic"])
        told = f"{row['epic']:.3f}, with the interval {high:.3f} at most"
        answers.append((name, asks, told, high < UNRELATED))
        if name in other["epic"]:
            theirs, values = other["epic"][name][0], _at_shares(result, row)
            low, high = min(values) - SLACK, max(values) + SLACK
            asks = f"the published {theirs:.3f} is within what can be told from ours"
            told = f"{low:.3f} to {high:.3f}"
            answers.append((name, asks, told, low <= theirs <= high))
    known = [name for name in right if name in other["epic"]]
    if "rn50" in known and len(known) > 1:
        worst = max(known, key=lambda name: first[name]["epic"])
        answers.append(("all", "rn50 has the largest EPIC", worst, worst == "rn50"))
    keys = "model", "question", "found", "expected"
    return [dict(zip(keys, answer, strict=True)) for answer in answers]


def _rows(result: Mapping[str, Any], task: str, name: str) -> list[dict[str, Any]]:
    """Of each alpha, from the smallest."""
    rows = [r for r in result["rows"] if (r["task"], r["clip"]) == (task, name)]
    return sorted(rows, key=lambda row: row["alpha"])


def _at_shares(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[float]:
    """EPIC at each of SHARES."""
    share = result["tasks"][row["task"]]["goal_share"]
    return [float(epic_of(at_share(row["pearson"], share, p))) for p in SHARES]


def report(result: Mapping[str, Any], published: Mapping[str, Any]) -> str:
    """Ours beside what is published, for people."""
    paper, other = published["paper"], published["replication"]
    task = other["task"]
    about = result["tasks"][task]
    ours = f"ours, {about['goal_share']:.0%} goals"
    head = ["EPIC on kneeling", "", *(f"alpha {alpha:g}" for alpha in other["alphas"])]
    lines = []
    for name in result["models"]:
        rows = _rows(result, task, name)
        lines.append([name, ours, *(f"{row['epic']:.3f}" for row in rows)])
        each = zip(*(_at_shares(result, row) for row in rows), strict=True)
        for share, values in zip(SHARES, each, strict=True):
            said = f"the same, if {share:.0%} were goals"
            lines.append(["", said, *(f"{value:.3f}" for value in values)])
        if name in other["epic"]:
            theirs = (f"{value:.3f}" for value in other["epic"][name])
            lines.append(["", "published [1]", *theirs])
    low, high = paper["epic_axes"]
    learned = ", ".join(f"{n} {share:.0%}" for n, share in paper["kneeling"].items())
    parts = [
        table(head, lines),
        "0 is best, .707 unrelated, 1 opposite. [1] is a replication:\n"
        f"  {other['source']}.\n"
        f"The paper [2] has no numbers: its Figure 4b runs from {low} to {high}.\n"
        f"Its policies' success at kneeling (Figure 4c): {learned}.\n"
        f"  {paper['source']}.\n"
        "Alike in [1] and here: "
        + other["same"]
        + ". Not alike:\n"
        + "\n".join(f"  - {line}" for line in other["differs"])
        + "\nSo expect the published number within what the share of goals does to "
        f"ours,\nand {SLACK} for all else.",
        _models(result, published),
        _prompts(result, paper),
    ]
    return "\n\n".join(parts)


def _models(result: Mapping[str, Any], published: Mapping[str, Any]) -> str:
    """Order of models by EPIC at alpha 0, of those that are asked."""
    other = published["replication"]
    asked = {n: _rows(result, other["task"], n)[0]["epic"] for n in result["models"]}
    known = [name for name in asked if name in other["epic"]]
    if len(known) < 2:
        return (
            "Models in order: ask several, as clip=rn50,vitl14; what is embedded\n"
            "already is kept, so each costs its own time alone."
        )
    orders = {
        "ours": sorted(known, key=lambda name: asked[name]),
        "published [1]": sorted(known, key=lambda name: other["epic"][name][0]),
        "the paper [2]": [n for n in published["paper"]["order"] if n in asked],
    }
    lines = [[whose, ", ".join(order)] for whose, order in orders.items()]
    return table(["EPIC on kneeling, alpha 0", "models, best first"], lines)


def _prompts(result: Mapping[str, Any], paper: Mapping[str, Any]) -> str:
    """AUROC of each task's prompt, those that the paper learned best first."""
    names = list(result["models"])
    lines = []
    for task, success in paper["success"].items():
        values = (_rows(result, task, name)[0]["auroc"] for name in names)
        share = f"{result['tasks'][task]['goal_share']:.0%}"
        lines.append([task, share, *(f"{v:.2f}" for v in values), f"{success:.0%}"])
    said = [
        f"{name} ({short_count(facts['parameters_image'] + facts['parameters_text'])})"
        for name, facts in result["models"].items()
    ]
    head = ["AUROC of the prompt, alpha 0", "goals", *said, "success in [2]"]
    return (
        f"{table(head, lines)}\n1 is best, .5 chance; unlike EPIC it does not depend "
        "on the share of goals.\nThe paper's success is of policies trained with bigG. "
        "Its authors found hands_on_hips\nand arms_crossed too like plain standing for "
        "CLIP, and one_leg too hard for the body."
    )


def main(composed: Composed) -> None:
    """Run the verb; end with 1 if something is not as expected."""
    if not accept(check(composed)):
        sys.exit(1)


if __name__ == "__main__":
    app.start(main, "accept", check, PLURAL)
