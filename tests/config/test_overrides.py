"""Overrides that Hydra can't read come back quoted."""

from __future__ import annotations

import random
import shlex

import pytest

from steerlens.config.compose import compose
from steerlens.config.overrides import jobs, override, parse, proposal, quoted
from steerlens.errors import SteerlensError

ALPHABET = "ab 1.,:;=()[]{}'\"\\#$&|<>*?!~`@%^+-_/\té漢\n"


def refusal(*overrides: str) -> str:
    with pytest.raises(SteerlensError) as caught:
        parse(overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["From my experience,", "f(x)", "a=b", "C# is", "it's", 'say "hi"', "[a", "blocks.{layer}.x"],
)
def test_the_suggestion_for_an_unreadable_override_reads_as_the_same_text(text: str) -> None:
    message = refusal(f"score.prompt={text}")
    (suggested,) = shlex.split(message.rpartition("for Hydra: ")[2])
    assert parse([suggested])[0].value() == text


def test_every_text_survives_quoting_for_the_shell_and_for_hydra() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices(ALPHABET, k=draw.randint(0, 12)))
        (typed,) = shlex.split(quoted("score.prompt", text))
        assert parse([typed])[0].value() == text, text


def test_every_text_without_a_dollar_reaches_the_configuration_unchanged() -> None:
    draw = random.Random(1)
    for _ in range(30):
        text = "".join(draw.choices(ALPHABET.replace("$", ""), k=draw.randint(1, 12)))
        (typed,) = shlex.split(quoted("score.prompt", text))
        assert compose([typed]).score["output"].prompt == text, text


@pytest.mark.parametrize(
    "value", [3, -1.5, 1e-30, True, None, "a b,", [1, 2], ["a,", "b"], {"a": 0, "b.c": "x y"}, []]
)
def test_values_of_every_type_survive_as_overrides(value: object) -> None:
    assert parse([override("key", value)])[0].value() == value


def test_words_of_an_unquoted_text_are_put_together_again() -> None:
    message = refusal("layer=3", "score.prompt=From", "my", "experience,", "seed=1")
    assert message.endswith("""'score.prompt="From my experience,"'""")


def test_a_word_alone_is_no_override() -> None:
    assert refusal("layer") == "'layer' is no key=value; see `steerlens --help`."


def test_spaces_around_the_equal_sign_are_told() -> None:
    assert "without spaces" in refusal("layer=1", "=3")


def test_a_list_without_brackets_is_told_apart_from_a_sweep() -> None:
    message = refusal("features.ids=1,2,3")
    assert "add -m" in message
    assert "features.ids=[1,2,3]" in message
    assert """'features.ids="1,2,3"'""" in message


def test_a_range_needs_multirun() -> None:
    assert refusal("seed=range(3)").endswith("add -m for one run per value.")


def test_a_home_folder_is_written_out() -> None:
    message = refusal("sae.path=~/x")
    (suggested,) = shlex.split(message.rpartition("write ")[2])
    value = parse([suggested])[0].value()
    assert isinstance(value, str)
    assert value.endswith("/x")
    assert "~" not in value


def test_a_key_that_is_no_key_is_told() -> None:
    assert "is no key" in refusal("a b=3")


def test_every_value_of_a_sweep_is_in_one_of_the_jobs_to_check() -> None:
    parsed = parse(["seed=1,2,3", "layer=4", "score.factor=5,6"], multirun=True)
    assert jobs(parsed) == [
        ["layer=4", "seed=1", "score.factor=5"],
        ["layer=4", "seed=2", "score.factor=5"],
        ["layer=4", "seed=3", "score.factor=5"],
        ["layer=4", "seed=1", "score.factor=6"],
    ]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("[介绍一下你。]", ["介绍一下你。"]),
        (
            "[介绍一下你。,1,2.5,null,true,plain text]",
            ["介绍一下你。", 1, 2.5, None, True, "plain text"],
        ),
        ("[From my experience., it's (so, they say) good]", None),
        ("['one, two',C# is]", ["one, two", "C# is"]),
        ("[[a=b,c],[d]]", [["a=b", "c"], ["d"]]),
        ("{title:介绍。,steps:[a=b,2]}", {"title": "介绍。", "steps": ["a=b", 2]}),
        ("{a:{b:x=y}}", {"a": {"b": "x=y"}}),
        ("{no pair。}", "{no pair。}"),
        ("[a=b", "[a=b"),
        (" a, b=c ", " a, b=c "),
    ],
)
def test_what_is_proposed_means_what_was_typed(typed: str, meant: object) -> None:
    if meant is None:
        meant = ["From my experience.", "it's (so, they say) good"]
    message = refusal(f"generation.prompts={typed}")
    (suggested,) = shlex.split(message.rpartition("for Hydra: ")[2])
    assert parse([suggested])[0].value() == meant


def test_words_of_a_list_are_put_together_as_a_list() -> None:
    message = refusal("generation.prompts=[Tell", "me.,", "Who's", "there?]")
    (suggested,) = shlex.split(message.rpartition("for Hydra: ")[2])
    assert parse([suggested])[0].value() == ["Tell me.", "Who's there?"]


def test_every_proposal_can_be_read() -> None:
    draw = random.Random(2)
    for _ in range(300):
        words = ["".join(draw.choices(ALPHABET, k=draw.randint(0, 6))) for _ in range(3)]
        form = draw.choice(["[{},{}]", "{{a:{},b:{}}}", "{}{}", "[[{}],{}]"])
        (typed,) = shlex.split(proposal("score.prompt", form.format(*words)))
        parse([typed])


@pytest.mark.parametrize("text", ["1,2,3", "a,b", '"x, y",z', "[1],[2]"])
def test_every_proposal_for_several_values_can_be_read(text: str) -> None:
    message = refusal(f"features.ids={text}")
    for suggested in [word for word in shlex.split(message) if word.startswith("features.ids=")][
        1:
    ]:
        parse([suggested.rstrip(",")])
