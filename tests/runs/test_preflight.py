"""What is refused before any model is loaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from steerlens.config.belonging import refuse_other_model
from steerlens.config.compose import compose
from steerlens.config.registry import load_part
from steerlens.config.schema import ModelConfig, SaeConfig
from steerlens.errors import SteerlensError
from steerlens.runs.preflight import check
from steerlens.scores import output
from tests.config.folders import model_folder, sae_folder


def refusal(*overrides: str) -> str:
    with pytest.raises(SteerlensError) as caught:
        check(compose(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


GPT2 = ["model=gpt2-small", "sae=gpt2-small-res-jb"]


@pytest.fixture
def local(tmp_path: Path) -> list[str]:
    """The overrides for a whole local model and SAE."""
    model = model_folder(tmp_path / "model")
    sae = sae_folder(tmp_path / "sae")
    return ["model=local", f"model.path={model}", "sae=local", f"sae.path={sae}"]


def test_a_corpus_that_nothing_reads_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    words = ["subject=gemma-2-2b", "features=random"]
    check(compose(words))
    for reads in ("score=input", "steer=grid", "features.min_examples=10"):
        assert "webtext needs NLTK" in refusal(*words, reads)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["features.min_examples=0"], "features.min_examples=0 must be at least 1"),
        (
            ["features.ids=[1]", "features.min_examples=10"],
            "is for all or random features, not for features.ids; add features.min_examples=null",
        ),
        (["features.concept=a", "features.min_examples=10"], "not for features.concept"),
        (["features.file=x.json", "features.min_examples=10"], "not for features.file"),
        (["layer=12"], "layer 12 doesn't exist; the model has layers 0 to 11"),
        (["layer=[3,x]"], "layer 'x' is not a layer"),
        (["layer=last"], "layer=last is unknown"),
        (['score.prompt=""'], "of score output is empty"),
        (['score.prompt="  "'], "of score output is empty"),
        (["score.factor=inf"], "must be finite"),
        (["score.factor=nan"], "must be finite"),
        (["score.top_k=0"], "must be at least 1"),
        (["score=all", "score.output.top_k=0"], "top_k=0 of score output"),
        (["logit_lens_k=0"], "logit_lens_k=0 must be at least 1"),
        (["tracking.mode=ofline"], "unknown tracking.mode 'ofline'; did you mean 'offline'"),
        (["device=gpu"], "unknown device 'gpu'; did you mean 'cuda'?"),
        (["device=gpu:1"], "unknown device 'gpu'; did you mean 'cuda'?"),
        (["tracking.mode=off"], "unknown tracking.mode 'off'; did you mean 'disabled'?"),
        (["dtype=bf16"], "unknown dtype 'bf16'; did you mean 'bfloat16'"),
        (["device_map=atuo"], "unknown device_map 'atuo'; did you mean 'auto'"),
        (["device_map=3"], "device_map must be auto, or {module: device}"),
        (["seed=-1"], "seed=-1 is out of range"),
        (["memory_budget=lots"], "is no amount of memory"),
        (["name=a/b"], "is no folder name"),
        (["paths.output_dir="], "paths.output_dir is empty"),
        (["features.ids=[24576]"], "the SAE's features are 0 to 24575"),
        (["features.ids=[1.5]"], "1.5 is not an integer"),
        (["features.n=0"], "features.n=0 must be at least 1"),
        (["features.n=3", "features.ids=[1]"], "features.ids and features.n are both given"),
        (["features=ids"], "features.ids is empty"),
        (["features=file"], "needs features.file=FILE"),
        (["features.file=/nowhere"], "can't be read"),
        (["sae.path=/somewhere"], "has a path and a release"),
        (["labels=/nowhere"], "labels=/nowhere: there is no such file or folder"),
        (["sae=local"], "sae=local needs sae.path=DIR"),
        (["sae=release"], "sae=release needs sae.release=... and sae.sae_id=..."),
        (
            ["model=pythia-70m-deduped"],
            "not to pythia-70m-deduped; choose sae=pythia-70m-res, or if",
        ),
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(overrides: list[str], expected: str) -> None:
    assert expected in refusal(*GPT2, *overrides)


def test_braces_stand_for_the_layer_alone() -> None:
    words = ["model=gpt2-small", "sae=release", "sae.release=a/b", 'sae.sae_id="x.{layer}.{foo}"']
    assert "has {foo}, for which there is no value; write {layer}" in refusal(*words)


@pytest.mark.parametrize("k", [-1, 0, 17, 10**30, "many", True])
def test_a_number_of_active_features_that_cannot_be_is_told(local: list[str], k: Any) -> None:
    file = Path(local[-1].partition("=")[2]) / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "k": k}))
    assert f"has k={k!r}, which must be a number from 1 to d_sae=16" in refusal(*local)


def test_a_corpus_without_text_is_told_before_anything_is_loaded(
    local: list[str], tmp_path: Path
) -> None:
    import pandas as pd

    empty, bad, rows, parquet = (tmp_path / name for name in ("a.txt", "b.txt", "c.jsonl", "d.pq"))
    empty.write_text("\n \n")
    bad.write_bytes(b"\xff\xff\xff")
    rows.write_text('{"prose": "a text"}\n')
    pd.DataFrame({"prose": []}).to_parquet(parquet)
    words = [*local, "score=input"]
    for corpus, told in (
        (("text", empty), "has no text in it"),
        (("text", bad), "it is no text in UTF-8"),
        (("jsonl", rows), "unknown column in the corpus"),
        (("parquet", parquet), "unknown column in the corpus"),
        (("parquet", rows), "it is truncated or no Parquet file"),
    ):
        assert told in refusal(*words, f"corpus={corpus[0]}", f"corpus.path={corpus[1]}")
    check(compose([*words, "corpus=jsonl", f"corpus.path={rows}", "corpus.column=prose"]))
    assert "has no text in it" in refusal(
        *words, "corpus=parquet", f"corpus.path={parquet}", "corpus.column=prose"
    )
    check(compose([*local, "score=output", "corpus=text", f"corpus.path={empty}"]))


def test_layers_of_a_release_with_gaps() -> None:
    gaps = ["model=gemma-2-9b-it", "sae=gemma-scope-9b-it-res-131k"]
    check(compose([*gaps, "layer=all"]))
    check(compose([*gaps, "layer=[20,31]"]))
    assert "has no SAE at layer 5; it has: 9, 20, 31" in refusal(*gaps, "layer=5")


def test_a_device_may_have_a_number() -> None:
    check(compose([*GPT2, "device=cuda:1"]))


RELEASE = ["sae=release", "sae.release=gpt2-small-resid-post-v5-32k"]
ID = 'sae.sae_id="blocks.{layer}.hook_resid_post"'


def test_any_release_of_saelens_can_be_named() -> None:
    check(compose(["model=gpt2-small", *RELEASE, ID, "layer=6"]))
    check(compose(["model=gpt2-small", *RELEASE, "sae.sae_id=blocks.6.hook_resid_post"]))
    # Outside SAELens' list, a repository on the hub is taken at its word.
    check(compose(["model=gpt2-small", "sae=release", "sae.release=a/b", "sae.sae_id=c"]))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sae=release", "sae.release=gpt2-small-res-jp", ID], "did you mean 'gpt2-small-res-jb'"),
        (
            [*RELEASE, "sae.sae_id=blocks.6.hook_resid_pst"],
            "did you mean 'blocks.6.hook_resid_post'",
        ),
        ([*RELEASE, 'sae.sae_id="blocks.{layer}.x"', "layer=6"], "unknown id in SAELens release"),
    ],
)
def test_an_unknown_release_or_id_is_told(overrides: list[str], expected: str) -> None:
    assert expected in refusal("model=gpt2-small", *overrides)


def test_a_release_of_another_model_is_refused_with_both_names() -> None:
    message = refusal("model=gemma-2-2b", *RELEASE, ID)
    assert "belongs to the model gpt2-small, not to gemma-2-2b" in message


def test_an_alias_makes_a_release_belong() -> None:
    check(compose(["model=hub", "model.path=me/copy", "model.aliases=[gpt2-small]", *RELEASE, ID]))


def test_whole_local_folders_pass(local: list[str]) -> None:
    check(compose(local))
    check(compose([*local, "layer=1"]))


def test_a_folder_with_one_sae_per_layer_passes(local: list[str], tmp_path: Path) -> None:
    for layer in (0, 2):
        sae_folder(tmp_path / "saes" / f"layer_{layer}", layer=layer)
    local[-1] = f"sae.path={tmp_path / 'saes'}"
    check(compose(local))
    check(compose([*local, "layer=2"]))
    assert "has no SAE at layer 1; it has: 0, 2" in refusal(*local, "layer=1")


def test_layers_of_a_local_model_come_from_its_own_config(local: list[str]) -> None:
    assert "the model has layers 0 to 3" in refusal(*local, "layer=4")


def test_features_of_a_local_sae_are_counted_by_its_own_config(
    local: list[str], tmp_path: Path
) -> None:
    check(compose([*local, "features.ids=[15]"]))
    assert "the SAE's features are 0 to 15" in refusal(*local, "features.ids=[16]")
    file = tmp_path / "features.json"
    file.write_text('{"1": [16]}')
    assert "layer 1: there is no feature 16" in refusal(*local, f"features.file={file}")
    file.write_text('{"4": [0]}')
    message = refusal(*local, f"features.file={file}")
    assert message.endswith(
        "names no features of layer 1; to run the layers of the file, add 'layer=[4]'."
    )
    assert "features.n=17 is more than the SAE's 16 features" in refusal(*local, "features.n=17")


def test_texts_that_leave_no_room_for_a_prompt_are_told(local: list[str], tmp_path: Path) -> None:
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 64}))
    steers = [*local, "layer=1", "steer=grid"]
    assert "leaves no room for a prompt: model takes 64 tokens in all" in refusal(
        *steers, "generation.max_new_tokens=64"
    )
    for words, what in (
        (["score=input", "score.context_length=65"], "context_length=65 of score input"),
        (["lens=jacobian", "lens.context_length=65"], "lens.context_length=65"),
    ):
        told = refusal(*local, "layer=1", "corpus=embedded", *words)
        assert told == f"{what} is more than the 64 tokens of model."
    check(compose([*steers, "generation.max_new_tokens=63"]))
    check(compose([*local, "layer=1"]))


def test_an_sae_of_another_width_is_refused_with_both(local: list[str], tmp_path: Path) -> None:
    local[-1] = f"sae.path={sae_folder(tmp_path / 'wide', d_in=16)}"
    message = refusal(*local)
    assert "16 (d_in)" in message
    assert "8 (d_model)" in message


def test_an_sae_of_another_known_model_is_refused_with_both(
    local: list[str], tmp_path: Path
) -> None:
    local[-1] = f"sae.path={sae_folder(tmp_path / 'other', model='google/gemma-2-2b')}"
    message = refusal(*local)
    assert "belongs to the model google/gemma-2-2b, not to model; choose sae=local" in message
    # The name of the local model is its folder's, `model`.
    assert message.endswith("""say so with 'model.aliases=["google/gemma-2-2b"]'.""")
    check(compose([*local, "model.aliases=[gemma-2-2b]"]))


def spoil(folder: Path, file: str, content: bytes | None) -> None:
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)


@pytest.mark.parametrize(
    ("folder", "file", "content", "expected"),
    [
        ("model", "config.json", None, "has no config.json"),
        ("model", "config.json", b"{", "can't be read"),
        ("model", "config.json", b"[]", "is not a JSON object"),
        ("model", "config.json", b"\xef\xbb\xbf{}", "byte order mark, which Transformers"),
        ("model", "generation_config.json", b"\xef\xbb\xbf{}", "byte order mark"),
        ("model", "model.safetensors", None, "has no weights, *.safetensors"),
        ("model", "model.safetensors", b"", "is truncated or no safetensors file"),
        ("model", "model.safetensors", b"x" * 50, "is truncated or no safetensors file"),
        ("sae", "cfg.json", None, "has no cfg.json"),
        ("sae", "cfg.json", b"{", "can't be read"),
        ("sae", "sae_weights.safetensors", None, "has no weights, sae_weights.safetensors"),
        ("sae", "sae_weights.safetensors", b"\x02" + b"\x00" * 7 + b"[]", "is truncated"),
    ],
)
def test_what_a_local_folder_lacks_is_told(
    local: list[str], tmp_path: Path, folder: str, file: str, content: bytes | None, expected: str
) -> None:
    spoil(tmp_path / folder, file, content)
    assert expected in refusal(*local)


@pytest.mark.parametrize("file", ["model/model.safetensors", "sae/sae_weights.safetensors"])
def test_truncated_weights_are_told(local: list[str], tmp_path: Path, file: str) -> None:
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[:-1])
    assert f"{file} is truncated" in refusal(*local)


def test_a_missing_shard_is_told(local: list[str], tmp_path: Path) -> None:
    index: dict[str, Any] = {"weight_map": {"a": "model.safetensors", "b": "second.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks second.safetensors" in refusal(*local)


def test_missing_folders_are_told(local: list[str]) -> None:
    assert "there is no folder /nowhere" in refusal(*local, "model.path=/nowhere")
    assert "there is no folder gpt2" in refusal(*local, "model.path=gpt2")
    assert "there is no folder /nowhere" in refusal(*local, "sae.path=/nowhere")
    judge = ["model@evaluator=local", "evaluator.path=/nowhere"]
    assert "evaluator.path: there is no folder /nowhere" in refusal(*local, *judge)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["shard=4/4"], r"shard=4/4 is out of range; shards are 0/4 to 3/4\."),
        (["shard=0/0"], "out of range"),
        (["shard=1"], "write shard=0/4 for the first of four"),
        (["shard=-1/4"], "is no part"),
        (
            ["shard=0/2", "steer=grid", "selection.top_n=3"],
            r"selection\.top_n compares all",
        ),
        (
            ["steer=grid", "steer.weights=[1,2]", "features.ids=[5]"],
            "steer.weights has 2 numbers for 1 features",
        ),
        (["steer=grid", "steer.weights=[1,2]"], "is of the features of features.ids"),
        (
            ["steer=grid", "steer.weights=[1,2]", "features.ids=[9,5]", "shard=0/2"],
            "it can't go with a shard",
        ),
        (
            ["steer=grid", "steer.weights=[0,0]", "features.ids=[9,5]"],
            "steer.weights are all 0",
        ),
        (
            ["steer=grid", "steer.weights=[1,2]", "features.ids=[9,5]", "steer.together=[2]"],
            "steer.together doesn't go with steer.weights",
        ),
        (
            ["shard=0/2", "steer=grid", "steer.together=[2]"],
            r"steer\.together compares all",
        ),
        (["objective=sucess", "steer=grid"], "did you mean 'success'"),
        (["objective=payoff"], "measured on steered texts: add steer=grid"),
    ],
)
def test_shards_and_objectives_that_cannot_work_are_refused(
    words: list[str], expected: str
) -> None:
    with pytest.raises(SteerlensError, match=expected):
        check(compose(words))


@pytest.mark.parametrize(
    "words", [["shard=3/4"], ["shard=0/2", "steer=grid"], ["objective=mean_output_score"]]
)
def test_shards_and_objectives_that_can_work_are_not(words: list[str]) -> None:
    check(compose([*GPT2, *words]))


def test_a_local_model_without_its_sae_is_told_both_ways_out(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    message = refusal("model=local", f"model.path={folder}")
    assert "belongs to the model smollm2-135m-instruct, not to mine; " in message
    assert "choose sae=local sae.path=DIR, or if that is the same model, say so with " in message
    assert """'model.aliases=["smollm2-135m-instruct"]'""" in message


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("/models/mine", "mine"),
        ("/models/mine/", "mine"),
        ("/models/mine/../yours", "yours"),
        ("/models/Mine.Q4_1.gguf", "Mine.Q4_1"),
        (f"/hub/models--org--name/snapshots/{'0' * 40}", "org/name"),
    ],
)
def test_what_is_local_is_named_after_its_folder(path: str, title: str) -> None:
    assert ModelConfig("local", path).title == title
    assert SaeConfig("local", path=path).title == title
    assert ModelConfig("gpt2-small", path).title == "gpt2-small"
    assert ModelConfig("hub", "org/name").title == "org/name"
    assert SaeConfig("release", "gpt2-small-res-jb").title == "gpt2-small-res-jb"


def test_an_sae_belongs_to_the_local_model_whose_path_it_names(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "gemma-2-2b")
    for name in (str(folder), "gemma-2-2b", "google/gemma-2-2b"):
        refuse_other_model("the SAE", name, ModelConfig("local", str(folder)))
    with pytest.raises(SteerlensError, match="not to gemma-2-2b; choose sae=local"):
        refuse_other_model("the SAE", "gpt2-small", ModelConfig("local", str(folder)))


@pytest.mark.parametrize(
    ("factor", "expected"), [(0.0, "with nothing"), (-2.0, "suppresses"), (2e3, "beyond 1000")]
)
def test_a_factor_that_is_hardly_meant_is_warned_of(factor: float, expected: str) -> None:
    [warning] = output.Config(factor=factor).warnings()
    assert expected in warning
    assert f"score.factor={factor:g} of score output" in warning


def test_usual_factors_are_not_warned_of() -> None:
    assert not output.Config().warnings()
    assert not output.Config(factor=1e3).warnings()
    assert not load_part("scores", "random").Config().warnings()


def test_capability_without_tasks_has_nothing_to_answer() -> None:
    message = refusal("experiment=capability", "evaluate.tasks=[]")
    assert message.startswith("experiment=capability has no tasks: evaluate.tasks=[...] names them")


def test_a_lens_file_of_another_model_is_answered_with_a_lens_file() -> None:
    with pytest.raises(SteerlensError, match=r"choose a file of gpt2-small, or if that is"):
        refuse_other_model("lens.path=x", "pythia-70m", compose(GPT2).model)
