"""The sentences in studies/sentences, and `python -m vlmrm_exp.prompts`."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

import studies
from studies import Folders
from vlmrm_exp import prompts
from vlmrm_exp.config import ConfigError
from vlmrm_exp.envs.goals import GOALS
from vlmrm_exp.pretraining import captions
from vlmrm_exp.pretraining.captions import CAR, CART, PHRASES, POLE
from vlmrm_exp.prompts import MISLEADING, PARAPHRASE, PROMPT, sentences, spread
from vlmrm_exp.vlm.tokenizer import check_prompts

pytestmark = pytest.mark.slow

TASKS = (*GOALS, "cartpole", "mountaincar")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_enough_sentences_and_none_twice(task, compose):
    said = sentences(task)
    assert len(said[PARAPHRASE]) >= 10
    assert len(said[MISLEADING]) >= 5
    own = compose(f"task={task}", "clip=tiny")
    everything = [*own.prompts, *said[PARAPHRASE], *said[MISLEADING]]
    assert len({s.lower() for s in everything}) == len(everything)
    others = {s for t in TASKS if t != task for s in sentences(t)[PARAPHRASE]}
    assert not others & set(said[PARAPHRASE])
    check_prompts(own.clip, everything)  # fits the embedded models


def possible_captions(world: str) -> set[str]:
    """Every sentence that captions can make of a world's states."""
    if world == "mountaincar":
        who = ("a car", "the car", "a small car", "a vehicle", "car")
        scenes = {"a car and a mountain", "a car in the mountains", "car"}
        return scenes | {
            f"{w} {p}" for w in who for place in CAR for p in place.phrases
        }
    if world == "cartpole":
        carts = [p for place in CART for p in place.phrases]
        poles = {p for place in POLE for p in place.phrases}
        alone = {f.format(pole=p) for f in PHRASES["pole_forms"] for p in poles}
        scenes = {"a pole and a cart", "a cart with a pole", "cart pole"}
        both = {f"{a}, {c}" for a in alone for c in carts}
        return alone | both | scenes | {f"a cart {c}" for c in carts}
    legs, arms = ({p for said in lists for p in said}
                  for lists in (captions._LEGS, captions._ARMS))  # fmt: skip
    pairs = {f"{a}{c} {b}" for a in legs for c in ("", ",") for b in arms}
    rest = legs | arms | set(captions._GROUPS) | pairs
    who = PHRASES["robot"]
    return {f"{w} {what}" for w in who for what in rest} | set(who)


def random_captions(world: str, count: int) -> list[str]:
    """Captions of facts drawn at random, as pretraining draws them."""
    rng = np.random.default_rng(0)
    kinds = {
        "humanoid": (len(captions._LEGS), len(captions._ARMS)),
        "cartpole": (len(POLE), len(CART)),
        "mountaincar": (len(CAR),),
    }[world]
    _, say = captions._SAID[world]
    return [
        say(*(int(rng.integers(k)) for k in kinds), rng=rng).text for _ in range(count)
    ]


@pytest.mark.parametrize("world", ["humanoid", "cartpole", "mountaincar"])
def test_no_sentence_is_one_that_embedded_models_are_trained_on(world):
    possible = possible_captions(world)
    assert set(random_captions(world, 4000)) <= possible  # it is the whole list
    for task in GOALS if world == "humanoid" else (world,):
        said = itertools.chain(*sentences(task).values())
        assert not {s.lower() for s in said} & {p.lower() for p in possible}, task


def row(kind: str, epic: float, auroc: float) -> dict:
    about = {"task": "t", "clip": "c", "alpha": 0.0, "kind": kind}
    return {**about, "epic": epic, "auroc": auroc}


def test_spread_by_hand():
    rows = [
        row(PROMPT, 0.25, 0.7),
        row(PARAPHRASE, 0.1, 0.9),
        row(PARAPHRASE, 0.2, 0.8),
        row(PARAPHRASE, 0.3, 0.6),
        row(MISLEADING, 0.9, 0.7),
        row(MISLEADING, 0.9, 0.1),
    ]
    summed = spread(rows)
    assert (summed["epic_min"], summed["epic_median"]) == (0.1, 0.2)
    assert summed["epic_lower_quartile"] == pytest.approx(0.15)
    assert summed["auroc_max"] == 0.9
    assert (summed["epic_prompt_rank"], summed["auroc_prompt_rank"]) == (3, 3)
    assert summed["pairs_ranked_rightly"] == pytest.approx(5 / 6)
    assert (summed["paraphrases"], summed["misleading"]) == (3, 2)


