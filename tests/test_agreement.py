"""Agreement of raters, against examples that are published with their results."""

import pytest

pytest.importorskip("nltk")

from vlmrm_exp.labelling.agreement import cohen, fleiss, krippendorff, tables
from vlmrm_exp.labelling.shown import Item


def test_cohens_kappa_of_a_worked_example():
    """50 grants, two readers: both yes 20, both no 15, 5 and 10 differ; kappa .4."""
    counts = {(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}
    said = [pair for pair, count in counts.items() for _ in range(count)]
    first, second = ({str(i): pair[r] for i, pair in enumerate(said)} for r in (0, 1))
    found = cohen(first, second)
    assert found["cohen_kappa"] == pytest.approx(0.4)
    assert (found["items"], found["agreement"]) == (50, 0.7)
    # What only one of them has labelled changes nothing.
    assert cohen(first | {"more": 1}, {"other": 0} | second) == found


def test_fleiss_kappa_of_his_kind_of_table():
    """Ten subjects, fourteen raters, five categories: kappa .210 (Wikipedia's)."""
    table = [
        "0 0 0 0 14", "0 2 6 4 2", "0 0 3 5 6", "0 3 9 2 0", "2 2 8 1 1",
        "7 7 0 0 0", "3 2 6 3 0", "2 5 3 2 2", "6 5 2 1 0", "0 2 2 3 7",
    ]  # fmt: skip
    labels = {str(rater): {} for rater in range(14)}
    for item, row in enumerate(table):
        said = [
            c for c, count in enumerate(map(int, row.split())) for _ in range(count)
        ]
        for rater, category in enumerate(said):
            labels[str(rater)][str(item)] = category
    count, kappa = fleiss(labels)
    assert count == 10
    assert kappa == pytest.approx(0.210, abs=5e-4)
    labels["0"]["of one rater alone"] = 3
    assert fleiss(labels) == (count, kappa)


def test_krippendorffs_alpha_of_his_own_example():
    """Four observers, twelve units, gaps: .743 nominal, .849 interval (2011)."""
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3",
            ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]  # fmt: skip
    labels = {
        name: {str(i): int(x) for i, x in enumerate(row.split()) if x != "."}
        for name, row in zip("ABCD", rows, strict=True)
    }
    assert krippendorff(labels, numbers=False) == (11, pytest.approx(0.743, abs=5e-4))
    assert krippendorff(labels, numbers=True) == (11, pytest.approx(0.849, abs=5e-4))


def test_what_is_not_defined_is_none():
    same = {"a": {"0": 1, "1": 1}, "b": {"0": 1, "1": 1}}
    assert cohen(same["a"], same["b"])["cohen_kappa"] is None
    assert fleiss(same) == (2, None)
    assert krippendorff(same, numbers=False) == (2, None)
    apart = {"a": {"0": 1}, "b": {"1": 0}}
    assert cohen(apart["a"], apart["b"]) == {
        "items": 0, "agreement": None, "cohen_kappa": None
    }  # fmt: skip
    assert krippendorff(apart, numbers=False) == (0, None)
    assert fleiss({}) == (0, None)


def test_tables_of_three_raters_and_the_predicate():
    items = [Item(str(i), f"{i}.png", goal=i < 2) for i in range(5)]
    labels = {
        "Ada": {"0": 1, "1": 1, "2": 0, "3": 0},
        "Bo": {"0": 1, "1": 0, "2": 0, "3": 1},
        "Cy": {"0": 1, "1": 0, "2": 0},
    }
    found = tables(items, labels, buckets=False)
    ada, *_, majority = found["raters"]
    assert ada["labelled"] == "4 of 5"
    assert (ada["goals"], ada["agreement_with_predicate"]) == (2, 1.0)
    assert ada["cohen_kappa_with_predicate"] == pytest.approx(1)
    assert (majority["rater"], majority["goals"]) == ("majority", 1)  # 3 is a tie
    assert [(p["first"], p["second"], p["items"]) for p in found["pairs"]] == [
        ("Ada", "Bo", 4), ("Ada", "Cy", 3), ("Bo", "Cy", 3)
    ]  # fmt: skip
    assert [row["item"] for row in found["differences"]] == ["1", "3"]
    assert found["differences"][0] == {
        "item": "1", "labels": "Ada: 1, Bo: 0, Cy: 0", "predicate": 1
    }  # fmt: skip
    assert found["success"] == []


def test_tables_of_episodes_count_half_of_the_steps_as_success():
    runs = {"A": [0.0, 0.5, 1.0], "B": [0.0, 0.0, 0.3]}
    items = [
        Item(str(i), f"{run}{i}.mp4", run, share >= 0.5, share)
        for run, shares in runs.items()
        for i, share in enumerate(shares)
    ]
    said = {"A#0": 0, "A#1": 50, "A#2": 100, "B#0": 0, "B#1": 25, "B#2": 50}
    found = tables(items, {"Ada": said, "Bo": said | {"A#2": 75}}, buckets=True)
    a, b = found["success"]
    assert (a["run"], a["episodes"], a["success"]) == ("A", 3, pytest.approx(2 / 3))
    assert a["success_by_predicate"] == pytest.approx(2 / 3)
    assert a["mean_percent"] == pytest.approx((0 + 50 + 87.5) / 3)
    assert a["mean_percent_by_predicate"] == pytest.approx(50)
    assert (b["success"], b["success_by_predicate"]) == (pytest.approx(1 / 3), 0)
    goals, percent = found["agreement"]
    assert goals["krippendorff_alpha"] == pytest.approx(1)  # the same successes
    assert goals["fleiss_kappa"] == pytest.approx(1)
    assert 0.9 < percent["krippendorff_alpha"] < 1
    assert found["differences"] == [
        {"item": "B#2", "labels": "Ada: 50 %, Bo: 50 %", "predicate": "30 %"}
    ]
