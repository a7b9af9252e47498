"""What the verbs' command lines share: how settings are read, how a program ends."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import MISSING

from vlmrm_exp import cli
from vlmrm_exp.config import ConfigError


@dataclass
class Settings:
    run: str = MISSING
    files: list[str] = field(default_factory=lambda: ["default.png"])
    prompt: list[str] | None = None
    note: str = ""
    clip: list[str] = field(default_factory=lambda: ["tiny"])
    alpha: list[float] | None = None
    episodes: int = 100
    seed: int | None = None
    video: bool = True


TEXT = ("run", "prompt", "note")


def parse(*arguments: str) -> Settings:
    return cli.parse(Settings, ["run=a", *arguments], "files", TEXT)


def test_what_is_not_given_has_its_default() -> None:
    assert parse() == Settings(run="a")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("clip=nano", ["nano"]),
        ("clip=nano,tiny", ["nano", "tiny"]),
        ("clip=[nano, tiny]", ["nano", "tiny"]),
        ("clip=[]", []),
        ("alpha=0.5", [0.5]),
        ("alpha=0,0.5,1", [0.0, 0.5, 1.0]),
        ("alpha=[0]", [0.0]),
        ("alpha=null", None),
        ("episodes=7", 7),
        ("seed=null", None),
        ("seed=3", 3),
        ("video=false", False),
    ],
)
def test_values_and_lists(argument, value) -> None:
    assert getattr(parse(argument), argument.partition("=")[0]) == value


@pytest.mark.parametrize(
    "sentence",
    [
        "a robot, kneeling, its arms raised",
        "a: b = c # d",
        "[red] car",
        "{curly}",
        'it\'s "quoted" \\ ',
        "a ${seed} ${nothing} car",
        "???",
        "nullify",
        "12",
        "",
    ],
)
def test_text_is_taken_as_typed(sentence) -> None:
    assert parse(f"note={sentence}").note == sentence
    assert parse(f"prompt={sentence}").prompt == [sentence]


def test_null_is_none_where_a_text_may_be_missing() -> None:
    assert parse("prompt=a", "prompt=null").prompt is None
    assert parse("note=null").note == "null"


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        ("[one, two]", ["one", "two"]),
        ('["one, two", "${seed}: [3]"]', ["one, two", "${seed}: [3]"]),
        ("['it''s']", ["it's"]),
        ("[yes, 1.50, null]", ["yes", "1.50", "null"]),
        ("[]", []),
    ],
)
def test_texts_in_brackets(typed, texts) -> None:
    assert parse(f"prompt={typed}").prompt == texts


def test_the_last_of_a_kind_counts() -> None:
    assert parse("seed=1", "seed=2").seed == 2


def test_arguments_without_a_key(tmp_path) -> None:
    assert parse("a.png", "seed=1", "b.png").files == ["a.png", "b.png"]
    assert parse("files=a.png", "b.png").files == ["a.png", "b.png"]
    assert parse("${seed}.png").files == ["${seed}.png"]
    odd = tmp_path / "x=1.png"  # a file, so no setting is meant
    odd.touch()
    assert parse(str(odd)).files == [str(odd)]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("-m", "-m is no setting: those are key=value; see --help"),
        ("--clip=nano", "--clip=nano is no setting"),
        ("sed=1", "There is no setting sed: there are run, .*Did you mean seed?"),
        ("/nowhere/a=b.png", "There is no setting /nowhere/a"),
        ("episodes=many", "episodes=many is not possible: .* Integer"),
        ("episodes=1.5", "episodes=1.5 is not possible"),
        ("episodes=", "episodes is empty: give a value"),
        ("episodes=[1", "episodes=.1 cannot be read: give one value"),
        ("episodes=null", "episodes=null is not possible"),
        ('prompt=["a dog", a cat', "prompt=.* is no list that can be read"),
        ("alpha=0,x", "alpha=0,x is not possible: .* Float"),
        ("video=maybe", "video=maybe is not possible"),
        ("clip=nano,,tiny", "clip=nano,,tiny has an empty element"),
        ("clip=${nothing}", "clip=.*nothing. is not possible"),
        ("clip=???", "clip=.* is not possible"),
        ("seed=???", "seed=.* is not possible"),
        ("prompt=[a] or [b]", "no list that can be read: put each element in double"),
        ("prompt=[a: b]", "no list that can be read"),
        ("prompt=[[a]]", "no list that can be read"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(argument, reason) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse(argument)
    assert "\n" not in str(caught.value)


def test_what_has_to_be_given() -> None:
    with pytest.raises(ConfigError, match="run is not given: add run="):
        cli.parse(Settings, ["seed=1"], "files", TEXT)
    with pytest.raises(ConfigError, match="folder is no setting: write run=folder"):
        cli.parse(Settings, ["folder"])


def test_composed_is_the_configuration_of_a_run() -> None:
    config = cli.composed("task=kneeling", "clip=vitl14", "prompt=a, b", "alpha=0.5")
    assert (config.task.name, config.clip.model) == ("kneeling", "ViT-L-14")
    assert (config.prompts, config.alpha) == (["a, b"], 0.5)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("clip=tniy", "clip=tniy does not exist: choose one of .*Did you mean tiny?"),
        ("clip=null", "clip=null is not possible"),
        ("alhpa=1", "no setting alhpa.* Did you mean alpha?"),
        ("alpha=2", "alpha is 2.0, but must lie between 0 and 1"),
        ("alpha=much", "alpha=much is not possible"),
        ("task=gym", "prompt has no value in this task"),
    ],
)
def test_composed_refuses_in_one_sentence(override, reason) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        cli.composed(override)
    assert "\n" not in str(caught.value)


@pytest.fixture
def run_verb(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a verb with arguments; its exit code, and what it said where."""
    before = signal.getsignal(signal.SIGTERM)

    def run(act, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["verb", *arguments])
        try:
            cli.run_verb("verb", "the help\n", act)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


