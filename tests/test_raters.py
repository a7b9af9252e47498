"""What raters say: kept line by line, in an order of their own."""

import json
import os
import resource
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmrm_exp.config import ConfigError
from vlmrm_exp.labelling.raters import NameRefusedError, Rater, Raters, order

ITEMS = [f"{i}.png" for i in range(6)]


def rater(path: Path, items=ITEMS) -> Rater:
    return Rater(path, "Ada", items, (0, 1), 3)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_orders_are_random_for_each_rater_and_the_same_again():
    items = [str(i) for i in range(200)]
    ada, bo = (order(items, name, 0) for name in ("Ada", "Bo"))
    assert sorted(ada) == sorted(bo) == sorted(items)
    assert ada != bo != order(items, "Bo", 1)
    assert order(items[::-1], "ada", 0) == ada  # whoever asks, wherever, however
    firsts = Counter(order(items[:4], str(i), 0)[0] for i in range(4000))
    assert min(firsts.values()) > 850  # of 1000 expected, 5 standard deviations


def test_the_order_stays_that_of_earlier_versions():
    """Else raters would not go on where they stopped: sorted by sha256(seed/name/x)."""
    assert order(["a", "b", "c", "d"], "Ada", 0) == ["d", "c", "b", "a"]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["0", "1", "skip", "undo", "old"]), max_size=25))
def test_presses_do_what_a_list_of_all_of_them_says(tmp_path_factory, presses):
    """The state after presses, and after reading them again, by a slow model."""
    path = tmp_path_factory.mktemp("raters") / "ada.jsonl"
    mine = rater(path)
    queue, said, done = order(ITEMS, "Ada", 3), {}, []
    for press in presses:
        before = (queue[:], dict(said))
        item = mine.current
        if press == "undo":
            assert mine.undo() == bool(done)
            if done:
                queue, said = done.pop()
        elif press == "old":  # of a window that shows something else
            assert not mine.label("no such item", 1, 1)
        elif item is None:
            assert not queue
        elif press == "skip":
            assert mine.skip(item)
            queue = [*queue[1:], queue[0]]
            done.append(before)
        else:
            assert mine.label(item, int(press), 1.5)
            said = {**said, queue[0]: int(press)}
            queue = queue[1:]
            done.append(before)
        again = rater(path)  # as a server that was killed here
        for one in (mine, again):
            assert one.labels == said
            assert one.current == (queue[0] if queue else None)
            assert list(one.queue) == queue
            assert one.can_undo == bool(done)
        again.close()
    mine.close()


def test_skipped_ones_are_counted_until_they_are_labelled(tmp_path):
    mine = rater(tmp_path / "ada.jsonl", ITEMS[:2])
    for _ in range(2):
        assert mine.skip(str(mine.current))
    assert mine.skipped == 2
    mine.label(str(mine.current), 1, 1)
    assert mine.skipped == 1
    mine.undo()
    assert mine.skipped == 2
    mine.close()


def test_a_line_that_was_being_written_is_as_if_it_had_not_been(tmp_path):
    path = tmp_path / "ada.jsonl"
    mine = rater(path)
    for value in (1, 0, 1):
        mine.label(str(mine.current), value, 2)
    mine.close()
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(ends[0], len(whole) + 1):
        path.write_bytes(whole[:cut])
        mine = rater(path)
        assert len(mine.labels) == sum(end <= cut for end in ends) - 1
        item = str(mine.current)
        mine.label(item, 1, 2)  # goes on behind the whole lines
        mine.close()
        assert lines(path)[-1]["item"] == item


def test_a_press_is_synced_before_it_counts(tmp_path, monkeypatch):
    mine = rater(tmp_path / "ada.jsonl")
    synced = []
    sync = os.fsync

    def fsync(file: int) -> None:
        sync(file)
        synced.append((lines(mine.path)[-1]["do"], dict(mine.labels)))

    monkeypatch.setattr(os, "fsync", fsync)
    item = str(mine.current)
    mine.label(item, 1, 2)
    mine.undo()
    mine.close()
    assert synced == [("label", {}), ("undo", {item: 1})]


