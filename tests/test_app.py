"""What the command lines of all programs share: how words are read, how they end."""

import os
import signal
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from vlmrm_exp import composition
from vlmrm_exp.composition import Composed
from vlmrm_exp.config import ConfigError, UnavailableError, conf_dir
from vlmrm_exp.files import unusable, write_json
from vlmrm_exp.words import to_keys


def test_composed_again_is_the_same_but_for_what_is_changed():
    composed = composition.compose(
        "config", "task=kneeling", "clip=vitl14", "alpha=0.5"
    )
    again = composed.again("clip=nano").cfg
    assert (again.task.name, again.alpha, again.clip.name) == ("kneeling", 0.5, "nano")
    assert composed.cfg.clip.name == "vitl14"


@pytest.mark.slow
def test_a_program_composes_options_once_and_gets_what_hydra_composes():
    """Of a sweep's jobs, say, in any order, on top of what was composed before."""
    options = (
        "task=splits",
        "experiment=short",
        "wording=vague",
        "judge=[model,words]",
    )
    jobs = [
        (*options, "seed=1", "alpha=0.5"),
        ("seed=2", *options, "prompt='a, \\${b}'"),
        (
            "stages=[{prompt: x, quantile: 0.9}]",
            "algo.hidden=[8]",
            *options,
            "judge.far=alpha=1",
        ),
        ("judge.model=null", "compute.workers=0", *options, "render=fast"),
        (*options, "compute=cpu", "clip=nano", "clip.batch_size=3"),
        options,
    ]
    keys = [to_keys(list(job), {}, program="config") for job in jobs]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        before = composition._compose.cache_info().misses
        found = [composition.compose("config", *job).cfg for job in keys]
        assert composition._compose.cache_info().misses - before == 3
        for cfg, job in zip(found, keys, strict=True):
            assert OmegaConf.to_yaml(cfg) == OmegaConf.to_yaml(
                hydra.compose("config", [*job])
            )
        assert OmegaConf.to_yaml(
            hydra.compose("config", ["++hydra={run: {dir: x}}"])
        ) == (
            OmegaConf.to_yaml(
                composition.compose("config", "++hydra={run: {dir: x}}").cfg
            )
        )
        with pytest.raises(ConfigError, match="no setting alhpa"):
            composition.compose("config", *keys[-1], "alhpa=1")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("clip=tniy", "clip=tniy does not exist: choose one of .*Did you mean tiny?"),
        (
            "hydra/launcher=joblib",
            "hydra/launcher=joblib does not .*hydra-joblib-launch",
        ),
        ("alhpa=1", "no setting alhpa.* Did you mean alpha?"),
        ("alpha=much", "alpha=much is not possible: give a number."),
        ("seed=1.5", "seed=1.5 is not possible: give a whole number."),
        ("compute.overlap=maybe", "possible: give true or false."),
        ("env_steps=null", "possible: give a value."),
        ("algo.hidden=3", "possible: give a list, as"),
        ("task.options=3", "possible: give a mapping, as"),
        ("stages=[3]", "possible: give mappings, as"),
        (
            "stages=[{quantil: 0.5}]",
            "no setting stages.quantil: see .* Did you mean stages.quantile?",
        ),
        ("task.camera=[fixed,side]", "Views are joined with"),
    ],
)
def test_what_hydra_refuses_is_one_sentence(key, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        composition.compose("config", key)
    assert "\n" not in str(caught.value)


def raising(error: BaseException):
    def act(composed: Composed) -> None:
        raise error

    return act


IN_TMP = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none")


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_program_gets_what_was_asked(start):
    got = []
    assert start(["seed=3", *IN_TMP], got.append).code == 0
    assert got[0].cfg.seed == 3
    assert "hydra" not in got[0].cfg
    assert "seed=3" in got[0].keys
    assert got[0].folder == Path.cwd()


def test_bad_input_ends_with_2_and_one_sentence(start):
    ended = start(IN_TMP, raising(ConfigError("No such thing.")))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith(": No such thing.\n")
    assert ended.err.count("\n") == 1


def test_what_is_refused_leaves_no_folder(start):
    ended = start(["alpha=2"], raising(AssertionError("begun")))
    assert ended.code == 2
    assert "alpha is 2.0, but must lie between 0 and 1." in ended.err
    assert list(Path().iterdir()) == []


def test_a_number_that_is_not_finite_ends_with_1(start):
    assert start(IN_TMP, raising(FloatingPointError("It became nan."))).code == 1


def test_a_file_that_cannot_be_used_is_named(start, tmp_path):
    def write(composed) -> None:
        (tmp_path / "no" / "such.csv").write_text("")

    ended = start(IN_TMP, write)
    assert ended.code == 2
    told = f"{tmp_path}/no/such.csv cannot be used: No such file or directory.\n"
    assert ended.err.endswith(told)


def test_a_file_for_a_folder_is_told_as_such(start, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "inside"):
        ended = start(IN_TMP, lambda _, f=folder: f.mkdir(parents=True))
        told = "cannot be used: a file is where a folder is needed.\n"
        assert ended.err.endswith(told)


def test_a_file_of_ours_is_named_as_it_will_be(tmp_path):
    (tmp_path / "file.json").mkdir()
    (tmp_path / "file.json" / "inside").touch()
    with pytest.raises(OSError, match="directory") as raised:
        write_json(tmp_path / "file.json", {})
    assert raised.value.filename == str(tmp_path / "file.json")


def test_a_path_of_nobodys_home_is_one_sentence(start):
    ended = start(IN_TMP, lambda _: Path("~nobody-xyz/x").expanduser())
    assert ended.code == 2
    assert "begins with ~ and the name of nobody here" in ended.err
    assert ended.err.count("\n") == 1


def test_a_full_disk_names_no_file_but_the_one_that_is_known():
    full = OSError(28, "No space left on device")
    assert unusable(full, Path("there")) == (
        "there cannot be used: No space left on device"
    )


@pytest.mark.slow
def test_no_memory_and_a_full_disk_are_told(start):
    torch = RuntimeError("DefaultCPUAllocator: can't allocate memory: 40 GB")
    for error, told in (
        (MemoryError(), "not enough memory for this (MemoryError)"),
        (torch, "not enough memory for this (DefaultCPUAllocator"),
        (OSError(28, "No space left on device"), "The disk is full"),
        (OSError(5, "Input/output error", "/there"), "/there cannot be used: Input/o"),
        (UnavailableError("The hub is away."), "The hub is away."),
    ):
        ended = start(IN_TMP, raising(error))
        assert ended.code == 1  # for the same command may do better elsewhere or later
        assert told in ended.err
        assert ended.err.count("\n") == 1


def test_what_hydra_raises_in_its_own_way_is_told(start):
    ended = start(["--resolve"], raising(AssertionError("begun")))
    assert ended.err.endswith("only be used in conjunction with --cfg or --help\n")
    assert (ended.code, ended.err.count("\n")) == (2, 1)


def test_a_bug_keeps_its_traceback(start):
    for error in (RuntimeError("a bug"), OSError("a broken pipe, without a file")):
        with pytest.raises(type(error)):
            start(IN_TMP, raising(error))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_program_ends_with_130(start, number):
    ended = start(IN_TMP, lambda _: os.kill(os.getpid(), number))
    assert ended.code == 130
    assert "Interrupted: nothing is saved" in ended.err


def test_help_lists_what_people_choose_and_nothing_internal(start):
    ended = start(["--help"], raising(AssertionError("begun")))
    assert ended.code == 0
    for word in ("kneeling", "bigG", "predicate", "experiment: paper", "env_steps:"):
        assert word in ended.out
    for word in ("_humanoid", "preset", "recipe", "_base", "schema"):
        assert word not in ended.out
