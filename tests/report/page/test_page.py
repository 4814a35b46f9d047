"""The page as a file: what is in it, what may run in it, and that bad input is told."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html import unescape
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import steerlens.report.page as page_room
from steerlens.analysis.roles import success_spans
from steerlens.analysis.summary import summarise
from steerlens.config.schema import ChoiceConfig
from steerlens.report.page import render, run_page
from steerlens.report.page.cards import LONGEST, card_order, cards, segments, text_lines
from steerlens.report.page.contents import plain
from steerlens.report.page.ratings import _tables as rated_arms
from steerlens.report.page.render import CHARTS, to_json
from steerlens.results import FEATURES
from steerlens.results.folder import RunTables
from steerlens.storage.files import write_json
from steerlens.storage.provenance import PROVENANCE_FILE
from tests.report.page.runs import HOSTILE, hostile_tables, save_page, without_texts
from tests.support.frames import frame, tables

VENDOR = Path(page_room.__file__).parent / "vendor" / "echarts"


def data_of(path: Path) -> dict[str, Any]:
    """What the page's scripts read, arrays as lists."""
    text = path.read_text(encoding="utf-8")
    blocks = dict(re.findall(r'<script type="[^"]+" id="([\w-]+)">(.*?)</script>', text, re.S))

    def unpacked(part: dict[str, Any]) -> Any:
        if part.keys() != {"kind", "block"}:
            return part
        array = np.frombuffer(
            base64.b64decode(blocks[f"array-{part['block']}"]), f"<{part['kind']}"
        )
        return [None if value != value else value for value in array.tolist()]

    data = json.loads(blocks["data"], object_hook=unpacked)
    return data | {"cards": json.loads(blocks["cards"])}


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_page(hostile_tables(), tmp_path_factory.mktemp("hostile"))


def test_the_page_has_every_feature_with_its_numbers_and_promoted_tokens(tmp_path: Path) -> None:
    features = tables().features
    data = data_of(save_page(tables(), tmp_path))["features"]
    assert data["layer"] == features["layer"].tolist()
    (score,) = [column for column in data["numbers"] if column["name"] == "output_score"]
    assert score["values"] == pytest.approx(features["output_score"].tolist(), rel=1e-6)
    n = data["n_promoted"]
    assert data["promoted"][:9] == [
        data["tokens"].index(data["tokens"][i]) for i in data["promoted"][:9]
    ]
    assert len(data["promoted"]) == n * len(features)
    assert data["steered"] == list(range(len(features)))


def test_what_runs_is_what_the_policy_names(hostile_page: Path) -> None:
    text = hostile_page.read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    policy = unescape(policy)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 2, "ECharts and ours; nothing that a model wrote opens one"
    for script in [*scripts, *re.findall(r"<style>(.*?)</style>", text, re.S)]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_no_text_of_a_model_is_markup(hostile_page: Path) -> None:
    text = hostile_page.read_text(encoding="utf-8")
    own = text.replace(CHARTS.read_text(encoding="utf-8"), "")
    assert "<img" not in own
    blocks = re.findall(r'<script type="[a-z/]+" id="(?:data|cards|array-\d+)">', own)
    assert own.count("<script") == own.count("</script>") == 2 + len(blocks)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "javascript:window" not in json.dumps(
        [card.get("url") for card in data_of(hostile_page)["cards"].values()]
    )


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800", "\u2028</script>"])
def test_json_may_stand_in_a_script(text: str) -> None:
    assert not set(to_json([text])) & set("<>&\u2028\u2029")
    assert json.loads(to_json([text])) == [text.encode("utf-8", "replace").decode()]


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    pages = [
        save_page(hostile_tables(), tmp_path / name)
        for name in "ab"
        if not (tmp_path / name).mkdir()
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_cards_beyond_the_page_lie_beside_it_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "EMBEDDED_BYTES", 600)
    monkeypatch.setattr(render, "CARDS_OF_A_FILE", 5)
    run = RunTables(frame((0, 1), 12))
    (tmp_path / "report.data").mkdir()
    (tmp_path / "report.data" / "999.js").write_text("of an earlier page")
    data = data_of(save_page(run, tmp_path))
    files = sorted((tmp_path / "report.data").glob("*.js"))
    assert [file.name for file in files] == [f"{i:03d}.js" for i in range(len(files))]
    keys = list(data["cards"])
    for number, file in enumerate(files):
        match = re.fullmatch(
            r'steerlens\.addCards\("(\w+)",(\d+),(.*)\);\n', file.read_text(), re.S
        )
        assert match is not None
        assert match.group(1) == data["id"]
        assert int(match.group(2)) == number
        inside = list(json.loads(match.group(3)))
        assert {data["files"][row(data, key)] for key in inside} == {number + 1}
        keys += inside
    assert len(keys) == len(set(keys)) == 24
    assert {data["files"][row(data, key)] for key in data["cards"]} == {0}


def row(data: dict[str, Any], key: str) -> int:
    pairs = zip(data["features"]["layer"], data["features"]["feature"], strict=True)
    return [f"{layer}/{feature}" for layer, feature in pairs].index(key)