def test_a_full_disk_loses_nothing_and_counts_nothing(tmp_path):
    mine = rater(tmp_path / "ada.jsonl")
    mine.label(str(mine.current), 1, 2)
    before = mine.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    item = str(mine.current)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"space|large"):
            mine.label(item, 1, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert mine.path.read_bytes() == before
    assert mine.current == item
    mine.label(item, 0, 2)
    assert mine.labels[item] == 0
    mine.close()


def test_time_left_is_the_median_pace_of_the_latest(tmp_path):
    items = [str(i) for i in range(40)]
    mine = rater(tmp_path / "ada.jsonl", items)
    for seconds in (100, 100, 100, 100):
        mine.label(str(mine.current), 1, seconds)
    assert mine.seconds_left is None
    for seconds in [2] * 19 + [60]:
        mine.label(str(mine.current), 1, seconds)
    assert mine.seconds_left == 2 * (40 - 24)
    mine.close()


@pytest.mark.parametrize(
    "line",
    [
        '{"do": "label", "item": "0.png", "label": 7, "seconds": 1}',
        '{"do": "undo", "item": "0.png"}',
        '{"do": "skip", "item": "0.jpg"}',
        "[]",
        "not json",
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path, line):
    path = tmp_path / "ada.jsonl"
    path.write_text(f'{{"rater": "Ada", "seed": 3}}\n{line}\n')
    with pytest.raises(ConfigError, match=r"ada.jsonl, line 2, cannot be read"):
        Rater(path, "Ada", ["0.png"], (0, 1), 3)


def test_raters_go_on_under_their_own_keys_and_nobody_elses(tmp_path):
    names = ["Ada", "Ada B.", "李", "<b>../..", "a/b", "a_b"]
    raters = Raters(tmp_path, ITEMS, (0, 1), 0)
    keys = [raters.join(f"  {name} ") for name in names]
    assert len(set(keys)) == len(names)
    for i, key in enumerate(keys):
        mine = raters.by_key[key]
        assert mine.name == names[i]
        for _ in range(i):
            mine.label(str(mine.current), i % 2, 1)
    for taken in ("ada", "ADA B.", "李"):
        with pytest.raises(NameRefusedError, match="labelling already"):
            raters.join(taken)
    raters.close()
    files = list((tmp_path / "raters").iterdir())
    assert len(files) == len(names)
    assert {file.suffix for file in files} == {".jsonl"}
    again = Raters(tmp_path, ITEMS, (0, 1), 0)
    assert [len(again.by_key[key].labels) for key in keys] == list(range(len(names)))
    again.close()
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0
    other = Raters(tmp_path / "other", ITEMS, (0, 1), 0)
    assert other.join("Ada") not in keys
    other.close()


def test_who_only_reads_changes_nothing(tmp_path):
    raters = Raters(tmp_path, ITEMS, (0, 1), 0)
    ada = raters.by_key[raters.join("Ada")]
    ada.label(str(ada.current), 1, 1)
    raters.close()
    for name, text in (("bo", '{"rat'), ("eve", '{"rater": "Eve"}\n{"time"')):
        (tmp_path / "raters" / f"{name}.jsonl").write_text(text)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    read = Raters(tmp_path, ITEMS, (0, 1), 0, writes=False)
    assert [(one.name, one.labels) for one in read] == [
        ("Ada", ada.labels),
        ("Eve", {}),
    ]
    read.close()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == files
    Raters(tmp_path / "new", ITEMS, (0, 1), 0, writes=False).close()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * 41, "a\x00b", "\u202egnp", "predicate", "Majority"]
)
def test_names_that_say_nothing_or_something_else_are_refused(tmp_path, name):
    raters = Raters(tmp_path, ITEMS, (0, 1), 0)
    with pytest.raises(NameRefusedError):
        raters.join(name)
    assert not list((tmp_path / "raters").iterdir())
    raters.close()
