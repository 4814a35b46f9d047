"""`steerlens play` with a model: what was typed, and texts that are those of everything else."""

from __future__ import annotations

import io
import re
import shlex
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import steerlens
from steerlens import SteerlensError
from steerlens.config.compose import compose
from steerlens.config.settings import parse_settings, parse_steering
from steerlens.report.play.queue import Left
from steerlens.report.play.requests import Writing, parse_writing
from steerlens.report.play.server import open_socket
from steerlens.runs.models import RunModels
from steerlens.runs.play import Typed, _what_is_played, parse_arguments, play
from steerlens.runs.play.player import Player, load_player
from steerlens.runs.preflight import check
from steerlens.runs.run import context_of
from steerlens.steering.features import steer_layer
from tests.report.play.served import ASKED
from tests.support.sweeps import save_run
from tests.support.tiny import D_SAE, save_sae

pytestmark = pytest.mark.usefixtures("undrawn_figures", "compared_once")


@pytest.fixture(scope="module")
def typed(
    tiny_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    compared_once: None,
) -> list[str]:
    """What chooses a tiny subject."""
    folder = tmp_path_factory.mktemp("play")
    save_sae(folder / "sae 1")
    return [
        *("model=local", f"model.path={tiny_folder('llama')}", "sae=local"),
        *(f'sae.path="{folder / "sae 1"}"', f"paths.cache_dir={folder}", "seed=3"),
    ]


