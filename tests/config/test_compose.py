"""Composing: what comes out, and one sentence for whatever goes wrong."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from experiments.paper import index
from steerlens.config import explain
from steerlens.config.compose import (
    HYDRA_VERSION,
    compose,
    compose_jobs,
    compose_tree,
    for_hydra,
    left_open,
    read_config,
    register,
    run_composed,
    to_config,
    usual_values,
)
from steerlens.config.entries import PACKAGE, conf_dir, needed_keys
from steerlens.config.kinds import refuse_ignored
from steerlens.config.overrides import with_experiment
from steerlens.config.registry import load_part
from steerlens.config.schema import RunConfig
from steerlens.config.settings import parse_settings
from steerlens.errors import SteerlensError
from steerlens.results.folder import read_settings
from steerlens.runs.preflight import check


def refusal(*overrides: str) -> str:
    with pytest.raises(SteerlensError) as caught:
        compose(overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def my_conf(tmp_path: Path) -> Path:
    """A user's own configuration folder, with an empty `experiment` group."""
    (tmp_path / "experiment").mkdir()
    return tmp_path


def write_experiment(folder: Path, text: str) -> list[str]:
    """The overrides that choose an experiment of that text."""
    (folder / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    return [f"hydra.searchpath=[file://{folder}]", "experiment=mine"]


def test_the_default_is_smollm2_in_plain_dataclasses() -> None:
    config = compose()
    assert isinstance(config, RunConfig)
    assert (config.model.name, config.sae.name, config.layer) == (
        "smollm2-135m-instruct",
        "smollm2-topk",
        "all",
    )
    assert list(config.score) == ["output"]
    assert isinstance(config.score["output"], load_part("scores", "output").Config)
    assert Path(str(config.sae.path)).parts[-2:] == ("steerlens_smollm2", "smollm2-topk")


@pytest.mark.parametrize(
    "overrides",
    [
        ["score=output", "score.factor=3"],
        ["score.output.factor=3"],
        ["score=all", "score.output.factor=3"],
        ["score=[input,output]", "score.output.factor=3"],
    ],
)
def test_scores_have_one_shape_however_they_are_written(overrides: list[str]) -> None:
    assert compose(overrides).score["output"].factor == 3


def test_metrics_have_settings_of_their_own(tmp_path: Path) -> None:
    config = compose(["metrics.degeneracy.max_period=8", "metrics.success.k=[1,5,20,50]"])
    metrics = config.metrics
    assert (metrics["degeneracy"].max_period, metrics["success"].k) == (8, [1, 5, 20, 50])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    assert read_config(tmp_path).metrics == metrics
    assert parse_settings(config).steering.metrics == metrics
    assert "did you mean 'metrics.degeneracy.max_period'" in refusal("metrics.degeneracy.period=8")
    for words, sentence in (
        (["metrics.success.k=[1]"], "lacks 5"),
        (["metrics.degeneracy.max_period=0"], "must be >= 1"),
        (["steer=none", "metrics.degeneracy.max_period=8"], "would be ignored"),
    ):
        with pytest.raises(SteerlensError, match=sentence):
            check(compose(["steer=grid", *words]))


def test_of_several_scores_each_is_a_file_of_the_group() -> None:
    assert list(compose(["score=[output,input]"]).score) == ["output", "input"]
    assert list(compose(["score=both"]).score) == ["input", "output"]
    assert "score=[output,inptu]" not in refusal("score=[output,inptu]")
    assert "did you mean 'input'" in refusal("score=[output,inptu]")


def test_a_setting_that_is_called_like_its_score_is_found() -> None:
    config = compose(["score=concept", "score.concept=rain"])
    assert config.score["concept"].concept == "rain"


def test_hydra_is_given_the_whole_key_and_in_a_sweep_over_scores_each_job_finds_it() -> None:
    assert for_hydra(["score.factor=5"], multirun=False) == ["score.output.factor=5"]
    words = ["score=output,token_confidence", "score.factor=5,6"]
    assert for_hydra(words, multirun=True) == [words[0], "++score.factor=5,6"]
    factors = [
        {name: score.factor for name, score in to_config(tree).score.items()}
        for tree in compose_jobs(words, multirun=True)
    ]
    assert factors == [{"output": 5}, {"token_confidence": 5}, {"output": 6}]
    with initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION):
        job = hydra_compose("config", ["score=token_confidence", "++score.factor=6"])
    assert to_config(job).score["token_confidence"].factor == 6


