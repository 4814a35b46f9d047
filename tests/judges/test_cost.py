"""Prices, and how many tokens a prompt can have."""

from __future__ import annotations

import datetime
import json

import pytest

from steerlens.config.prices import FREE, PRICES_FILE, price_of
from steerlens.config.schema import JudgeConfig
from steerlens.judges.chat import Message
from steerlens.judges.cost import Cost, tokens_at_most, usual_tokens


def test_a_dated_model_has_the_price_of_its_name() -> None:
    plain = price_of(JudgeConfig("openai", "gpt-4o-mini"))
    assert plain is not None
    assert price_of(JudgeConfig("openai", "gpt-4o-mini-2024-07-18")) == plain
    assert price_of(JudgeConfig("anthropic", "claude-haiku-4-5-20251001")) is not None
    assert price_of(JudgeConfig("openai", "gpt-4o-mini-tuned")) is None


def test_every_price_has_its_day() -> None:
    for name, price in json.loads(PRICES_FILE.read_text()).items():
        assert datetime.date.fromisoformat(price["listed_on"]), name
        assert 0 < price["input"] <= price["output"]


def test_settings_come_first_and_other_servers_have_no_list_price(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = JudgeConfig("openai", "gpt-4o-mini", base_url="http://127.0.0.1:1/v1")
    assert price_of(config) is None
    config.usd_per_million_input, config.usd_per_million_output = 3.0, 5.0
    price = price_of(config)
    assert price is not None
    assert price.usd(1_000_000, 200_000) == pytest.approx(4.0)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert price_of(JudgeConfig("openai", "gpt-4o-mini")) is None
    assert price_of(JudgeConfig("local", "x")) == price_of(JudgeConfig("lexical")) == FREE


def test_the_most_tokens_are_no_fewer_than_a_byte_level_tokenizer_makes() -> None:
    one = (Message("user", "naïve ☃ text"),)
    assert tokens_at_most(one) >= len("naïve ☃ text".encode())
    assert 0 < usual_tokens(one) < tokens_at_most(one)


def test_the_sum_of_costs_is_unknown_where_one_of_them_is() -> None:
    first, second = Cost(3, 1, 100, 10, 0.5, 0.25), Cost(2, 2, 50, 5, 0.125, 0.0)
    assert first.plus(second) == Cost(5, 3, 150, 15, 0.625, 0.25)
    unpriced = Cost(1, 0, 7, 3, None, None)
    assert first.plus(unpriced) == unpriced.plus(first) == Cost(4, 1, 107, 13, None, None)