@pytest.fixture(scope="module")
def player(typed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Player:
    config, tables = _what_is_played(parse_arguments(typed))
    finished = tmp_path_factory.mktemp("finished")
    return load_player(config, parse_settings(config), tables, finished)


def writing(**asked: Any) -> Writing:
    usual = {"layer": 2, "features": [5], "max_new_tokens": 6, "seed": 3}
    return parse_writing(ASKED | usual | asked)


def events_of(player: Player, **asked: Any) -> dict[str, Any]:
    """The last event of each kind."""
    events: dict[str, Any] = {}
    player.bench.write(writing(**asked), events.update)
    return events


def test_a_subject_is_played_with_all_its_features(player: Player) -> None:
    assert player.tables.features["feature"].tolist() == list(range(D_SAE))
    assert player.live.layers == [2]
    assert not player.live.has_template
    assert player.live.seed == 3


ASKED_FOR: list[dict[str, Any]] = [
    {"factors": [0.5, 2, -8]},
    {"operator": "clamp", "positions": "all", "temperature": 0.0},
    {"features": [9, 5], "weights": [2, 2]},
    {"features": [9, 5], "weights": [1, -3]},
    {"prompt": 'It\'s "the", $x'},
]


def shown(events: dict[str, Any], kind: str = "done") -> list[str]:
    return ["".join(part for part, _ in text.segments) for text in events[kind]]


@pytest.mark.parametrize("asked", ASKED_FOR)
def test_texts_are_those_that_the_python_to_copy_writes(
    player: Player, asked: dict[str, Any]
) -> None:
    events = events_of(player, **asked)
    names: dict[str, Any] = {}
    exec(events["repeat"]["python"], names)
    table = names["texts"]
    assert [text.factor for text in events["done"]] == table["factor"].tolist()
    assert shown(events) == table["text"].tolist()
    assert [text.success for text in events["done"]] == table["success_20"].tolist()
    assert shown(events, "texts") == shown(events)


@pytest.mark.parametrize("asked", ASKED_FOR)
def test_texts_are_those_that_the_command_to_copy_writes(
    player: Player, asked: dict[str, Any]
) -> None:
    events = events_of(player, **asked)
    command = shlex.split(events["repeat"]["command"])
    assert command[0] == "steerlens"
    config = compose(command[1:])
    check(config)
    settings = parse_settings(config)
    (subject,) = RunModels(settings.subject).subjects()
    ids = sorted(asked.get("features", [5]))
    table = steer_layer(subject, ids, settings.steering, context_of(settings))
    names = asked.get("features", [5])
    others = "+".join(map(str, names[1:]))
    of_all = table["together"].fillna("") == others
    rows = table.loc[of_all & (table["feature"] == names[0])].sort_values("factor")
    texts = sorted(zip([text.factor for text in events["done"]], shown(events), strict=True))
    assert texts == list(zip(rows["factor"], rows["text"], strict=True))


@pytest.mark.parametrize("prompt", ["Note that", 'It\'s "the", ${x}, [1]'])
def test_the_command_to_copy_asks_for_the_same_settings(player: Player, prompt: str) -> None:
    asked = {"operator": "clamp", "temperature": 0.0, "prompt": prompt, "factors": [0.5, 2]}
    command = shlex.split(events_of(player, **asked)["repeat"]["command"])
    config = compose(command[1:])
    steering = parse_steering(config)
    assert steering.prompts == (prompt,)
    assert steering.factors == (0.5, 2)
    assert (steering.steer.operator, steering.steer.positions) == ("clamp", "last")
    assert (steering.generation.max_new_tokens, steering.generation.stop) == (6, None)
    assert (config.features.ids, config.layer, config.seed) == ([5], 2, 3)
    assert config.chosen.refusal is None


def test_what_was_written_is_not_written_again(
    player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"prompt": "the", "seed": 8, "features": [7]}
    before = events_of(player, factors=[2, 4], **asked)
    again = events_of(player, factors=[2, 3, 4], **asked)
    assert [text.factor for text in again["texts"]] == [3]
    of_before = {text.factor: text for text in before["done"]}
    assert {text.factor: text for text in again["done"] if text.factor != 3} == of_before
    monkeypatch.setattr(
        "steerlens.engine.generation.row_batches.decode", lambda *_: pytest.fail("again")
    )
    assert events_of(player, factors=[2, 3, 4], **asked)["done"] == again["done"]


def test_whoever_has_left_is_not_written_for(player: Player) -> None:
    told: list[Any] = []

    def tell(event: Any) -> None:
        told.append(event)
        if len(told) == 4:
            raise Left

    with pytest.raises(Left):
        player.bench.write(writing(max_new_tokens=50), tell)
    assert len(told) == 4


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"layer": 3}, "there is no layer 3: 2"),
        ({"features": [D_SAE]}, f"no feature {D_SAE}"),
        ({"operator": "ad"}, "'ad'; did you mean 'add'"),
        ({"positions": "lst"}, "'lst'; did you mean 'last'"),
        ({"chat_template": True}, "no chat template"),
        ({"prompt": "w60 " * 63}, "doesn't fit in the 64"),
        ({"weights": [0]}, "weights are all 0"),
    ],
)
def test_what_the_subject_cant_do_is_one_sentence(
    player: Player, asked: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SteerlensError, match=sentence):
        events_of(player, **asked)


def test_a_concept_gives_the_features_that_promote_it(player: Player) -> None:
    matches = player.bench.find("w60")
    assert matches
    assert all("w60" in match.tokens[0] for match in matches)
    tokens = player.tables.features.set_index("feature")["logit_lens_tokens"]
    assert all("w60" in "".join(tokens[match.feature]) for match in matches)
    with pytest.raises(SteerlensError, match="no token of the vocabulary"):
        player.bench.find("zzzz")


