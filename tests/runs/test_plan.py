"""A plan: from what was measured before and what lies in the cache, without the model."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from steerlens.config.compose import compose
from steerlens.config.registry import load_part, parts_of
from steerlens.config.schema import SLOW_METHODS, WITHOUT_FACTOR
from steerlens.config.settings import parse_settings
from steerlens.errors import SteerlensError
from steerlens.results import FEATURES
from steerlens.runs.plan.price import price
from steerlens.runs.preflight import check
from steerlens.runs.run import run
from steerlens.steering.methods.arms import EDITS, PROMPT
from steerlens.steering.methods.fitting import budget_of_method
from tests.support.tiny import D_MODEL, D_SAE, save_sae

pytestmark = pytest.mark.usefixtures("undrawn_figures")

SCORES = ("score.null_directions=9",)
STEERS = (*SCORES, "generation.max_new_tokens=4", "generation.n_prompts=2")
CONCEPTS = (
    *("concepts=embedded", "judge=lexical", "concepts.n=2", "concepts.n_prompts=4"),
    *("steer=axbench", "steer.factors=[1,2,4]"),
)
LOADERS = ("torch", "sae_lens", "transformer_lens")

Rows = Callable[..., dict[str, str]]


@pytest.fixture
def words(tiny_folder: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """Overrides of a run on two layers."""
    for layer in (1, 3):
        save_sae(tmp_path / "saes" / str(layer), "topk", layer=layer, seed=layer, k=2)
    return [
        *("model=local", f"model.path={tiny_folder('llama')}", "tracking=disabled"),
        *("sae=local", f"sae.path={tmp_path / 'saes'}", "device=cpu", "dtype=float32"),
        *(f"paths.cache_dir={tmp_path / 'cache'}", f"paths.output_dir={tmp_path / 'out'}"),
    ]


@pytest.fixture
def plan(words: list[str], capsys: pytest.CaptureFixture[str]) -> Rows:
    """The rows of a plan, by their names."""

    def planned(*more: str) -> dict[str, str]:
        config = compose([*words, "plan=true", *more])
        check(config)
        capsys.readouterr()
        run(config)
        lines = capsys.readouterr().out.splitlines()
        return {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}

    return planned


def test_a_corpus_that_nothing_reads_is_told_before_the_run_too(plan: Rows) -> None:
    assert "corpus=embedded:" not in plan(*SCORES)
    rows = plan(*SCORES, "corpus.n_tokens=500")
    assert rows["corpus=embedded:"] == "nothing in this run reads a corpus."


def test_rates_are_those_that_were_measured_before(plan: Rows) -> None:
    steers = (*STEERS, "steer.factors=[2,8]")
    assert plan(*steers)["time"].startswith("not measured yet; plan=measure")
    assert "is not measured yet" in plan(*steers)["steering"]
    measured = plan(*steers, "plan=measure")
    assert measured["time"].endswith(" of scoring")
    assert ", about " in measured["steering"]
    assert plan(*steers) == measured
    assert plan(*STEERS, "steer.factors=[1,2,4]")["steering"].startswith(
        f"up to {2 * D_SAE * 4 * 2:,} t"
    )
    other = plan(*steers, "score.prompt=Another prompt")
    assert other["time"].startswith("not measured yet")
    other = plan(*steers, "lens=effect")  # many forwards of a feature's own
    assert other["time"].startswith("not measured yet")
    assert other["lens"] == "effect, every feature amplified after 8 neutral prompts"
    other = plan(*steers, "metrics.drift.enabled=true")  # half as much again of a text
    assert "is not measured yet" in other["steering"]


def test_the_lens_and_the_judge_are_planned(plan: Rows, tmp_path: Path) -> None:
    asked = (*SCORES, "lens=jacobian", "corpus.n_tokens=900")
    assert plan(*asked)["lens"] == (
        "jacobian, computed once for all layers from 32 sequences of 64 tokens of corpus=embedded"
    )
    file = tmp_path / "lens.safetensors"
    J_SDD = np.zeros((2, D_MODEL, D_MODEL), np.float32)
    save_file({"J": J_SDD, "source_layers": np.array([1, 3])}, file)
    assert plan(*SCORES, "lens=jacobian", f"lens.path={file}")["lens"] == (
        f"jacobian, read from {file}"
    )
    judged = (
        *("judge=openai", "judge.model=m", "judge.base_url=http://127.0.0.1:9/v1"),
        *("choice.rule=judge", "concept=w60"),
    )
    rows = plan(*judged, "generation.max_new_tokens=4", "generation.n_prompts=2")
    (texts,) = re.findall(r"up to ([\d,]+) texts", rows["steering"])
    assert rows["ratings"] == f"{2 * int(texts.replace(',', '')):,} by m, at an unknown price"


@pytest.mark.parametrize(
    ("asked", "forwards"),
    [
        ("score=output", f"{2 * (D_SAE + 9)} rows of one position, 2 of whole prompts"),
        ("score=input", "0 rows of one position, 0 of whole prompts"),
        (
            "score=[output,side_effects]",
            f"{2 * (9 * D_SAE + 9)} rows of one position, 18 of whole prompts",
        ),
        ("score=prompt_robustness", f"{2 * 50 * D_SAE} rows of one position, 100 of whole prompts"),
    ],
)
def test_a_score_s_prompts_are_counted(plan: Rows, asked: str, forwards: str) -> None:
    null = ["score.output.null_directions=9"] if "," in asked else []
    null += SCORES if asked == "score=output" else ()
    assert plan(asked, *null)["forwards"].replace(",", "") == forwards.replace(",", "")


def test_only_a_run_s_own_methods_take_minutes(plan: Rows) -> None:
    trained = plan(*CONCEPTS, "concepts.methods=[DiffMean,RePS,SAE-TS,LoRA]")
    assert trained["time"] == "besides, minutes for what each of RePS, SAE-TS, LoRA learns"
    assert trained["concepts"] == "2, each in 4 ways"
    # Three methods at three factors and LoRA once on the two prompts that choose, and all of them,
    # and no steering, on the two others.
    n_texts = 2 * 2 * ((3 * 3 + 1 + 1) * 2 + 5 * 2)
    assert trained["steering"].startswith(f"{n_texts} texts")
    assert "time" not in plan(*CONCEPTS, "concepts.methods=[DiffMean,Probe,SAE]")


def test_methods_that_a_plan_names_are_those_that_take_long_or_have_no_factor() -> None:
    methods = {name: load_part("methods", name) for name in parts_of("methods")}
    budgets = {name: budget_of_method(part, part.Config(), 9, 9) for name, part in methods.items()}
    slow = {name for name, part in methods.items() if getattr(part, "TRAINS", False)}
    slow |= {name for name, budget in budgets.items() if budget.vectors}
    assert {*EDITS, *slow} == {*SLOW_METHODS}
    assert {*EDITS, PROMPT} == {*WITHOUT_FACTOR}


def test_what_is_in_the_cache_is_not_planned_again(plan: Rows, words: list[str]) -> None:
    before = plan(*SCORES, "plan=measure")
    assert before["finished"].startswith("0 scores")
    run(compose([*words, *SCORES, "layer=1"]))
    assert plan(*SCORES)["finished"] == f"{D_SAE} scores are in the cache"
    run(compose([*words, *SCORES]))
    assert plan(*SCORES)["finished"] == f"{2 * D_SAE} scores are in the cache"
    assert plan(*SCORES)["time"] == "about 0.0 s of scoring"
    assert plan(*SCORES, "score.prompt=Another prompt")["finished"].startswith("0 scores")


def test_candidates_of_a_concept_are_counted_once_their_tokens_are_known(
    plan: Rows, words: list[str], tmp_path: Path
) -> None:
    concept = ("experiment=concept", "concept=w60", "features.top_k=5")
    concept += (
        "score.output.prompt=the w20",
        "score.concept.prompt=the w20",
        "generation.n_prompts=2",
        "generation.max_new_tokens=4",
    )
    unknown = plan(*concept)
    assert unknown["features"] == (
        f"{2 * D_SAE} at most: how many may stand for the concept, plan=measure counts"
    )
    measured = plan(*concept, "plan=measure")
    n = int(measured["features"].split()[0])
    assert measured["features"] == f"{n} candidates of {2 * D_SAE}"
    assert plan(*concept)["features"] == measured["features"]
    run(compose([*words, *concept]))
    assert len(FEATURES.read(tmp_path / "out")) == n
    other_lens = (*concept, "lens=effect", "lens.n_prompts=1")
    assert plan(*other_lens)["features"] == unknown["features"]
    by_effect = int(plan(*other_lens, "plan=measure")["features"].split()[0])
    run(compose([*words, *other_lens, f"paths.output_dir={tmp_path / 'effect'}"]))
    assert len(FEATURES.read(tmp_path / "effect")) == by_effect


def test_texts_in_the_cache_are_told(plan: Rows, words: list[str]) -> None:
    steers = (*STEERS, "steer.factors=[2]", "features.ids=[1,2]", "layer=1")
    run(compose([*words, *steers, "features.ids=[1]"]))
    assert plan(*steers)["steering"].endswith("; 4 texts with these settings are in the cache")


@pytest.mark.parametrize(
    ("factor", "told"),
    [("0", "steers with nothing"), ("-3", "suppresses features"), ("1e5", "is beyond 1000")],
)
def test_a_plan_warns_as_the_run_would(plan: Rows, factor: str, told: str) -> None:
    assert told in plan(*SCORES, f"score.factor={factor}")["warning"]
    assert "warning" not in plan(*SCORES)


def test_what_is_on_another_machine_is_planned_and_priced_by_its_shapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = compose(["experiment=criteria", "subject=gemma-2-2b", "layer=[12,20]", "plan=true"])
    check(config)
    run(config)
    text = capsys.readouterr().out
    n_texts = 2 * 70 * 13 * 20  # features, factors with 0, prompts
    for told in ("features  140", f"up to {n_texts:,} texts of 140 features", "at 100 TFLOP/s"):
        assert told in text
    settings = parse_settings(config)
    parts = price(settings, 140, 2, n_texts)
    assert parts is not None
    unembedding = 256_000 * 2304
    blocks, sae = 2.614e9 - unembedding, 16_384 * 2304
    assert parts["texts"] == pytest.approx(
        n_texts * 2 * (26 * (blocks + unembedding) + 20 * sae), rel=1e-6
    )
    assert parts["perplexity and KL"] == pytest.approx(n_texts * 2 * 26 * (9.242e9 + 2.614e9))
    above = blocks * 25 / 52
    assert parts["output"] == pytest.approx((140 + 2 * 499) * 2 * (above + 2 * unembedding))
    read = 2 * 20 * (72 + 36) * 128  # layers, topics, texts, tokens
    assert parts["f1"] == pytest.approx(
        read * 2 * (blocks + sae) + 140 * 2 * (above + 2 * unembedding)
    )
    assert "500 sampled without steering for outcome; score.run=DIR" in text
    nothing = dataclasses.replace(config.model, n_params=None)
    assert price(parse_settings(dataclasses.replace(config, model=nothing)), 140, 2, 9) is None


def test_counting_examples_is_priced_as_the_pass_that_it_is() -> None:
    words = ["subject=gemma-2-2b", "score=output", "layer=12", "corpus.n_tokens=1000"]
    for more, is_read in (([], False), (["features.min_examples=5"], True)):
        parts = price(parse_settings(compose([*words, *more])), 10, 1, 0)
        assert parts is not None
        assert ("corpus" in parts) == is_read


def test_a_plan_is_true_false_or_measure(words: list[str]) -> None:
    with pytest.raises(SteerlensError, match=r"plan.*'measur'.*did you mean 'measure'"):
        check(compose([*words, "plan=measur"]))


def test_a_plan_imports_nothing_that_computes(words: list[str]) -> None:
    told = f"[m for m in {LOADERS} if m in sys.modules]"
    program = f"""
import sys
from steerlens.cli import main
for overrides in {[words, [*words, *CONCEPTS]]!r}:
    try:
        main([*overrides, "plan=true"])
    except SystemExit:
        pass
    print({told}, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "features" in done.stdout, done.stderr
    assert "concepts  2, each in" in done.stdout, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("[")] == ["[]", "[]"]
