"""Examples that ship with an SAE give the numbers of the pass that they are made of."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from steerlens import SteerlensError, score_features
from steerlens.cli.verbs import run_verb
from steerlens.config.compose import compose, read_config
from steerlens.config.settings import parse_subject
from steerlens.config.sources import N_TEXTS
from steerlens.data.corpus import texts
from steerlens.data.corpus.sequences import numbered_pieces
from steerlens.engine.examples import COLUMNS, N_WINDOWS, read_metadata
from steerlens.engine.examples.neuronpedia import export_neuronpedia
from steerlens.engine.generation.targets import max_activations
from steerlens.engine.run_context import RunContext
from steerlens.engine.subject import Subject, load_subjects
from steerlens.runs.examples import write_examples
from steerlens.runs.preflight import check
from steerlens.runs.run import run
from tests.support.scoring import scored
from tests.support.tiny import D_SAE, save_sae

LAYERS = (1, 3)
LENGTH = 40
FEW = ["score.input.min_examples=3", "score.input.top_k=60"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAEs of two layers, one of them without BOS, and 160 texts of which half may be shown."""
    folder = tmp_path_factory.mktemp("examples")
    for layer in LAYERS:
        metadata = {"seqpos_slice": [1, None], "prepend_bos": layer == 1}
        save_sae(folder / "saes" / str(layer), "topk", layer, seed=layer, k=2, metadata=metadata)
    draw = random.Random(0)
    rows = [
        {
            "text": " ".join(f"w{draw.randrange(12, 211)}" for _ in range(draw.randrange(1, 60))),
            "free": draw.random() < 0.5,
        }
        for _ in range(160)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def words(folder: Path, tiny_folder: Callable[[str], Path]) -> list[str]:
    """Overrides for the subject."""
    return [
        *("model=local", f"model.path={tiny_folder('llama')}", "device=cpu", "dtype=float32"),
        *("sae=local", f"sae.path={folder / 'saes'}", f"paths.cache_dir={folder / 'cache'}"),
        *("tracking=disabled", "seed=4"),
    ]


@pytest.fixture(scope="module")
def corpus(folder: Path) -> list[str]:
    """Overrides for the texts."""
    text = f"corpus.path={folder / 'texts.jsonl'}"
    return ["corpus=jsonl", text, f"corpus.context_length={LENGTH}"]


@pytest.fixture(scope="module")
def file(words: list[str], corpus: list[str], folder: Path) -> Path:
    """Examples of both layers, all of which may be shown."""
    return write_examples(compose([*words, *corpus]), folder / "tiny.parquet")


def scores_of(words: list[str], folder: Path) -> pd.DataFrame:
    """The table of both scores that need texts."""
    config = compose([*words, "score=all", f"paths.output_dir={folder}"])
    config.score = {name: config.score[name] for name in ("input", "activation")}
    check(config)
    return scored(config, folder)


def numbers(frame: pd.DataFrame, column: str) -> np.ndarray:
    return frame[column].to_numpy(dtype=float, na_value=np.nan)


def n_different(frame: pd.DataFrame, column: str) -> int:
    values = numbers(frame, column)
    return len(np.unique(values[~np.isnan(values)]))


@torch.no_grad()
def naive_activations(
    subject: Subject, corpus: list[str]
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Of every piece its document, tokens and activations (L, F), 0 at its first position."""
    cut = numbered_pieces(
        texts(compose(corpus).corpus), subject.lm.tokenizer, LENGTH, subject.bos, None, 1
    )
    found = []
    for document, piece in cut:
        _, cache = subject.lm.bridge.run_with_cache(
            torch.from_numpy(piece).long()[None], names_filter=subject.hook_name
        )
        acts_LF = subject.sae.encode(cache[subject.hook_name])[0].clamp(min=0)
        acts_LF[0] = 0
        found.append((document, piece, acts_LF.numpy()))
    return found


def test_scores_from_the_file_are_those_of_the_pass(
    words: list[str], corpus: list[str], file: Path, tmp_path: Path
) -> None:
    ours = scores_of([*words, *corpus, *FEW], tmp_path / "ours")
    shipped = scores_of([*words, *FEW, f"sae.examples={file}"], tmp_path / "shipped")
    assert n_different(ours, "layer") == 2
    assert n_different(ours, "input_score") > 3
    assert n_different(ours, "activation_frequency") > 20
    pd.testing.assert_frame_equal(ours, shipped, check_exact=True)
    fewer = [*FEW, "score.input.max_examples=7", "score.input.show_examples=2"]
    ours = scores_of([*words, *corpus, *fewer], tmp_path / "ours")
    shipped = scores_of([*words, *fewer, f"sae.examples={file}"], tmp_path / "shipped")
    pd.testing.assert_frame_equal(ours, shipped, check_exact=True)


def four_digits(value: np.float32) -> int:
    """A positive number's bits without the last 11 of 23 digits, rounded."""
    return (int(value.view(np.int32)) + 2**10) >> 11


def test_rows_equal_one_text_at_a_time(
    words: list[str], corpus: list[str], folder: Path, tmp_path: Path
) -> None:
    config = compose([*words, *corpus, "layer=3", "corpus.shippable=free"])
    rows = pq.read_table(write_examples(config, tmp_path / "some.parquet")).to_pylist()
    free = [json.loads(line)["free"] for line in (folder / "texts.jsonl").open()]
    pieces = naive_activations(next(iter(load_subjects(parse_subject(config)))), corpus)
    assert [row["feature"] for row in rows] == list(range(D_SAE))
    left_out = 0
    for row in rows:
        feature = row["feature"]
        every = np.concatenate([acts[:, feature] for _, _, acts in pieces])
        assert row["activation_frequency"] == (every > 0).sum() / sum(
            len(piece) - 1 for _, piece, _ in pieces
        )
        assert row["max_activation"] == pytest.approx(every.max(), rel=1e-5)
        if every.max() == 0:
            assert row["mean_activation"] is None
            continue
        assert row["mean_activation"] == pytest.approx(every[every > 0].mean(), rel=1e-5)
        assert row["histogram_range"] == 2.0 ** np.frexp(row["max_activation"])[1]
        edges = np.linspace(0, row["histogram_range"], 17)
        # Rounding may move an activation over an edge.
        counts = np.histogram(every[every > 0], edges)[0]
        assert np.abs(np.array(row["histogram"]) - counts).sum() <= 2
        assert sum(row["histogram"]) == (every > 0).sum()
        fires = [piece for piece in pieces if piece[2][:, feature].max() > 0]
        # Stable: of activations that agree to four digits, the earlier text's comes first.
        fires.sort(key=lambda piece: -four_digits(piece[2][:, feature].max()))
        at = [int(acts[:, feature].argmax()) for _, _, acts in fires]
        peaks = [int(piece[1][i]) for piece, i in zip(fires, at, strict=True)]
        assert row["peak_tokens"] == peaks[:N_TEXTS]
        top = [acts[:, feature].max() for _, _, acts in fires][:N_TEXTS]
        shares = np.array(row["peak_activations"]) / 255 * row["max_activation"]
        np.testing.assert_allclose(shares, top, atol=row["max_activation"] / 255)
        shown = [i for i, (document, _, _) in enumerate(fires) if free[document]][:N_WINDOWS]
        assert row["window_text"] == shown
        left_out += shown != list(range(len(shown)))
        for window, text in enumerate(shown):
            _, piece, acts = fires[text]
            position = row["window_position"][window]
            start = at[text] - position
            tokens = row["window_tokens"][window]
            assert start >= 1  # the first position counts nowhere
            assert tokens == piece[start : start + 32].tolist()
            assert len(tokens) == min(32, len(piece) - 1)
            assert row["window_max"][window] == pytest.approx(top[text], rel=1e-5)
            values = np.array(row["window_activations"][window]) / 255 * top[text]
            expected = acts[start : start + 32, feature]
            np.testing.assert_allclose(values, expected, atol=1.01 * top[text] / 255)
            assert ((values > 0) == (expected > 0)).all()
            assert np.flatnonzero(values == values.max()).tolist() == [position]
    assert left_out > 10


def test_the_file_says_what_it_is_of(words: list[str], folder: Path, file: Path) -> None:
    metadata = read_metadata(file)
    assert metadata["columns"] == dict(COLUMNS)
    assert metadata["saes"]["1"]["prepend_bos"] is True
    assert metadata["saes"]["3"]["prepend_bos"] is False
    assert metadata["saes"]["3"]["uncounted_positions"] == 1
    assert metadata["corpus"]["file"] == "texts.jsonl"
    assert metadata["context_length"] == LENGTH
    assert metadata["versions"]["steerlens"]
    assert str(folder) not in json.dumps(metadata)
    assert pq.read_schema(file).names == list(COLUMNS)


def test_neuronpedias_reader_finds_the_same_scores_in_an_export(
    words: list[str], file: Path, tmp_path: Path
) -> None:
    for subject in load_subjects(parse_subject(compose([*words, f"sae.examples={file}"]))):
        export_neuronpedia(file, tmp_path / "export", subject.lm.tokenizer)
        settings: dict[str, Any] = {"min_examples": 3, "top_k": 60}
        shipped = score_features(subject, "input", **settings)
        path = str(tmp_path / "export")
        read = score_features(subject, "input", source="neuronpedia", path=path, **settings)
        assert n_different(shipped, "input_score") > 3
        for column in ("input_score", "input_score_unique", "input_examples"):
            np.testing.assert_array_equal(numbers(shipped, column), numbers(read, column))


def test_a_corpus_by_hand_is_read_instead(words: list[str], file: Path) -> None:
    def source(*more: str) -> str:
        return compose([*words, f"sae.examples={file}", "score=input", *more]).score["input"].source

    assert source() == "shipped"
    assert source("corpus.n_tokens=200000") == "corpus"
    assert source("corpus=embedded") == "corpus"
    assert source("corpus=webtext") == "corpus"
    assert source("corpus=embedded", "score.source=shipped") == "shipped"
    assert source("score.max_examples=101") == "corpus"
    assert source("score.context_length=16") == "corpus"
    assert source("sae.examples=null") == "corpus"
    changed = compose([*words, "corpus.seed=3"]).corpus
    assert (changed.name, changed.n_tokens, changed.seed) == ("embedded", 200_000, 3)
    assert compose([*words]).corpus.n_tokens == 200_000


def test_a_run_reads_no_corpus_where_examples_ship(
    words: list[str], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerlens.engine.activations import stream

    monkeypatch.setattr(stream, "activations", None)
    few = [*words, f"sae.examples={file}", "features.n=5", "features.min_examples=10"]
    frame = scores_of([*few, *FEW], tmp_path / "out")
    assert min(frame["input_examples"].tolist()) >= 10
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["corpus"] is None
    assert provenance["examples"][0]["file"] == "tiny.parquet"


def test_a_saved_configuration_keeps_its_sources(
    words: list[str], file: Path, tmp_path: Path
) -> None:
    import dataclasses

    import yaml

    config = compose([*words, f"sae.examples={file}", "score=both"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    assert read_config(tmp_path).corpus.name == "auto"
    assert read_config(tmp_path).score["input"].source == "shipped"


def test_what_a_saved_configuration_asks_of_the_environment_is_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    import yaml

    monkeypatch.setenv("A_KEY", "secret")
    settings = dataclasses.asdict(compose([]))
    prompts = ["${oc.env:A_KEY}", "costs ${x}", r"a \\${oc.env:A_KEY}"]
    settings["generation"]["prompts"] = prompts
    settings["model"]["path"] = "${oc.env:A_KEY}"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    config = read_config(tmp_path)
    assert config.generation.prompts == prompts
    assert config.model.path == "${oc.env:A_KEY}"


def test_the_plan_says_where_the_numbers_come_from(
    words: list[str], corpus: list[str], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*words, "score=input", "layer=1", "plan=true"]
    run(compose([*asked, f"sae.examples={file}"]))
    plan = capsys.readouterr().out
    assert "those of tiny.parquet, which ships, from " in plan
    assert "a pass of our own" not in plan
    run(compose([*asked, f"sae.examples={file}", *corpus]))
    assert "a pass of our own over corpus=jsonl" in capsys.readouterr().out


def test_the_largest_activation_to_steer_by_is_the_files(words: list[str], file: Path) -> None:
    config = compose(words)
    rows = pq.read_table(file, filters=[("layer", "==", 1)])["max_activation"].to_numpy()
    found = max_activations(
        next(iter(load_subjects(parse_subject(config)))),
        config.steer,
        RunContext(examples=str(file)),
    ).numpy()
    np.testing.assert_array_equal(found[rows > 0], rows[rows > 0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["sae.examples=nowhere.parquet"], "there is no file of examples nowhere.parquet"),
        (["layer=2", "sae.path=OTHER"], "has no examples of layer 2, only of 1, 3"),
        (["layer=1", "sae.path=OTHER"], "of another SAE than other at layer 1: weights is"),
        (["score.source=shipped", "sae.examples=null"], "needs sae.examples=FILE"),
        (["score.source=shipped", "score.max_examples=101"], "more than the 100 texts that ship"),
        (["score.source=shipped", "score.context_length=9"], "context_length=9 of score input is"),
        (["score.source=shiped"], "did you mean 'shipped'"),
        (["sae.examples=TRUNCATED"], "is truncated or no Parquet file"),
        (["sae.examples=FOREIGN"], "has no examples of features in format 1"),
        (["corpus.shippable=free"], "corpus=embedded has none"),
    ],
)
def test_what_can_not_be_right_is_refused(
    words: list[str], file: Path, tmp_path: Path, more: list[str], message: str
) -> None:
    for layer in (1, 2):
        save_sae(tmp_path / "other" / str(layer), "topk", layer, seed=7, k=2)
    (tmp_path / "truncated.parquet").write_bytes(file.read_bytes()[:-100])
    pd.DataFrame({"feature": [1]}).to_parquet(tmp_path / "foreign.parquet")
    for name in ("other", "truncated.parquet", "foreign.parquet"):
        path = str(tmp_path / name)
        more = [word.replace(name.partition(".")[0].upper(), path) for word in more]
    config = compose([*words, f"sae.examples={file}", "score=input", *more])
    config.paths.output_dir = str(tmp_path / "out")

    def go() -> None:
        check(config)
        scored(config, tmp_path / "out")

    with pytest.raises(SteerlensError, match=message):
        go()


def test_a_column_that_marks_texts_has_booleans(
    words: list[str], corpus: list[str], tmp_path: Path
) -> None:
    config = compose([*words, *corpus, "layer=1", "corpus.shippable=text"])
    with pytest.raises(SteerlensError, match="must be a column of booleans, and has 'w"):
        write_examples(config, tmp_path / "no.parquet")
    with pytest.raises(SteerlensError, match=r"must end with \.parquet"):
        write_examples(config, tmp_path / "no.txt")
    assert not (tmp_path / "no.parquet").exists()


def test_the_verbs_write_and_export(
    words: list[str], corpus: list[str], file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    again = tmp_path / "again.parquet"
    run_verb("examples", [str(again), *words, *corpus])
    assert pq.read_table(again).equals(pq.read_table(file))
    out = tmp_path / "np"
    run_verb("export", [str(again), *words[:2], f"paths.output_dir={out}"])
    assert capsys.readouterr().out.split() == [str(again), str(out)]
    assert len(list(out.glob("3-*/activations/batch-*.jsonl.gz"))) == 1
    with pytest.raises(SteerlensError, match="usage: steerlens examples"):
        run_verb("examples", ["layer=3"])