def test_settings_of_earlier_versions_are_read_in_the_present_shape(tmp_path: Path) -> None:
    saved = dataclasses.asdict(compose(["score.factor=7"]))
    nested = saved["score"]
    for score in (nested["output"], nested):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**saved, "score": score}))
        assert read_config(tmp_path).score["output"].factor == 7
        assert read_settings(tmp_path)["score"]["factor"] == 7


def test_a_concept_means_the_same_on_the_command_line_in_python_and_for_hydra() -> None:
    assert with_experiment(["layer=3", "concept=a"]) == [
        "experiment=concept",
        "layer=3",
        "concept=a",
    ]
    assert with_experiment(["experiment=demo", "concept=a"]) == ["experiment=demo", "concept=a"]
    config = compose(["concept=water"])
    assert config == replace(compose(["experiment=concept", "concept=water"]), paths=config.paths)
    assert left_open(compose_tree(["experiment=concept"])) == ["concept=???"]


def test_a_file_that_inherits_an_experiment_is_asked_for_what_that_needs(my_conf: Path) -> None:
    words = write_experiment(my_conf, "defaults:\n  - /experiment/concept\nseed: 3")
    assert "concept names nothing" in refusal(*words)
    assert compose([*words, "concept=water"]).features.concept == "water"


def test_a_file_with_a_word_that_its_run_would_ignore_is_refused(my_conf: Path) -> None:
    config = compose(write_experiment(my_conf, "concept: water"))
    assert "add experiment=concept" in str(config.chosen.refusal)


def test_ids_are_given_without_choosing_another_group() -> None:
    assert compose(["features.ids=[1,2,3]"]).features.ids == [1, 2, 3]


def test_the_last_of_two_values_counts() -> None:
    assert compose(["name=a", "name=b"]).name == "b"


def test_values_may_refer_to_others() -> None:
    assert compose(["name=run_${seed}", "seed=3"]).name == "run_3"


def test_two_configurations_do_not_share_a_folder() -> None:
    assert compose().paths.output_dir != compose().paths.output_dir


def test_the_shared_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEERLENS_CACHE", "/somewhere")
    assert compose().paths.cache_dir == "/somewhere"
    monkeypatch.delenv("STEERLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert compose().paths.cache_dir == "/caches/steerlens"


@pytest.mark.parametrize(
    "typed", ["concepts.settings={SSV: {lr: 0.5}}", "concepts.settings.SSV.lr=0.5"]
)
def test_settings_of_a_method_are_added_to_those_of_an_experiment(typed: str) -> None:
    config = compose(["experiment=table1_embedded", typed, "concepts.settings.LAT.orient=true"])
    assert config.concepts is not None
    settings = config.concepts.settings
    assert settings["SSV"] == {"epochs": 3, "lr": 0.5}
    assert settings["LAT"] == {"orient": True}
    assert set(settings) == {"SSV", "ReFT-r1", "LoReFT", "LoRA", "LAT"}


def test_a_job_that_hydra_runs_may_compose_and_keeps_hydras_state(tmp_path: Path) -> None:
    loaders = []

    def job(_tree: DictConfig) -> None:
        before = GlobalHydra.instance().hydra
        assert before is not None
        loaders.append(compose(["model=gpt2-small"]).model.name)
        assert GlobalHydra.instance().hydra is before

    run_composed(compose_tree(["layer=3", f"paths.output_dir={tmp_path}"]), job)
    assert loaders == ["gpt2-small"]
    assert GlobalHydra.instance().hydra is None


def test_registering_twice_changes_nothing() -> None:
    register()
    assert register() == {}


@pytest.mark.parametrize("group", ["features", "score", "tracking"])
def test_every_option_of_a_group_composes(group: str) -> None:
    """Those of model, sae and subject are in `test_presets`, on what is composed once; those of
    experiment below.
    """
    files = sorted((conf_dir() / group).glob("*.yaml"))
    assert files
    for file in files:
        compose_tree([f"{group}={file.stem}"])


def test_the_papers_figures_and_tables_are_as_their_index_writes_them() -> None:
    written = index.files()
    assert len(written) == 13
    assert written == {file: file.read_text() for file in written}


GIVEN = {"concept": "concept=water", "reference.ratings": "reference.ratings=nowhere"}


def test_every_experiment_names_its_command_and_changes_only_what_its_run_reads() -> None:
    for file in (conf_dir() / "experiment").rglob("*.yaml"):
        name = file.relative_to(conf_dir() / "experiment").with_suffix("").as_posix()
        text = file.read_text()
        assert text.startswith("# @package _global_\n")
        assert re.search(rf"#   steerlens (experiment={name}|{name}=)", text)
        given = [word for key, word in GIVEN.items() if key in needed_keys("experiment", name)]
        config = compose([f"experiment={name}", *given])
        assert config.name == name.replace("/", "_")
        refuse_ignored(config, usual_values)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["experiment=criteria_words", "steer=none"],
            [
                "steer=none says steer.factors=null, but experiment=criteria_words sets [1,2,4,8], "
                "which holds; to change it, add steer.factors=null."
            ],
        ),
        (
            ["experiment=table1_embedded", "steer=none"],
            [
                "steer=none says steer.factors=null, but experiment=table1_embedded sets "
                "[0.25,0.5,1,2,4], which holds; to change it, add steer.factors=null."
            ],
        ),
        (["experiment=criteria_words", "steer=none", "steer.factors=null"], []),
        (["experiment=filter", "steer=none"], []),  # it takes an option, and sets nothing of it
        (["experiment=criteria", "score=[output,mean_logit]"], []),
        (["steer=none"], []),
    ],
)
def test_an_option_that_an_experiment_overrules_is_told(
    overrides: list[str], expected: list[str]
) -> None:
    assert list(compose(overrides).chosen.overruled) == expected
    assert parse_settings(compose(overrides)).warnings == expected


