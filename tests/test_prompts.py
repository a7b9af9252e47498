"""The sentences in study/sentences, and `python -m vlmrm_exp.prompts`."""

import itertools
import json

import numpy as np
import pytest

from vlmrm_exp import captions, prompts
from vlmrm_exp.config import GOALS, ConfigError
from vlmrm_exp.prompts import MISLEADING, PARAPHRASE, PROMPT, measure, parse, sentences

TASKS = (*GOALS, "cartpole", "mountaincar")


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_enough_sentences_and_none_twice(task, compose):
    said = sentences(task)
    assert len(said[PARAPHRASE]) >= 10
    assert len(said[MISLEADING]) >= 5
    everything = [
        *compose(f"task={task}").prompts,
        *said[PARAPHRASE],
        *said[MISLEADING],
    ]
    assert len({s.lower() for s in everything}) == len(everything)
    others = {s for t in TASKS if t != task for s in sentences(t)[PARAPHRASE]}
    assert not others & set(said[PARAPHRASE])


def drawable(world: str) -> set[str]:
    """Every sentence that captions can make of a world's states."""
    if world == "mountaincar":
        who = ("a car", "the car", "a small car", "a vehicle", "car")
        scenes = {"a car and a mountain", "a car in the mountains", "car"}
        return scenes | {
            f"{w} {p}" for w in who for _, _, said in captions._CAR for p in said
        }
    if world == "cartpole":
        carts = [p for _, _, said in captions._CART_FACTS for p in said]
        poles = {p for _, _, said in captions._POLE_FACTS for p in said}
        alone = {f.format(pole=p) for f in captions._POLE_FORMS for p in poles}
        scenes = {"a pole and a cart", "a cart with a pole", "cart pole"}
        both = {f"{a}, {c}" for a in alone for c in carts}
        return alone | both | scenes | {f"a cart {c}" for c in carts}
    legs = {p for said in captions._LEG_PHRASES.values() for p in said}
    arms = {p for said in captions._ARM_PHRASES.values() for p in said}
    pairs = {f"{a}{c} {b}" for a in legs for c in ("", ",") for b in arms}
    rest = legs | arms | set(captions._GROUPS) | pairs
    return {f"{who} {what}" for who in captions._ROBOT for what in rest} | set(
        captions._ROBOT
    )


def drawn(world: str, count: int) -> list[str]:
    """Captions of facts drawn at random, as training draws them."""
    rng = np.random.default_rng(0)
    match world:
        case "humanoid":
            kinds = len(captions.LEG_FACTS), len(captions.ARM_FACTS)
            say = captions.humanoid_caption
        case "cartpole":
            kinds = len(captions._POLE_FACTS), len(captions._CART_FACTS)
            say = captions.cartpole_caption
        case _:
            kinds, say = (len(captions._CAR),), captions.mountain_car_caption
    return [
        say(*(int(rng.integers(k)) for k in kinds), rng=rng).text for _ in range(count)
    ]


@pytest.mark.parametrize("world", ["humanoid", "cartpole", "mountaincar"])
def test_no_sentence_is_one_that_embedded_models_are_trained_on(world):
    possible = drawable(world)
    assert set(drawn(world, 4000)) <= possible  # it is the whole list
    for task in GOALS if world == "humanoid" else (world,):
        said = itertools.chain(*sentences(task).values())
        assert not {s.lower() for s in said} & {p.lower() for p in possible}, task


def test_every_sentence_fits_the_embedded_models():
    from vlmrm_exp.cli import composed

    from vlmrm_exp.vlm.encoder import check_prompts

    clip = composed("clip=tiny").clip
    for task in TASKS:
        for said in sentences(task).values():
            check_prompts(clip, said)


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
    summed = prompts.spread(rows)
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
    summed = prompts.spread(rows)
    assert summed["epic_half_interval"] == pytest.approx(0.03)
    assert summed["auroc_half_interval"] == pytest.approx(0.03)


def test_paraphrases_mean_more_to_the_model_than_misleading_ones(tmp_path, capsys):
    folders = [f"cache={tmp_path}/c", f"out={tmp_path}/out"]
    result = measure(parse(["task=mountaincar", "states=200", *folders]))
    written = json.loads((tmp_path / "out" / "prompts.json").read_text())
    assert written == result
    kinds = [r["kind"] for r in written["rows"]]
    assert [kinds.count(k) for k in (PROMPT, PARAPHRASE, MISLEADING)] == [1, 10, 5]
    (spread,) = written["spread"]
    assert "epic_half_interval" not in spread  # a grid is no sample
    assert spread["auroc_median"] > 0.8
    assert spread["pairs_ranked_rightly"] > 0.5  # chance
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"prompts.png", "prompts.svg", "states-mountain_car.npz"} < names
    shown = capsys.readouterr().out
    for said in itertools.chain(*sentences("mountaincar").values()):
        assert said in shown


def test_a_task_without_sentences_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no sentences for task=swim"):
        sentences("swim")
    monkeypatch.setattr(prompts, "SENTENCES", tmp_path)
    for text in (
        "paraphrases: [a",
        "paraphrases: [a]",
        "paraphrases: []\nmisleading: [b]",
        "- a",
    ):
        (tmp_path / "swim.yaml").write_text(text)
        with pytest.raises(ConfigError, match="must hold two lists"):
            sentences("swim")