def raising(error: BaseException) -> Callable[[list[str]], None]:
    def act(arguments: list[str]) -> None:
        raise error

    return act


def test_a_verb_gets_its_arguments(run_verb) -> None:
    got: list[str] = []
    assert run_verb(got.extend, "a=1", "b") == (0, "", "")
    assert got == ["a=1", "b"]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_does_nothing_else(run_verb, flag) -> None:
    act = raising(RuntimeError("done"))
    assert run_verb(act, "a=1", flag) == (0, "the help\n", "")


def test_bad_input_ends_with_2_and_one_sentence(run_verb) -> None:
    for error in (ConfigError("No such thing."), FloatingPointError("No such thing.")):
        ended = run_verb(raising(error))
        assert ended == (2, "", "vlmrm_exp.verb: No such thing.\n")


def test_a_file_that_cannot_be_used_is_named(run_verb, tmp_path) -> None:
    def write(arguments: list[str]) -> None:
        (tmp_path / "no" / "such.csv").write_text("")

    code, out, err = run_verb(write)
    assert (code, out) == (2, "")
    assert err == (
        f"vlmrm_exp.verb: {tmp_path}/no/such.csv cannot be used: "
        "No such file or directory.\n"
    )


def test_a_file_for_a_folder_is_told_as_such(run_verb, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "inside"):
        told = run_verb(lambda _, folder=folder: folder.mkdir(parents=True))[2]
        assert told.endswith("cannot be used: a file is where a folder is needed.\n")


def test_a_full_disk_names_no_file_but_the_one_that_is_known() -> None:
    full = OSError(28, "No space left on device")
    told = cli.unusable(full, Path("there"))
    assert told == "there cannot be used: No space left on device"


def test_a_bug_keeps_its_traceback(run_verb) -> None:
    for error in (RuntimeError("a bug"), OSError("a broken pipe, without a file")):
        with pytest.raises(type(error)):
            run_verb(raising(error))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_verb_ends_with_130(run_verb, number) -> None:
    code, _, err = run_verb(lambda _: os.kill(os.getpid(), number))
    assert code == 130
    assert err.strip().startswith("Interrupted: nothing is saved")