def test_a_page_without_texts_says_so(tmp_path: Path) -> None:
    stored = tables()
    emptied = dataclasses.replace(stored, generations=stored.generations.assign(text=""))
    missing = dataclasses.replace(stored, generations=stored.generations.iloc[:0])
    summary = summarise(missing) | {"study": None}
    overviews = [run_page(part, summary, tmp_path).overview for part in (stored, emptied, missing)]
    told = "No text in generations.parquet has a character: none can be shown."
    assert [told in overview.notes for overview in overviews] == [False, True, False]
    none = overviews[-1]
    assert any("generations.parquet is missing" in note for note in none.notes)
    assert not any(" 0 texts" in line for line in (none.question, *none.sentences))


def test_rows_of_table_1_have_titles_instead_of_keys() -> None:
    row = {"lexical_per_text_layer_3": 0.5}
    names = ["SAE (output_score >= 0.01)", "SAE (token_confidence_delta)", "My output_scores"]
    (arms,) = rated_arms([row | {"method": name} for name in names]).values()
    titles = [arm.method for arm in arms]
    assert titles == ["SAE (S_out ≥ 0.01)", "SAE (confidence)", "My output_scores"]


def test_a_study_comes_first_in_words_and_with_its_figures(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "criteria_payoff.png").write_bytes(b"\x89PNG")
    (tmp_path / "secret.png").write_bytes(b"secret")
    rows = [{"score": "output_score", "surely_better": True, "success_0.25": 1.5, "n": None}]
    study = {
        "name": "criteria",
        "sentences": ["The answer."],
        "tables": {"criteria_payoff": rows, "empty": []},
        "figures": ["criteria_payoff", "../secret", "not_drawn"],
    }
    data = data_of(save_page(tables(), tmp_path, study=study))
    assert data["overview"]["sentences"][0] == "The answer."
    (table,) = data["tables"]
    assert table["title"] == "Criteria payoff"
    assert table["header"] == ["score", "surely better", "success, first 25%", "n"]
    assert table["rows"] == [["output_score", "yes", "1.5", "-"]]
    assert data["figures"] == [
        {"title": "Criteria payoff", "png": "data:image/png;base64,iVBORw=="}
    ]


def test_few_steered_features_show_more_of_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    cards_room = import_module("steerlens.report.page.cards")
    monkeypatch.setattr(cards_room, "PROMPTS", 1)
    part = hostile_tables()
    n_shown = []
    for few in (100, 1):
        monkeypatch.setattr(cards_room, "FEW_STEERED", few)
        steered = [card.steered for _, card in cards(part, card_order(part)) if card.steered]
        n_shown.append({len(of_card[0].prompts) for of_card in steered})
    assert n_shown == [{2}, {1}]


def test_a_run_without_features_or_scores_has_a_page(tmp_path: Path) -> None:
    empty = save_page(RunTables(FEATURES.frame([])), tmp_path, model="m", sae="s")
    assert data_of(empty)["features"] is None
    nothing = without_texts(tables(), output_score=None, input_score=None)
    data = data_of(save_page(nothing, tmp_path))
    assert "none with a score" in data["overview"]["sentences"][0]


@pytest.mark.parametrize("none", [None, []])
def test_a_run_whose_files_were_made_smaller_has_a_page(tmp_path: Path, none: Any) -> None:
    tables = hostile_tables()
    empty = {
        name: getattr(tables, name).assign(**{column: [none] * len(getattr(tables, name))})
        for name, column in (("words", "token_ids"), ("generations", "token_ids"))
    }
    steering = tables.steering.assign(logit_lens_token_ids=[none] * len(tables.steering))
    page = save_page(dataclasses.replace(tables, steering=steering, **empty), tmp_path)
    assert '"best_factor"' in page.read_text(encoding="utf-8")


def test_nan_and_infinity_are_no_numbers(tmp_path: Path) -> None:
    scores = frame((0,), 4)["output_score"].tolist()
    run = RunTables(frame((0,), 4, extra=[np.nan, np.inf, 0.5, -np.inf], output_score=scores))
    (extra,) = [
        c for c in data_of(save_page(run, tmp_path))["features"]["numbers"] if c["name"] == "extra"
    ]
    assert extra["values"] == [None, None, 0.5, None]
    assert [plain(value) for value in (pd.NA, True, 3, 0.123456)] == [None, None, 3, 0.1235]


def test_numbers_that_32_bits_would_change_have_64(tmp_path: Path) -> None:
    ids, tiny = [2**24 + 1, 2, 3, 4], [1e-60, 0.0, 1.0, 1e300]
    columns = data_of(save_page(RunTables(frame((0,), 4, ids=ids, tiny=tiny)), tmp_path))
    values = {column["name"]: column["values"] for column in columns["features"]["numbers"]}
    assert values["ids"] == ids
    assert values["tiny"] == tiny


def test_an_unfinished_run_is_told(tmp_path: Path) -> None:
    run = dataclasses.replace(tables(), unfinished="this run was killed")
    assert data_of(save_page(run, tmp_path))["overview"]["state"] == "this run was killed"