def test_a_vector_is_that_of_export(player: Player, typed: list[str], tmp_path: Path) -> None:
    from steerlens.runs.export import measured_a_max, steering_vector
    from steerlens.runs.export.tensors import load_safetensors

    name, content = player.bench.vector(writing(factors=[4], features=[5, 9], weights=[1, 3]))
    assert name == "layer_2_feature_5_9.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as files:
        files.extractall(tmp_path)
    assert (tmp_path / "steer.py").is_file()
    vectors = load_safetensors(tmp_path / "layer_2_feature_5_9.safetensors")
    names: dict[str, Any] = {}
    exec(events_of(player)["repeat"]["python"], names)
    a_max = measured_a_max(names["subject"], ["Note that"])
    for vector, feature, factor in zip(vectors, (5, 9), (1.0, 3.0), strict=True):
        expected = steering_vector(names["subject"], feature, factor, a_max)
        assert torch.equal(vector.vector_D, expected.vector_D)
    with pytest.raises(SteerlensError, match="can only add a multiple of a_max"):
        player.bench.vector(writing(operator="clamp"))
    with pytest.raises(SteerlensError, match="no vector at factor 0"):
        player.bench.vector(writing(factors=[0]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a", "b"], "one run, not both a and b"),
        (["port=x"], "port=x is no port"),
        (["port=70000"], "port=70000 is no port"),
        (["modle=x"], "'modle'; did you mean 'model'"),
        (["score=input"], "unknown setting of steerlens play 'score'"),
        (["a", "layer=3"], "layer=3 can't go with a run's folder"),
        (["nowhere"], "there is no folder nowhere"),
        (["model=gpt5"], "unknown model 'gpt5'"),
        (["layer=99"], "layer 99 doesn't exist"),
        (["steer.operator=ad"], "did you mean 'add'"),
        (["generation.max_new_tokens=0"], "must be at least 1"),
    ],
)
def test_what_cant_be_played_is_refused_in_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(SteerlensError, match=sentence):
        play(words)


def test_a_port_in_use_is_told_before_anything_is_loaded(
    typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerlens.runs.play.load_player", lambda *_: pytest.fail("it was loaded"))
    with open_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(SteerlensError, match=f"port {port} of 127.0.0.1 can't be had"):
            play([*typed, f"port={port}"])


def test_a_subject_that_doesnt_fit_is_told_before_anything_is_loaded(
    typed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise SteerlensError("it doesn't fit.")

    monkeypatch.setattr("steerlens.runs.run.refuse_if_too_big", refuse)
    monkeypatch.setattr("steerlens.runs.play.load_player", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(SteerlensError, match="it doesn't fit"):
        play([*typed, "port=0"])


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_other_machines_are_let_in_only_when_asked_for_and_with_a_warning(
    player: Player,
    typed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    host: str,
    warned: bool,
) -> None:
    bound_to: list[str] = []

    class Server:
        def run(self, sockets: list[Any]) -> None:
            bound_to.extend(bound.getsockname()[0] for bound in sockets)

    monkeypatch.setattr("steerlens.runs.play.load_player", lambda *_: player)
    monkeypatch.setattr("steerlens.runs.play.make_server", lambda *_: Server())
    play([*typed, "port=0", *([f"host={host}"] if warned else [])])
    out, err = capsys.readouterr()
    assert bound_to == [host]
    assert re.search(rf"Open http://{host}:\d+/[\w-]{{32}}/ \(Ctrl-C ends it\)", out)
    assert ("whoever reaches 0.0.0.0 and knows this address" in err) == warned


def test_a_run_is_played_with_its_subject_and_its_texts(tmp_path: Path) -> None:
    save_run(tmp_path)
    config, tables = _what_is_played(Typed(tmp_path, (), "127.0.0.1", 0))
    assert tables is not None
    assert len(tables.features) == 36
    assert config.model.name == "smollm2-135m-instruct"
    assert config.steer.factors, "a run that didn't steer has the factors of steer=grid"
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(SteerlensError, match=r"there is no features\.parquet"):
        _what_is_played(Typed(empty, (), "127.0.0.1", 0))


def test_playing_leaves_the_runs_folder_as_it_is(player: Player, tmp_path: Path) -> None:
    from steerlens.report.play.page import write_play_page

    run, page = tmp_path / "run", tmp_path / "page"
    page.mkdir()
    save_run(run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    tables = steerlens.load_run(run).tables
    live = replace(player.live, layers=[0, 1, 2])
    path = write_play_page(tables, live, "toy", run, page)
    assert '"live":{"layers":[0,1,2]' in path.read_text(encoding="utf-8")
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