def test_spread_comes_with_the_interval_of_a_sentence():
    """Else nobody could tell wording from chance."""
    rows = [row(PROMPT, 0.2, 0.7), row(MISLEADING, 0.9, 0.7)]
    rows += [row(PARAPHRASE, epic, 0.9) for epic in (0.1, 0.2, 0.3)]
    for one, half in zip(rows, (9, 9, 0.02, 0.03, 0.07), strict=True):
        for key in ("epic", "auroc"):
            one[f"{key}_low"], one[f"{key}_high"] = one[key] - half, one[key] + half
    summed = spread(rows)
    assert summed["epic_half_interval"] == pytest.approx(0.03)
    assert summed["auroc_half_interval"] == pytest.approx(0.03)


def test_paraphrases_mean_more_to_the_model_than_misleading_ones(tmp_path, capsys):
    folders = Folders(tmp_path)
    words = ["task=mountaincar", "clip=tiny", "states=100", "alpha=0,0.5", *folders]
    result = prompts.measure(studies.asked(prompts, *words))
    written = json.loads((folders.out / "prompts.json").read_text())
    assert written == result
    for alpha, summed in zip((0, 0.5), written["spread"], strict=True):
        rows = [r for r in written["rows"] if r["alpha"] == alpha]
        kinds = [r["kind"] for r in rows]
        assert [kinds.count(k) for k in (PROMPT, PARAPHRASE, MISLEADING)] == [1, 10, 5]
        assert summed == spread(rows)
        assert "epic_half_interval" not in summed  # a grid is no sample
        assert summed["auroc_median"] > 0.8
        assert summed["pairs_ranked_rightly"] > 0.5  # chance
    assert written["spread"][0]["epic_median"] != written["spread"][1]["epic_median"]
    names = {f.name for f in folders.out.iterdir()}
    assert names == {
        "prompts.json", "prompts.png", "prompts.svg", "states-mountain_car.npz"
    }  # fmt: skip
    shown = capsys.readouterr().out
    for said in itertools.chain(*sentences("mountaincar").values()):
        assert said in shown
    assert "mountaincar, tiny, alpha 0.5" in shown
    with Image.open(folders.out / "prompts.png") as picture:
        assert picture.size[0] == 1200


def test_a_task_without_sentences_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no sentences for task=swim"):
        sentences("swim")
    monkeypatch.setattr(prompts, "SENTENCES", tmp_path)
    for text in (
        "paraphrases: [a",
        "paraphrases: [a]",
        "paraphrases: []\nmisleading: [b]",
        "paraphrases: [a, b, a]\nmisleading: [c]",
        "paraphrases: [a, '  ']\nmisleading: [c]",
        "paraphrases: a car\nmisleading: [c]",
        "paraphrases: [a]\nmisleading: {b: 1}",
        "- a",
    ):
        (tmp_path / "swim.yaml").write_text(text)
        with pytest.raises(ConfigError, match="must hold two lists"):
            sentences("swim")
    with pytest.raises(ConfigError, match="no sentences for task=kneeling"):
        studies.asked(prompts, "task=kneeling", "out=x")
    words = ("task=kneeling", f"sentences={tmp_path}/own.yaml", "out=x", "alpha=0,0.5")
    for other, said in (("a", "another"), ("a humanoid robot", "the baseline")):
        text = f"paraphrases: [a]\nmisleading: [{other}]"
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(ConfigError, match=f'"{other}" is a sentence of.*{said}'):
            studies.asked(prompts, *words)
    studies.asked(prompts, *words[:-1], "alpha=0")
    words = ("task=cartpole,mountaincar", "sentences=x.yaml", "out=x")
    with pytest.raises(ConfigError, match="sentences are of one task"):
        studies.asked(prompts, *words)