def test_an_option_of_ones_own_that_takes_in_another_is_overruled_by_what_both_set(
    tmp_path: Path,
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /experiment/criteria_words\n\nname: mine\n"
    )
    (tmp_path / "steer").mkdir()
    (tmp_path / "steer" / "nothing.yaml").write_text("defaults:\n  - none\n  - _self_\n")
    folder = f"hydra.searchpath=[{tmp_path}]"
    for option in ("none", "nothing"):
        (line,) = compose([folder, "experiment=mine", f"steer={option}"]).chosen.overruled
        assert f"steer={option} says steer.factors=null, but experiment=mine sets" in line


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["modle=x"], "unknown key 'modle'; did you mean 'model'?"),
        (["modle@score=x"], "unknown group 'modle'; did you mean 'model'?"),
        (["model=gemma-2-2"], "unknown model 'gemma-2-2'; did you mean 'gemma-2-2b'"),
        (["steer=on"], "unknown steer 'on'; did you mean 'grid'?"),
        (["steer=off"], "unknown steer 'off'; did you mean 'none'?"),
        (["steer=true"], "unknown steer 'true'; did you mean 'grid'?"),
        (["tracking=off"], "unknown tracking 'off'; did you mean 'disabled'?"),
        (["score=outptu"], "unknown score 'outptu'; did you mean 'output'?"),
        (["sae.pth=x"], "unknown key 'sae.pth'; did you mean 'sae.path'"),
        (["+sae.pth=x"], "unknown key 'sae.pth'; did you mean 'sae.path'"),
        (["++leyer=3"], "unknown key 'leyer'; did you mean 'layer'"),
        (["score.promt=x"], "unknown key 'score.promt'; did you mean 'score.prompt'?"),
        (["prompt=x"], "unknown key 'prompt'; did you mean 'score.prompt'?"),
        (
            ["score=gradient", "gradient.target=promoted"],
            "unknown key 'gradient'; did you mean 'score.gradient'?",
        ),
        (["layer.x=3"], "'layer' is a plain value"),
        (["labels.path=x"], "unknown key 'labels.path'; 'labels' is a plain value, without keys"),
        (["seed.x=1"], "'seed' is a plain value"),
        (["steer.operator.x=1"], "'steer.operator' is a plain value"),
        (["score.input.top_k=3"], "score=input isn't chosen: add 'score=[output,input]'"),
        (["score.output.promt=x"], "did you mean 'score.output.prompt'?"),
        (["score.factor=abc"], "score.factor: 'abc' is no number."),
        (
            ["score=all", "score.factor=3"],
            "'score.output.factor' or 'score.token_confidence.factor'?",
        ),
        (["score=all", "score.outptu.factor=3"], "did you mean 'score.output'?"),
        (["hydra.swep.dir=x"], "did you mean 'hydra.sweep'"),
        (["~modle"], "unknown key 'modle'; did you mean 'model'?"),
        (["seed=abc"], "seed: 'abc' is no whole number."),
        (["seed=null"], "seed: it can't be null"),
        (["choice.kl_budget=abc"], "choice.kl_budget: 'abc' is no number."),
        (["steer.keep_error=5.5"], "steer.keep_error: '5.5' is neither true nor false."),
        (["evaluate.tasks=abc"], "evaluate.tasks: needs a list, like [a,b]."),
        (["score.prompt=[a]"], """if a text is meant, write 'score.prompt="[a]"'"""),
        (["score.prompt=null"], """if a text is meant, write 'score.prompt="null"'"""),
        (["score.prompt= a"], """to keep ' a', write 'score.prompt=" a"'"""),
        (["score.prompt=1e3"], """would become '1000.0'; to keep '1e3'"""),
        (["score.prompt=${nothing}"], "a literal ${ is written"),
        (["model=local"], "model=local needs a value for model.path: add model.path=VALUE."),
        (["model=3"], "model is a group, so its value is the name of one option"),
        (["model=[a,b]"], "model is a group, so its value is the name of one option"),
        (["evaluator=gemma-2-9b"], "choose it with model@evaluator=gemma-2-9b."),
        (["evaluator.dtype=x"], "there is no evaluator yet; choose a model for it with"),
        (["model@evaluator=gema-2-9b"], "unknown model 'gema-2-9b'; did you mean 'gemma-2-9b'"),
        (["model@evaluator=local"], "evaluator=local needs a value for evaluator.path"),
        (["subject=gema-2-2b"], "unknown subject 'gema-2-2b'; did you mean 'gemma-2-2b'"),
        (["subject.x=3"], "'subject' is a group without keys; choose an option with subject=NAME"),
        (
            ["experiment=paper/figre_4"],
            "unknown experiment 'paper/figre_4'; did you mean 'paper/figure_4'",
        ),
        (["experiment=concept"], "concept names nothing; write concept=WORD"),
        (["experiment=together"], "concept names nothing; write concept=WORD"),
        (["experiment=paper/table1_published"], "needs reference.ratings=DIR"),
        (["features=ids"], "features.ids is empty; name features: 'features.ids=[1,2,3]'"),
        (["features=file"], "features=file needs features.file=FILE"),
        (["corpus=hub"], "corpus=hub needs corpus.path=ORGANISATION/NAME"),
        (["experiment=paper"], "unknown experiment 'paper'; did you mean 'paper/"),
        (["model=embedded"], "its successor is model=smollm2-135m-instruct."),
        (["model@evaluator=embedded"], "its successor is model=smollm2-135m-instruct."),
        (["sae=embedded-topk"], "sae=embedded-topk is gone; its successor is sae=smollm2-topk."),
        (["sae=embedded-batchtopk"], "its successor is sae=smollm2-batchtopk."),
        (["subject=embedded"], "its successor is subject=smollm2."),
        (["+experiment=demo"], "write 'experiment=demo', without the +."),
        (["hydra.searchpath=[file:///nowhere]"], "there is no folder '/nowhere'"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(overrides: list[str], expected: str) -> None:
    assert expected in refusal(*overrides)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "sae:\n  pth: x",
            "unknown key 'sae.pth' in experiment/mine.yaml; did you mean 'sae.path'",
        ),
        ("leyer: 3", "unknown key 'leyer' in experiment/mine.yaml; did you mean 'layer'"),
        ("score:\n  promt: x", "unknown key 'score.promt' in experiment/mine.yaml"),
        ("seed: abc", "seed in experiment/mine.yaml: 'abc' is no whole number"),
        ("model: gemma-2-2b", "write '- override /model: gemma-2-2b'"),
        ("subject: gemma-2-2b", "or in a file with '- override /subject: NAME'"),
        ("defaults:\n  - override /model: gema-2-2b", "unknown model 'gema-2-2b'"),
        ("defaults:\n  - override /sae: embedded-topk", "sae=embedded-topk is gone"),
        ("name: [", "mine.yaml"),
    ],
)
def test_a_mistake_in_an_experiment_file_names_the_file(
    my_conf: Path, text: str, expected: str
) -> None:
    assert expected in refusal(*write_experiment(my_conf, text))


