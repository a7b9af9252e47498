"""Sentences arrive as they were typed; other words as Hydra reads them."""

import os
import re

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vlmrm_exp import words
from vlmrm_exp.config import ConfigError

PLURAL = {"task": "tasks", "clip": "clips", "alpha": "alphas"}


def jobs(*typed: str):
    """What each job gets for the prompt, by Hydra's own parser and sweeper.

    A sentence of a sweep is a list of one, which means the same.
    """
    keys = [key for key in words.to_keys(list(typed), {}) if not key.startswith("-")]
    parse = OverridesParser.create().parse_overrides
    if "-m" not in typed:
        return [value_of(parse(keys))]
    [batch] = BasicSweeper.split_arguments(parse(keys), None)
    return [value_of(parse(job)) for job in batch]


def value_of(overrides):
    cfg = OmegaConf.create({one.key_or_group: one.value() for one in overrides})
    return OmegaConf.to_container(cfg, resolve=True)["prompt"]


sentence = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(
    lambda text: text.strip() == text and text != "null"
)
plain = sentence.filter(
    lambda text: text[0] not in "['\"" and not text.startswith("choice(")
)
inside = plain.filter(lambda text: not set(text) & set(",[]()"))


def in_quotes(text: str) -> str:
    r"""As a user writes it: quotes as \", and a backslash before one doubled."""
    out, slashes = "", 0
    for letter in text:
        out += "\\" * (slashes + 1) + '"' if letter == '"' else letter
        slashes = slashes + 1 if letter == "\\" else 0
    return f'"{out}{chr(92) * slashes}"'


written = st.one_of(
    st.tuples(sentence, st.just(in_quotes)), st.tuples(inside, st.just(str))
)
several = st.lists(written, min_size=1, max_size=4)


@given(plain, st.booleans())
def test_any_sentence_arrives_as_typed(text, swept):
    assert jobs(f"prompt={text}", *(["-m"] if swept else [])) == [text]


@given(sentence)
def test_any_sentence_arrives_in_quotes(text):
    assert jobs(f"prompt={in_quotes(text)}") == [text]


@given(sentence)
def test_any_sentence_arrives_or_its_setting_is_named(text):
    try:
        told = None
        assert jobs(f"prompt={text}")
    except ConfigError as error:
        told = str(error)
    assert told is None or re.match("prompt has .* quotes", told)


@pytest.mark.slow
@given(several, st.booleans())
def test_any_list_arrives_as_typed(items, swept):
    typed = ", ".join(write(text) for text, write in items)
    told = [text for text, _ in items]
    assert jobs(f"prompt=[{typed}]", *(["-m"] if swept else [])) == [told]


@pytest.mark.slow
@given(several)
def test_any_choice_is_swept(items):
    typed = ", ".join(write(text) for text, write in items)
    assert jobs("-m", f"prompt=choice({typed})") == [[text] for text, _ in items]


@pytest.mark.slow
@given(st.lists(sentence, min_size=2, max_size=4))
def test_sentences_in_quotes_are_swept(texts):
    typed = ",".join(map(in_quotes, texts))
    assert jobs("-m", f"prompt={typed}") == [[text] for text in texts]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("[a robot (kneeling), a robot]", ["a robot (kneeling)", "a robot"]),
        (
            "[a robot's arm, is it kneeling?]",
            ["a robot's arm", "is it kneeling?"],
        ),
        ("[一个机器人, 跪着的机器人]", ["一个机器人", "跪着的机器人"]),
        ("[red] car [left]", "[red] car [left]"),
        ("'kneeling' or 'sitting'", "'kneeling' or 'sitting'"),
        ("['kneeling' or sitting, b]", ["'kneeling' or sitting", "b"]),
        ("[[red] car, 'a, b']", ["[red] car", "a, b"]),
        ("[null, 5, true]", ["null", "5", "true"]),
        ('"a car"', "a car"),
        ("a ${seed} car", "a ${seed} car"),
        ("'a ${seed} car'", "a ${seed} car"),
        ("5", "5"),
        ("null", None),
    ],
)
def test_sentences_of_every_kind(typed, told):
    assert jobs(f"prompt={typed}") == [told]


def test_a_comma_that_could_be_meant_as_a_sweep_is_told(capsys):
    assert jobs("-m", "prompt=a car,a flag") == ["a car,a flag"]
    assert "prompt is one sentence, with its commas" in capsys.readouterr().out
    assert jobs("-m", "prompt=[a car, a flag]") == [["a car", "a flag"]]
    assert jobs("prompt=a car, red") == ["a car, red"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["1", "-1e3", "NaN", "inf", "true"])
