"""The command line, with a stand-in for the run itself."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from steerlens.cli import main
from steerlens.config.schema import RunConfig
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES
from steerlens.results.status import Status
from tests.support.frames import frame

GPT2 = ["model=gpt2-small", "sae=gpt2-small-res-jb", "tracking.mode=disabled"]

pytestmark = pytest.mark.usefixtures("undrawn_figures")

HEAVY = ("torch", "transformer_lens", "sae_lens", "transformers", "wandb", "pandas", "matplotlib")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[RunConfig]:
    """The configurations that reached the run; seeds 13, 14 and 15 fail in different ways."""
    configs: list[RunConfig] = []

    def run(config: RunConfig, kept: object = None) -> float:
        configs.append(config)
        if config.seed == 13:
            raise ValueError("an unlucky\nnumber")
        if config.seed == 14:
            raise SteerlensError("nothing to score.")
        if config.seed == 15:
            raise KeyboardInterrupt
        if config.seed == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        if config.seed == 17:
            raise SteerlensError("the SAE of \x1b]0;PWNED\x07 in C:\\models is none.")
        if kept:  # a job: its sweep is joined
            folder = Path(config.paths.output_dir)
            with Status(folder):
                FEATURES.write(frame(range(1), seed=config.seed), folder)
        return float(config.seed)

    module = ModuleType("steerlens.runs.run")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "steerlens.runs.run", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # set by `main`, so that it is undone here
    return configs


@pytest.fixture
def steerlens(
    ran: list[RunConfig], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Types a command; returns the exit code and what stdout and stderr show."""

    def type_in(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return type_in


Steerlens = Callable[..., tuple[int, str, str]]


def status(folder: Path) -> dict[str, str]:
    return json.loads((folder / "status.json").read_text())


def test_the_run_gets_a_plain_configuration(steerlens: Steerlens, ran: list[RunConfig]) -> None:
    code, _, err = steerlens(
        *GPT2,
        "layer=3",
        "score=output",
        'score.prompt="From my experience,"',
        "score.factor=10",
        "features=all",
        "features.ids=[1,2,3]",
        "tracking.mode=disabled",
        "device=cpu",
        "dtype=float32",
        "seed=0",
    )
    assert (code, err) == (0, "run, gpt2-small with gpt2-small-res-jb, layer 3 ...\n")
    (config,) = ran
    assert type(config) is RunConfig
    assert config.score["output"].prompt == "From my experience,"
    assert (config.layer, config.features.ids) == (3, [1, 2, 3])


def test_the_default_folder_lies_under_outputs_and_is_never_shared(
    steerlens: Steerlens, ran: list[RunConfig], tmp_path: Path
) -> None:
    for _ in range(2):
        steerlens(*GPT2, "name=mine")
    folders = {Path(config.paths.output_dir) for config in ran}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {tmp_path / "outputs" / "mine"}
    assert set((tmp_path / "outputs" / "mine").iterdir()) == folders


def test_the_named_folder_is_the_run_folder_and_the_only_one(
    steerlens: Steerlens, ran: list[RunConfig], tmp_path: Path
) -> None:
    assert steerlens(*GPT2, "paths.output_dir=here/run")[0] == 0
    assert ran[0].paths.output_dir == str(tmp_path / "here" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert list((tmp_path / "here" / "run").iterdir()) == []


def test_hydras_own_way_to_name_the_folder_works_too(
    steerlens: Steerlens, ran: list[RunConfig], tmp_path: Path
) -> None:
    steerlens(*GPT2, "hydra.run.dir=there")
    assert ran[0].paths.output_dir == str(tmp_path / "there")


def test_a_run_is_composed_once(
    steerlens: Steerlens, ran: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[str]] = []
    load = ConfigLoaderImpl.load_configuration

    def counted(self: Any, **arguments: Any) -> Any:
        loaded.append(arguments["overrides"])
        return load(self, **arguments)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    words = [*GPT2, "seed=3", "hydra.output_subdir=.hydra", "paths.output_dir=run"]
    assert steerlens(*words)[0] == 0
    assert loaded == [words]
    assert ran[0].seed == 3
    assert "seed=3" in Path("run/.hydra/overrides.yaml").read_text()


@pytest.mark.slow
def test_each_job_of_a_multirun_has_a_folder_of_its_own(
    steerlens: Steerlens, ran: list[RunConfig], tmp_path: Path
) -> None:
    code, out, _ = steerlens("-m", *GPT2, "seed=1,2", "paths.output_dir=sweep")
    assert code == 0
    assert "#1 : " in out
    assert [config.paths.output_dir for config in ran] == [
        str(tmp_path / "sweep" / "0"),
        str(tmp_path / "sweep" / "1"),
    ]


def test_jobs_have_their_sweep_as_wandb_group(steerlens: Steerlens, ran: list[RunConfig]) -> None:
    steerlens("-m", *GPT2, "seed=1,2", "name=mine", "paths.output_dir=sweep")
    assert [config.tracking.group for config in ran] == ["mine sweep"] * 2
    steerlens("-m", *GPT2, "seed=3", "tracking.group=ours")
    assert ran[-1].tracking.group == "ours"
    steerlens(*GPT2)
    assert ran[-1].tracking.group is None


def test_a_jobs_result_is_what_its_sweeper_gets(
    steerlens: Steerlens, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra.core.utils import JobReturn

    got: list[object] = []
    plain = JobReturn.return_value.fget

    def watched(self: JobReturn) -> object:
        got.append(plain(self))  # type: ignore[misc]
        return got[-1]

    monkeypatch.setattr(JobReturn, "return_value", JobReturn.return_value.getter(watched))
    steerlens("-m", *GPT2, "seed=1,2")
    assert got == [1.0, 2.0]


def test_plans_of_several_runs_are_no_sweep(
    steerlens: Steerlens, ran: list[RunConfig], tmp_path: Path
) -> None:
    assert steerlens("-m", *GPT2, "seed=1,2", "plan=true", "paths.output_dir=sweep")[0] == 0
    assert [config.plan for config in ran] == [True, True]
    assert not (tmp_path / "sweep").exists()


def test_flags_may_stand_between_overrides(steerlens: Steerlens, ran: list[RunConfig]) -> None:
    assert steerlens(*GPT2, "-m", "seed=1,2")[0] == 0
    assert [config.seed for config in ran] == [1, 2]


@pytest.mark.slow
def test_the_other_jobs_go_on_when_one_fails(steerlens: Steerlens, ran: list[RunConfig]) -> None:
    code, _, err = steerlens("--multirun", *GPT2, "seed=1,13,14,2")
    assert code == 1
    assert [config.seed for config in ran] == [1, 13, 14, 2]
    assert [line for line in err.splitlines() if not line.endswith(" ...")] == [
        "steerlens: ValueError: an unlucky number; run again with debug=true for the traceback.",
        "steerlens: nothing to score.",
    ]


def test_a_failed_run_is_one_sentence_without_a_traceback(steerlens: Steerlens) -> None:
    code, out, err = steerlens(*GPT2, "seed=14")
    assert (code, out) == (1, "")
    assert err.splitlines()[1:] == ["steerlens: nothing to score."]


def test_hydra_leaves_the_loggers_of_other_libraries_alone(steerlens: Steerlens) -> None:
    steerlens("-m", *GPT2)
    assert not logging.getLogger("matplotlib").isEnabledFor(logging.INFO)


def test_debug_shows_the_traceback(steerlens: Steerlens) -> None:
    code, _, err = steerlens(*GPT2, "seed=14", "debug=true")
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert "Traceback" in steerlens("modle=x", "debug=true")[2]


def test_an_interrupt_has_the_shells_exit_code(steerlens: Steerlens) -> None:
    code, out, err = steerlens(*GPT2, "seed=15")
    assert (code, out) == (130, "")
    assert err.splitlines()[1:] == ["steerlens: interrupted"]


def test_sigterm_ends_with_its_exit_code(
    steerlens: Steerlens, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        code, _, err = steerlens(*GPT2, "seed=16")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 143
    assert "\nsteerlens: ended by SIGTERM; what is finished is kept" in err


def test_a_server_that_sigterm_ends_keeps_nothing(
    steerlens: Steerlens, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ModuleType("steerlens.runs.play")
    server.play = lambda words: os.kill(os.getpid(), signal.SIGTERM)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "steerlens.runs.play", server)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        code, _, err = steerlens("play")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 143
    assert err.splitlines()[-1] == "steerlens: ended by SIGTERM."


@pytest.mark.parametrize("debug", ["false", "true"])
def test_escapes_in_errors_are_shown_not_sent(steerlens: Steerlens, debug: str) -> None:
    code, _, err = steerlens(*GPT2, "seed=17", f"debug={debug}")
    assert code == 1
    assert "\x1b" not in err
    assert "\x07" not in err
    assert r"the SAE of \x1b]0;PWNED\x07 in C:\models is none." in err


def test_escapes_in_warnings_are_shown_not_sent(
    steerlens: Steerlens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def warn(*_words: object) -> int:
        logging.getLogger("steerlens.somewhere").warning("a plugin says %s", "\x1b]0;PWNED\x07")
        return 0

    monkeypatch.setattr("steerlens.cli._dispatch", warn)
    for _ in range(2):  # one line each, also in a process that runs several commands
        assert steerlens() == (0, "", "a plugin says \\x1b]0;PWNED\\x07\n")
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    assert steerlens() == (0, "", "")


def test_a_folder_of_somebody_elses_is_not_written_to(
    steerlens: Steerlens, ran: list[RunConfig], tmp_path: Path
) -> None:
    mine = tmp_path / "paper" / "figures"
    mine.mkdir(parents=True)
    for words in ([], ["-m"], ["layer=99"], ["plan=true"]):
        code, _, err = steerlens(*words, *GPT2, "seed=1", "paths.output_dir=paper")
        assert code == 1
        assert "paper isn't the folder of a run and isn't empty (it holds figures)" in err
    assert ran == []
    assert [*(tmp_path / "paper").iterdir()] == [mine]


@pytest.mark.parametrize("wrong", ["layer=99", "seed=abc", "sae.pth=x", "score.prompt=a,", "=3"])
def test_refused_input_leaves_a_failed_status_in_the_named_folder(
    steerlens: Steerlens, ran: list[RunConfig], tmp_path: Path, wrong: str
) -> None:
    code, out, err = steerlens(*GPT2, wrong, "paths.output_dir=here")
    assert (code, out, ran) == (1, "", [])
    assert err.startswith("steerlens: ")
    assert err.count("\n") == 1
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["status.json"]
    assert status(tmp_path / "here") == {"state": "failed", "reason": err[11:-1]}


def test_refused_input_leaves_nothing_without_a_named_folder(
    steerlens: Steerlens, tmp_path: Path
) -> None:
    steerlens(*GPT2, "layer=99")
    assert list(tmp_path.iterdir()) == []


def test_refused_input_does_not_spoil_a_finished_run(steerlens: Steerlens, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"state": "done"}')
    assert steerlens("seed=abc", f"paths.output_dir={tmp_path}")[0] == 1
    assert status(tmp_path) == {"state": "done"}


def test_a_job_that_cannot_work_fails_and_the_others_run(
    steerlens: Steerlens, ran: list[RunConfig], tmp_path: Path
) -> None:
    code, out, err = steerlens("-m", *GPT2, "layer=1,12,2", "paths.output_dir=sweep")
    assert code == 1
    assert [config.layer for config in ran] == [1, 2]
    assert err.count("layer 12 doesn't exist") == 1
    assert "Job 1 failed: layer 12 doesn't exist" in out
    assert status(tmp_path / "sweep" / "1")["state"] == "failed"


@pytest.mark.parametrize("wrong", ["layer=12,13", "layer=1,2 seed=abc", "layer=1,2 modle=x"])
def test_a_sweep_in_which_no_job_can_work_starts_none(
    steerlens: Steerlens, ran: list[RunConfig], wrong: str
) -> None:
    code, _, err = steerlens("-m", *GPT2, *wrong.split())
    assert (code, ran) == (1, [])
    assert err.count("\n") == 1


def test_an_unwritable_folder_is_one_sentence(steerlens: Steerlens, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below", "/proc/nothing"):
        code, _, err = steerlens(*GPT2, f"paths.output_dir={folder}")
        assert code == 1
        assert err.startswith("steerlens: can't write ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lst"], "unknown verb 'lst'; did you mean 'steerlens list'?"),
        (["demo"], "unknown verb 'demo'; did you mean experiment=demo?"),
        (["gpt2-small"], "unknown verb 'gpt2-small'; did you mean model=gpt2-small?"),
        (["model"], "unknown verb 'model'; did you mean model=OPTION?"),
        (["version"], "unknown verb 'version'; did you mean: steerlens --version"),
        (["concept", "layer=5"], "did you mean: steerlens concept=WORD layer=5"),
        (["concept", "sea"], "did you mean: steerlens concept=sea"),
        (["frobnicate"], "verbs are compare, examples, export, join, list, play, report"),
        (["list"], "usage: steerlens list"),
        (["list", "models", "a", "b"], "usage: steerlens list"),
        (["report"], "usage: steerlens report DIR"),
        (["--modle"], "unrecognized arguments: --modle; see `steerlens --help`."),
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["-m", "seed"], "'seed' is no key=value"),
        (["--config-dir", "/nowhere", "--cfg", "job"], "there is no folder '/nowhere'"),
        (["--config-dir", "a", "hydra.searchpath=[b]"], "either --config-dir or hydra.searchpath"),
    ],
)
def test_wrong_words_are_told_in_one_sentence(
    steerlens: Steerlens, words: list[str], expected: str
) -> None:
    code, _, err = steerlens(*words)
    assert code == 1
    assert expected in err
    assert err.count("\n") == 1


def test_report_gets_its_folder(
    steerlens: Steerlens, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders: list[Path] = []
    module = ModuleType("steerlens.report")
    module.report = folders.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "steerlens.report", module)
    assert steerlens("report", str(tmp_path))[0] == 0
    assert folders == [tmp_path]


def test_the_configuration_is_shown_even_with_values_missing(steerlens: Steerlens) -> None:
    code, out, _ = steerlens("--cfg", "job", "model=local", "seed=7")
    assert code == 0
    assert "seed: 7\n" in out
    assert "path: ???" in out
    assert steerlens("--cfg", "job", "--resolve", "-p", "model")[1].count("${") == 0
    assert steerlens("--cfg", "job", "leyer=3")[0] == 1


def test_hydras_information_and_help_are_shown(steerlens: Steerlens) -> None:
    # In a process of its own: Hydra prints this through loggers that earlier runs have changed.
    command = [sys.executable, "-m", "steerlens", "--info", "defaults", "experiment=demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "experiment/demo" in done.stdout
    assert "Hydra" in steerlens("--hydra-help")[1]


def test_shell_completion_knows_the_groups_and_keys(
    steerlens: Steerlens, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "hydra_bash_completion" in steerlens("--shell-completion", "install=bash")[1]
    monkeypatch.setenv("COMP_LINE", "steerlens model=gpt")
    assert "model=gpt2-small" in steerlens("-sc", "query=bash")[1]


def test_a_folder_of_ones_own_yaml_can_be_added_by_a_flag(
    steerlens: Steerlens, ran: list[RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\npath: me/gpt2\n")
    sae = ["sae=release", "sae.release=me/saes", "sae.sae_id=one"]
    assert steerlens("-m", "--config-dir", str(tmp_path), "model=mine", *sae)[0] == 0
    assert ran[0].model.path == "me/gpt2"


def test_an_experiment_file_can_hold_a_sweep(
    steerlens: Steerlens, ran: list[RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "sweep.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /model: gpt2-small\n  - override /sae: gpt2-small-res-jb\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
    )
    code, _, _ = steerlens("--config-dir", str(tmp_path), "experiment=sweep", "layer=3")
    assert code == 0
    assert [(config.seed, config.layer) for config in ran] == [(1, 3), (2, 3)]


def test_help_and_version_are_our_own(steerlens: Steerlens) -> None:
    code, out, _ = steerlens("-h")
    assert code == 0
    for word in ("gemma-scope-2b-res", "steerlens list", "outputs/", "plan=true"):
        assert word in out
    assert steerlens("seed=3", "--help")[1] == steerlens("help")[1] == out
    assert steerlens("--version")[1].startswith("steerlens ")


LIGHT = [
    ["--help"],
    ["list", "models"],
    ["list", "releases", "gpt2-small-res-jb"],
    ["list", "scores"],
    ["--cfg", "job"],
    ["modle=x"],
    [*GPT2, "layer=99"],
    [*GPT2, "features.ids=[-1]"],
    ["nonsense"],
]
"""Commands that need no model."""

PROBE = f"""
import contextlib, io, sys
from steerlens.cli import main
for words in {LIGHT!r}:
    sys.argv = ["steerlens", *words]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main()
    imported = [name for name in {HEAVY!r} if name in sys.modules]
    print(words, imported)
    assert not imported
"""


def test_what_needs_no_model_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [f"{words} []" for words in LIGHT], done.stderr


def test_the_module_is_the_same_command() -> None:
    command = [sys.executable, "-m", "steerlens", "list", "models", "gpt2"]
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
    assert done.stdout.startswith("model=gpt2-small ")


def test_what_was_asked_for_is_told_at_once_and_in_a_pipe_unless_it_is_refused(
    steerlens: Steerlens, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, err = steerlens(*GPT2, "layer=3")
    assert (out, err.splitlines()[1:]) == ("", [])
    assert err.endswith("gpt2-small with gpt2-small-res-jb, layer 3 ...\n")
    assert steerlens(*GPT2, "layer=99")[2].startswith("steerlens: layer 99")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    _, _, err = steerlens(*GPT2, "layer=99")
    first, refused = err.splitlines()
    assert first.endswith("gpt2-small with gpt2-small-res-jb, layer 99 ...")
    assert refused.startswith("steerlens: layer 99")
    _, _, err = steerlens(*GPT2, "layer=3,4", "-m")
    assert err.startswith("a sweep, whose first job is ")