def test_an_experiment_in_a_folder_of_ones_own_is_found_and_wins_over_the_defaults(
    my_conf: Path,
) -> None:
    text = "defaults:\n  - override /model: gpt2-small\nseed: 7\nscore:\n  factor: 2"
    config = compose([*write_experiment(my_conf, text), "score.factor=3"])
    assert (config.model.name, config.seed) == ("gpt2-small", 7)
    assert config.score["output"].factor == 3
    assert compose(write_experiment(my_conf, text)).score["output"].factor == 2


def test_a_subject_may_come_before_or_after_an_experiment() -> None:
    words = ["subject=gemma-2-9b", "experiment=filter"]
    for overrides in (words, words[::-1]):
        config = compose(overrides)
        chosen = (config.model.name, config.sae.name, config.corpus.name, config.name)
        assert chosen == ("gemma-2-9b", "gemma-scope-9b-res", "webtext", "filter")


def test_a_subject_on_the_command_line_wins_over_that_of_an_experiment() -> None:
    assert compose(["experiment=gemma_2_2b"]).model.name == "gemma-2-2b"
    for name in ("gemma_2_2b", "demo"):
        config = compose([f"experiment={name}", "subject=pythia-70m"])
        assert (config.model.name, config.features.min_examples) == ("pythia-70m-deduped", 10)


