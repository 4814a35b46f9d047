"""What `steerlens --help` says: of everything in short, and of each verb, group and setting."""

from __future__ import annotations

import pytest

from steerlens.cli.help import help_text
from steerlens.cli.verbs import VERBS
from steerlens.config.docstrings import all_settings, group_classes
from steerlens.config.entries import conf_dir, header, options
from steerlens.config.registry import parts_of
from steerlens.errors import SteerlensError
from steerlens.results import TABLES


def test_the_short_help_names_what_people_come_for() -> None:
    shown = help_text()
    for words in ("concept=WORD", "steer=grid", "--help TOPIC", "steerlens list KIND"):
        assert words in shown
    assert all(f"steerlens {verb} " in shown for verb in VERBS)


def test_every_setting_is_described() -> None:
    assert [setting.key for setting in all_settings() if not setting.about] == []


def test_every_setting_is_found_by_its_key_with_its_default_and_its_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = all_settings()
    monkeypatch.setattr("steerlens.cli.help.all_settings", lambda: settings)  # collected once
    for setting in settings:
        shown = help_text(setting.key)
        assert shown.startswith(f"  {setting.key}=")
        assert setting.about.split()[0] in shown
    assert "steer.operator=add\n" in help_text("steer.operator")
    assert "min_clamp: `max(a, s u)`" in help_text("steer.operator")


@pytest.mark.parametrize("group", sorted({*options(), *group_classes()}))
def test_a_group_shows_its_options_and_its_settings(group: str) -> None:
    shown = help_text(group)
    assert shown.startswith(f"{group}: ")
    assert len(shown.splitlines()[0]) > len(f"{group}: ")
    assert all(f"\n  {group}={option}\n" in shown for option in options().get(group, []))
    assert all(
        f"\n  {setting.key}=" in shown
        for setting in all_settings()
        if setting.key.startswith(f"{group}.") and group in group_classes()
    )


def test_an_option_shows_its_header_how_long_it_took_and_what_it_sets() -> None:
    shown = help_text("experiment=demo")
    assert "experiment=demo: The main job of `make demo`" in shown
    assert "Takes 2 min 29 s" in shown
    assert "steerlens experiment=demo" in shown
    assert "name: demo" in shown
    assert help_text("demo") == shown
    assert "factors: [0.2," in help_text("steer=grid")


def test_a_scoring_method_shows_its_settings_by_their_whole_keys_and_by_the_flat_ones() -> None:
    for method in parts_of("scores"):
        assert f"score={method}: " in help_text(f"score.{method}")
    assert "score.output.null_directions=499" in help_text("score.output")
    assert "score.output.factor=10" in help_text("score.factor")


def test_a_table_shows_its_columns_and_a_column_every_table_that_has_it() -> None:
    for table in TABLES:
        shown = help_text(table.file)
        assert all(
            f"\n  {name} ({column.kind})\n" in shown for name, column in table.columns.items()
        )
    shown = help_text("perplexity")
    assert all(file in shown for file in ("generations.parquet", "steering.parquet"))


@pytest.mark.parametrize("verb", VERBS)
def test_help_on_a_verb_is_about_the_verb(verb: str) -> None:
    first, empty, *about = help_text(verb).splitlines()
    assert first.startswith(f"steerlens {verb} ")
    assert empty == ""
    assert about


@pytest.mark.parametrize(
    ("topic", "near"),
    [("steer.oprator", "steer.operator"), ("experiments", "experiment"), ("reprot", "report")],
)
def test_an_unknown_topic_is_refused_with_the_nearest(topic: str, near: str) -> None:
    with pytest.raises(SteerlensError, match=f"no help on '{topic}'; did you mean .*{near}"):
        help_text(topic)


def test_a_header_is_prose_commands_and_a_time() -> None:
    top = header(
        "# @package _global_\n# What is it? A\n# demo.\n#   steerlens x=1\n# Takes: 2 s\na: 1"
    )
    assert (top.text, top.about) == ("What is it? A demo.", "What is it?")
    assert top.commands == ("steerlens x=1",)
    assert top.takes == "2 s"
    assert header("a: 1").takes is None


def test_every_file_of_conf_begins_with_a_sentence() -> None:
    for file in conf_dir().glob("*/**/*.yaml"):
        assert header(file.read_text(encoding="utf-8")).about, file