def test_a_number_is_a_name_where_an_option_is_chosen(name):
    [key] = words.to_keys([f"clip={name}"], {})
    assert OverridesParser.create().parse_override(key).value() == name
    assert words.to_keys([f"seed={name}"], {}) == [f"seed={name}"]


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b"])
def test_a_sweeps_name_is_one_folder(name):
    with pytest.raises(ConfigError, match="it becomes a folder in outputs/sweeps/"):
        words.to_keys(["-m", f"sweep={name}"], {})


def test_lists_are_swept():
    assert jobs("-m", "prompt=[a, b],[c]") == [["a", "b"], ["c"]]


def test_columns_of_score_are_lists_in_a_list():
    [key] = words.to_keys(["prompts=[[a car (red), b], it's]"], {})
    value = OverridesParser.create().parse_override(key).value()
    assert value == [["a car (red)", "b"], "it's"]


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("prompt=[a car, a flag", "prompt has a bracket that is not closed"),
        ("prompt=[a ], b]", "prompt has a bracket that is not closed"),
        ("prompt=[a, , b]", "prompt has nothing between two commas"),
        ('prompt="a","b"', "prompt has several sentences.*add -m"),
        ("prompt=choice(a, b)", "prompt has several sentences.*add -m"),
        ("name='a", "name cannot be read from .*quotes"),
        ("log.tags=[ä, b]", "log.tags cannot be read"),
        ("seed=1,,2", "seed cannot be read"),
        ("clip=null", "clip=null is no option"),
        ("sweep=mine", "sweep=NAME names a sweep: add -m"),
        ("clip=_embedded", "clip=_embedded is no option"),
    ],
)
def test_what_is_not_clear_is_refused_by_its_name(typed, reason):
    with pytest.raises(ConfigError, match=reason):
        words.to_keys([typed], {})


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("clip=nano", ["clips=[nano]", "clip=nano"]),
        ("clip=nano,tiny", ["clips=[nano,tiny]", "clip=nano"]),
        ("clip=[nano, tiny]", ["clips=[nano,tiny]", "clip=nano"]),
        ("clip=local-dir:/a", ["clips=[local-dir:/a]"]),
        ("clip=local-dir:/ä (1)", ["clips=['local-dir:/ä (1)']"]),
        ("clip=null", ["clips=null"]),
        ("clip=", ["clips=[]"]),
        ("alpha=0,0.5", ["alphas=[0,0.5]", "alpha=0"]),
        ("clip.preprocess=squash", "clip.preprocess=squash"),
        ("name=größer (2)", "name='größer (2)'"),
        ("seed=0,1", "seed=0,1"),
        ("+foo=1", "foo=1"),  # which Hydra does not know
        ("++hydra.job.name=x", "++hydra.job.name=x"),
        ("+task.options.mass=2", "++task.options.mass=2"),
        ("reward.options.of=change", "++reward.options.of=change"),
        ("name=1e3", "name='1e3'"),
        ("name=a,b", "name=a,b"),
        ("experiment=null", []),
        ("prompt=a, b", "prompt='a, b'"),
        ("baseline=it's", r"baseline='it\'s'"),
        ("-m", "-m"),
    ],
)
def test_words_become_keys(word, key):
    assert words.to_keys([word], PLURAL) == (key if isinstance(key, list) else [key])


def test_a_study_adds_no_options_of_ones_own():
    word = "reward.options.of=change"
    assert words.to_keys([word], {}, program="score") == [word]


def test_a_settings_file_is_one_that_is_there(tmp_path):
    path = tmp_path / "study.yaml"
    with pytest.raises(ConfigError, match="There is no settings file"):
        words.to_keys([str(path)], PLURAL)
    (tmp_path / "epic.yaml").touch()
    with pytest.raises(ConfigError, match="of another name"):
        words.to_keys([str(tmp_path / "epic.yaml")], PLURAL)
    path.write_text("defaults: [config, _self_]\n")
    asked = ["--config-dir", str(tmp_path), "--config-name", "study", "seed=1"]
    assert words.to_keys([str(path), "seed=1"], PLURAL) == asked
    assert words.to_keys(asked, PLURAL) == asked  # as typed for Hydra