def test_a_model_wins_over_a_subject() -> None:
    words = ["subject=gemma-2-2b", "model=gpt2-small", "sae=gpt2-small-res-jb", "corpus=embedded"]
    config = compose([*words, "model@evaluator=gpt2-small"])
    assert (config.model.name, config.sae.name) == ("gpt2-small", "gpt2-small-res-jb")
    assert config.evaluator is not None
    assert (config.corpus.name, config.evaluator.name) == ("embedded", "gpt2-small")
    assert compose(["subject=gemma-2-2b", "evaluator=null"]).evaluator is None


def test_a_sweep_over_subjects_in_a_folder_of_experiments() -> None:
    words = ["experiment=paper/figure_9,paper/figure_5", "subject=gemma-2-9b,pythia-70m"]
    configs = [to_config(tree) for tree in compose_jobs(words, multirun=True)]
    assert {(config.name, config.model.name) for config in configs} == {
        ("paper_figure_9", "gemma-2-9b"),
        ("paper_figure_9", "pythia-70m-deduped"),
        ("paper_figure_5", "gemma-2-9b"),
    }


def test_an_unknown_method_in_a_nested_score_of_a_file_is_refused(my_conf: Path) -> None:
    (my_conf / "score").mkdir()
    (my_conf / "score" / "mine.yaml").write_text("defaults:\n  - outptu_schema@output\n")
    assert "unknown scoring method 'outptu'" in refusal(
        f"hydra.searchpath=[file://{my_conf}]", "score=mine"
    )


def test_every_value_of_a_sweep_is_checked() -> None:
    assert len(compose_jobs(["seed=1,2", "layer=3"], multirun=True)) == 2
    with pytest.raises(SteerlensError, match="unknown model 'gtp2-small'"):
        compose_jobs(["model=gpt2-small,gtp2-small"], multirun=True)


def test_a_sweep_over_all_experiments_finds_them() -> None:
    assert len(compose_jobs(["experiment=glob(*)"], multirun=True)) >= 2


def test_a_sweep_over_no_experiment_is_refused() -> None:
    with pytest.raises(SteerlensError, match="matches nothing"):
        compose_jobs(["experiment=glob(paper*)"], multirun=True)


def test_a_sweep_in_an_experiment_file_is_checked_too(my_conf: Path) -> None:
    text = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,x"
    with pytest.raises(SteerlensError, match="seed: 'x' is no whole number"):
        compose_jobs(write_experiment(my_conf, text))


def test_the_tree_shows_the_folder_that_hydra_will_use() -> None:
    tree = compose_tree(["paths.output_dir=here"])
    assert tree.hydra.run.dir == tree.hydra.sweep.dir == "here"
    assert OmegaConf.is_missing(tree.hydra.runtime, "output_dir")