def test_a_run_of_another_version_is_told(tmp_path: Path) -> None:
    write_json(tmp_path / PROVENANCE_FILE, {"versions": {"steerlens": "0.0.9"}})
    notes = data_of(save_page(tables(), tmp_path))["overview"]["notes"]
    assert f"The run is of steerlens 0.0.9; the page was made by {version('steerlens')}." in notes


def test_long_texts_are_cut_and_say_so() -> None:
    text = text_lines("a" * 100_000)
    assert len(text) < LONGEST + 60
    assert f"{100_000 - LONGEST:,} more characters" in text
    parts = segments("b" * 100_000, [], {}, {})
    assert len("".join(part for part, _ in parts)) < LONGEST + 60


def test_segments_mark_the_tokens_that_spans_find() -> None:
    text = "the music of music, in water"
    tokens = {1: " music", 2: " water", 3: " sand"}
    parts = segments(text, [1, 9, 1, 2], tokens, {2: " water"})
    assert "".join(part for part, _ in parts) == text
    assert [part for part, mark in parts if mark == 1] == ["music", "music"]
    assert [part for part, mark in parts if mark == 3] == ["water"]
    spans = success_spans(text, [" music", " music", " water"])
    assert [text[start:end].strip() for start, end in spans] == ["music", "music", "water"]


def test_charts_are_as_published_with_their_licence() -> None:
    text = CHARTS.read_text(encoding="utf-8")
    assert "Apache License, Version 2.0" in text[:1000]
    assert 'version="6.1.0"' in text or '"6.1.0"' in text
    assert "Apache License" in (VENDOR / "LICENSE").read_text()
    assert "Apache ECharts" in (VENDOR / "NOTICE").read_text()


def test_a_card_has_the_range_of_factors_that_the_rule_allows() -> None:
    run = hostile_tables()
    n = len(run.steering)
    for high, expected in ((4.0, {(0.5, 4.0)}), (None, {None})):
        steered = run.steering.assign(safe_factor_low=0.5, safe_factor_high=[high] * n)
        ranged = dataclasses.replace(run, steering=steered)
        shown = [card for _, card in cards(ranged, card_order(ranged))]
        assert {each.safe_range for card in shown for each in card.steered} == expected
    kl = dataclasses.replace(run, choice=ChoiceConfig(rule="kl"))
    (why,) = {each.why_none for _, card in cards(kl, card_order(kl)) for each in card.steered}
    assert why.endswith("over 1 nat a token (choice.rule=kl)")


def test_tokens_of_another_lens_are_on_the_card_and_the_lens_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tables()
    by_lens = [[f" lens{at}"] for at in range(len(part.features))]
    of_lens = dataclasses.replace(part, features=part.features.assign(promoted_tokens=by_lens))
    config = SimpleNamespace(lens=SimpleNamespace(name="jacobian"))
    monkeypatch.setattr(page_room, "read_config", lambda folder: config)
    data = data_of(save_page(of_lens, tmp_path))
    assert data["features"]["lens"] == "jacobian"
    for at, (layer, feature) in enumerate(part.features[["layer", "feature"]].to_numpy().tolist()):
        card = data["cards"][f"{layer}/{feature}"]
        assert card["by_lens"] == [f"␣lens{at}"]
        assert card["by_lens"] != card["promoted"][:1]
    assert data_of(save_page(part, tmp_path))["features"]["lens"] is None


def test_tables_of_a_study_are_on_the_page(tmp_path: Path) -> None:
    run = tables()
    rows = {"rules_compared": [{"rule": "kl", "success": 1.5}], "empty": []}
    study = {"name": "factors", "sentences": ["It is so."], "tables": rows}
    (table,) = run_page(run, {**summarise(run), "study": study}, tmp_path).tables
    assert table.title == "Rules compared"
    assert [*table.header] == ["rule", "success"]
    assert [[*row] for row in table.rows] == [["kl", "1.5"]]
    assert run_page(run, summarise(run), tmp_path).tables == []


def contrast(first: str, second: str) -> float:
    """The ratio of two colours' relative luminances (WCAG 2.2): 4.5 is readable."""

    def luminance(colour: str) -> float:
        digits = "".join(2 * digit for digit in colour[1:]) if len(colour) == 4 else colour[1:]
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read_in_both_themes(theme: str) -> None:
    css = (Path(page_room.__file__).parent / "assets/page.css").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"^:root" + ('\\[data-theme="dark"\\]' if theme == "dark" else "") + r" \{(.*?)^\}",
        css,
        re.M | re.S,
    )
    colour = dict(re.findall(r"--([\w-]+): (#\w+);", block))
    pairs = [(ink, on) for ink in ("ink", "muted", "accent") for on in ("paper", "panel")]
    pairs += [("ink", on) for on in ("own", "concept", "bar", "bar-down", "warn")]
    pairs += [("warn-ink", "warn")]
    assert {
        pair: round(contrast(colour[pair[0]], colour[pair[1]]), 1)
        for pair in pairs
        if contrast(colour[pair[0]], colour[pair[1]]) < 4.5
    } == {}