def test_a_settings_file_may_ask_for_a_sweep(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("defaults: [config]\nhydra:\n  mode: MULTIRUN\n")
    keys = words.to_keys([str(path), 'prompt="a","b"'], PLURAL)
    assert keys[-1] == 'prompt=choice(["a"],["b"])'


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ("", "does not say what it changes: begin it"),
        ("seed: 3\n", "does not say what it changes: begin it"),
        ("5", "does not say what it changes: begin it"),
        ("defaults: [config]\nseed:\t3\n\t- a", "is no YAML in UTF-8"),
        ("defaults: [config]\nprompt: gr\xfcn\n", "is no YAML in UTF-8"),
        ("defaults: [config]\nclip: nano\n", "write - override clip: nano under def"),
        (
            "defaults: [config]\njudge: [a, b]\n",
            r"write - override judge: \['a', 'b'\]",
        ),
        (
            "defaults: [config]\nhydra: {sweeper: {params: {seed: '0,1'}}}",
            "asks for one job: add -m",
        ),
    ],
)
def test_a_settings_file_that_hydra_would_misread_is_refused(tmp_path, held, reason):
    path = tmp_path / "own.yaml"
    path.write_bytes(held.encode("latin-1"))
    with pytest.raises(ConfigError, match=reason) as told:
        words.to_keys([str(path)], PLURAL)
    assert "\n" not in str(told.value)


def test_two_settings_files_or_one_that_is_shadowed(tmp_path):
    for name in ("a.yaml", "b.yaml", "c.yml", "schema.yaml"):
        (tmp_path / name).write_text("defaults: [config]\n")
    a, b, c, schema = (str(path) for path in sorted(tmp_path.iterdir()))
    for typed, reason in (
        ([a, b], "both settings files"),
        ([c], "must end in .yaml"),
        ([schema], "of another name"),
    ):
        with pytest.raises(ConfigError, match=reason):
            words.to_keys(typed, PLURAL)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "tiny.yaml").touch()
    for typed in ([a], ["--config-dir", str(tmp_path)]):
        with pytest.raises(ConfigError, match=r"clip/tiny.yaml has the name of an opt"):
            words.to_keys(typed, PLURAL)


def test_sweep_files_take_sentences_as_the_command_line_does():
    said = words.swept("prompt", "a car, at the peak")
    assert said == "prompt='a car, at the peak'"
    assert words.swept("prompt", "choice(a, b)") == "prompt=choice(['a'],['b'])"
    for key in ("judge.x", "++judge.x"):
        judges = words.swept(key, "choice(clip=tiny, prompt=a car)", "config")
        assert judges == "++judge.x=choice(['clip=tiny'],['prompt=a car'])"


@pytest.mark.parametrize("key", ["reward.options.of", "+task.options.mass"])
def test_sweep_files_add_options_of_ones_own_as_the_command_line_does(key):
    assert words.swept(key, "1,2", "config") == "++" + key.lstrip("+") + "=1,2"
    assert words.swept(key, "1,2", "score") == f"{key}=1,2"


def test_judges_are_added_where_there_may_be_some():
    keys = words.to_keys(["judge.x=prompt=a car, red"], {}, program="config")
    assert keys == ["++judge.x='prompt=a car, red'"]
    assert words.to_keys(["judge.x=clip=tiny"], {}) == ["judge.x='clip=tiny'"]
    assert words.swept("seed", "0,1") == "seed=0,1"
    with pytest.raises(ConfigError, match='as seed: "0,1"'):
        words.swept("seed", [0, 1])


def test_letters_that_python_did_not_know_are_read_as_utf_8():
    typed = "prompt=grün".encode().decode("ascii", "surrogateescape")  # LC_ALL=C
    assert jobs(typed) == ["grün"]
    with pytest.raises(ConfigError, match="prompt is no text in UTF-8"):
        words.to_keys([os.fsdecode(b"prompt=gr\xfcn")], {})


def test_a_key_given_twice_is_told(capsys):
    assert words.to_keys(["seed=1", "seed=2"], {}) == ["seed=1", "seed=2"]
    assert capsys.readouterr().out == "seed is given 2 times: seed=2 counts.\n"


def test_pictures_are_words_without_a_key(tmp_path):
    odd = tmp_path / "x=1.png"  # a file, so no setting is meant
    odd.touch()
    typed = ["a, b.png", "seed=1", str(odd), "${seed}.png"]
    keys = words.to_keys(typed, {}, files=True)
    assert keys[0] == "seed=1"
    files = OverridesParser.create().parse_override(keys[1]).value()
    cfg = OmegaConf.create({"files": files})
    assert list(cfg.files) == ["a, b.png", str(odd), "${seed}.png"]


def test_hydras_options_may_stand_anywhere():
    typed = ["seed=0,1", "-m", "task=kneeling", "--cfg", "job"]
    sorted_keys = ["-m", "--cfg", "job", "seed=0,1", "task=kneeling"]
    assert words.to_keys(typed, {}) == sorted_keys


@pytest.mark.parametrize("word", ["kneeling", "~log"])
def test_a_word_that_is_nothing(word):
    with pytest.raises(ConfigError, match=f"{word} is no setting: those are"):
        words.to_keys([word], PLURAL)