def test_an_installed_package_brings_its_own_conf(tmp_path: Path) -> None:
    copy = tmp_path / "steerlens"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(conf_dir(), copy / "conf", dirs_exist_ok=True)
    code = (
        "from steerlens.config import compose as c, entries as e; print(e.conf_dir()); c.compose()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == str(copy / "conf")


MINE = '''"""Mine: every feature is equal."""
from dataclasses import dataclass
from steerlens.scores import ScoreConfig

@dataclass
class Config(ScoreConfig):
    method: str = "mine"
    strength: float = 1.0

def score(subject, features, config, run):
    return {}
'''


@pytest.fixture
def my_method(my_conf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution with a scoring method, and a YAML file for it."""
    (my_conf / "mine_scores.py").write_text(MINE)
    info = my_conf / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[steerlens.scores]\nmine = mine_scores\n")
    (my_conf / "score").mkdir()
    (my_conf / "score" / "mine.yaml").write_text("defaults:\n  - mine_schema\n  - _self_\n")
    monkeypatch.setenv("PYTHONPATH", str(my_conf))
    return my_conf


def steerlens(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steerlens", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_method_of_ones_own_needs_no_change_of_ours(my_method: Path) -> None:
    search = f"hydra.searchpath=[file://{my_method}]"
    shown = steerlens(search, "score=mine", "score.strength=2", "--cfg", "job", "-p", "score")
    assert shown.stdout.splitlines()[1:] == ["method: mine", "strength: 2.0"]
    listed = steerlens("list", "scores", "mine")
    assert listed.stdout.split() == ["score=mine", "Mine:", "every", "feature", "is", "equal."]
    typo = steerlens(search, "score=mine", "score.strenth=2")
    assert typo.returncode == 1
    assert "did you mean 'score.strength'?" in typo.stderr


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import nothing_like_this", "ModuleNotFoundError"),
        pytest.param("raise SystemExit(3)", "SystemExit: 3", marks=pytest.mark.slow),
    ],
)
def test_a_method_that_cannot_be_imported_is_told_only_to_those_who_ask(
    my_method: Path, code: str, error: str
) -> None:
    (my_method / "mine_scores.py").write_text(code)
    assert steerlens("--cfg", "job").returncode == 0
    asked = steerlens(f"hydra.searchpath=[file://{my_method}]", "score=mine")
    assert asked.returncode == 1
    assert f"scoring method 'mine' (mine_scores) can't be imported: {error}" in asked.stderr
    assert "can't be imported" in steerlens("list", "scores").stdout


ASKS_FOR_A_SWEEP = """# @package _global_
layer: 3
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      seed: 1,2
      score.factor: 5,10
"""


def test_the_command_line_replaces_what_an_experiment_sweeps_over(my_conf: Path) -> None:
    words = write_experiment(my_conf, ASKS_FOR_A_SWEEP)

    def found(*overrides: str) -> list[tuple[int, float]]:
        configs = [to_config(tree) for tree in compose_jobs([*words, *overrides])]
        return sorted((config.seed, config.score["output"].factor) for config in configs)

    # One job for every value, not for every combination: see `overrides.jobs`.
    assert found() == [(1, 5), (1, 10), (2, 5)]
    assert found("seed=7,8,9") == [(7, 5), (7, 10), (8, 5), (9, 5)]
    assert found("seed=7") == [(7, 5), (7, 10)]


def test_several_values_need_a_multirun_or_an_experiment_that_is_one(my_conf: Path) -> None:
    words = write_experiment(my_conf, ASKS_FOR_A_SWEEP)
    assert len(compose_jobs([*words, "layer=1,2"])) == 4
    with pytest.raises(SteerlensError, match="add -m"):
        compose_jobs(["layer=1,2"])


@pytest.mark.parametrize(
    ("group", "name", "expected"),
    [
        ("model", "embedded", "model=embedded is gone; its successor is model=smollm2-135m-"),
        ("sae", "embedded-topk", "its successor is sae=smollm2-topk."),
        ("subject", "embedded", "its successor is subject=smollm2."),
    ],
)
def test_names_of_earlier_versions_are_answered_with_the_new_ones(
    group: str, name: str, expected: str
) -> None:
    error = MissingConfigException("gone", f"{group}/{name}", options=["gpt2-small"])
    assert expected in str(explain.failure(error, [], {}))
