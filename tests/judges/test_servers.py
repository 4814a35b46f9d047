"""judge=openai and judge=anthropic against a real HTTP server that behaves and misbehaves."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from steerlens.config.schema import JudgeConfig, RunConfig
from steerlens.errors import SteerlensError, Terminated
from steerlens.judges import Item, load_judge
from steerlens.judges.chat import Message, Unanswered
from steerlens.judges.items import UNANSWERED, UNPARSABLE
from steerlens.judges.openai import OpenAIChat
from tests.judges.conftest import ITEMS
from tests.support.judge_server import KEY, JudgeServer, Reply

Serve = Callable[..., JudgeServer]
Configure = Callable[..., RunConfig]

CLIENTS = pytest.mark.parametrize("client", ["openai", "anthropic"])


def values(rated: object) -> list[dict[str, int | None]]:
    return [{a: one.value for a, one in rating.items()} for rating in rated.ratings]  # type: ignore[attr-defined]


def by_words(prompt: str, _number: int) -> str:
    """2 for a text about the keel, else 0; the fluency of all is 1."""
    if "How well does it read?" in prompt:
        return "Fine.\nRating: [[1]]"
    return f"So it is.\n\nRating: [[{2 if 'keel' in prompt else 0}]]"


@CLIENTS
def test_every_aspect_is_rated_and_the_rerun_asks_nothing(
    client: str, serve: Serve, configure: Configure
) -> None:
    server = serve(by_words)
    config = configure(server, client)
    judge = load_judge(config)
    judge.check()
    assert server.asked == []
    done: list[int] = []
    rated = judge.rate(ITEMS, done.append)
    assert values(rated) == [
        {"concept": 2, "instruction": 2, "fluency": 1},
        {"concept": 0, "instruction": 0, "fluency": 1},
    ]
    assert (rated.judge, rated.kind, rated.stopped) == (f"{client}:judge-small", "llm", None)
    assert (len(server.asked), sum(done)) == (6, 6)
    assert (rated.cost.requests, rated.cost.from_cache) == (6, 0)
    assert (rated.cost.input_tokens, rated.cost.output_tokens) == (600, 60)
    again = load_judge(config).rate(ITEMS)
    assert again.ratings == rated.ratings
    assert (len(server.asked), again.cost.from_cache, again.cost.requests) == (6, 6, 6)


@CLIENTS
def test_the_request_has_the_model_the_limit_and_the_key(
    client: str, serve: Serve, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server = serve(key=KEY)
    settings = {"key_variable": "MY_KEY", "max_tokens": 33, "temperature": 0.5}
    load_judge(configure(server, client, **settings)).rate(ITEMS[:1])
    for body in server.asked:
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("judge-small", 33, 0.5)
        assert [message["role"] for message in body["messages"]] == ["user"]


def test_without_a_temperature_none_is_sent(serve: Serve, configure: Configure) -> None:
    server = serve()
    load_judge(configure(server, temperature=None)).rate(ITEMS[:1])
    assert all("temperature" not in body for body in server.asked)


def test_a_server_of_ones_own_needs_no_key(serve: Serve, configure: Configure) -> None:
    server = serve()
    assert load_judge(configure(server)).rate(ITEMS[:1]).stopped is None
    assert {headers["authorization"] for headers in server.headers} == {"Bearer none"}


@CLIENTS
@pytest.mark.parametrize("failure", [Reply(status=429), Reply(status=500), Reply(status=529)])
def test_what_passes_is_repeated_by_the_client(
    client: str, failure: Reply, serve: Serve, configure: Configure
) -> None:
    server = serve(lambda prompt, number: failure if number < 2 else by_words(prompt, number))
    rated = load_judge(configure(server, client, concurrency=1)).rate(ITEMS[:1])
    assert values(rated) == [{"concept": 2, "instruction": 2, "fluency": 1}]
    assert (len(server.asked), rated.cost.requests) == (5, 3)


def test_a_dropped_connection_is_repeated(serve: Serve, configure: Configure) -> None:
    server = serve(lambda prompt, number: Reply(drop=number == 0))
    rated = load_judge(configure(server, concurrency=1)).rate(ITEMS[:1])
    assert values(rated) == [{"concept": 1, "instruction": 1, "fluency": 1}]
    assert len(server.asked) == 4


MALFORMED = {
    "no JSON": Reply(raw=b'{"choices": [{"mess'),
    "another type": Reply(raw=b"<html>busy</html>", content_type="text/html"),
    "another object": Reply(raw=b'{"hello": 1}'),
    "a list": Reply(raw=b"[]"),
    "null": Reply(raw=b"null"),
    "no choice": Reply(raw=b'{"choices": [], "content": [], "usage": null}'),
}


@CLIENTS
@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_answer_is_missing_and_asked_for_again_by_the_next_run(
    client: str, what: str, serve: Serve, configure: Configure
) -> None:
    broken = True

    def answer(prompt: str, number: int) -> Reply | str:
        is_it = broken and "How well does it read?" in prompt
        return MALFORMED[what] if is_it else by_words(prompt, number)

    server = serve(answer)
    config = configure(server, client)
    rated = load_judge(config).rate(ITEMS[:1])
    rating = rated.ratings[0]["fluency"]
    assert (rating.value, rating.missing) == (None, UNANSWERED)
    assert rated.ratings[0]["concept"].value == 2
    assert rated.missing()["fluency"] == {UNANSWERED: 1}
    broken, before = False, len(server.asked)
    assert values(load_judge(config).rate(ITEMS[:1]))[0]["fluency"] == 1
    assert len(server.asked) == before + 1


@CLIENTS
def test_what_fails_to_the_end_is_missing_with_why(
    client: str, serve: Serve, configure: Configure
) -> None:
    def answer(prompt: str, number: int) -> Reply | str:
        refused = "Tax" in prompt
        return Reply(status=400) if refused else by_words(prompt, number)

    rated = load_judge(configure(serve(answer), client)).rate(ITEMS)
    assert [one.missing for one in rated.ratings[1].values()] == [UNANSWERED] * 3
    assert all("400: a failure 400" in one.detail for one in rated.ratings[1].values())
    assert values(rated)[0] == {"concept": 2, "instruction": 2, "fluency": 1}


def test_a_server_that_is_too_slow_is_not_waited_for(serve: Serve, configure: Configure) -> None:
    def answer(prompt: str, number: int) -> Reply:
        return Reply(delay=9.0 if "How well" in prompt else 0.0)

    rated = load_judge(configure(serve(answer), timeout=2.5, retries=0)).rate(ITEMS[:1])
    rating = rated.ratings[0]["fluency"]
    assert (rating.missing, rated.ratings[0]["concept"].value) == (UNANSWERED, 1)
    assert rating.detail == "no answer within judge.timeout=2.5 seconds"


@CLIENTS
def test_the_limit_is_on_the_whole_request(client: str, serve: Serve, configure: Configure) -> None:
    def answer(prompt: str, number: int) -> Reply:
        return Reply(trickles="How well" in prompt)

    rated = load_judge(configure(serve(answer), client, timeout=2.5, retries=0)).rate(ITEMS[:1])
    rating = rated.ratings[0]["fluency"]
    assert rating.detail == "no answer within judge.timeout=2.5 seconds"
    assert rated.ratings[0]["concept"].value == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have Ctrl-C interrupt, which processes that share the tests' work are made to ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@CLIENTS
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_at_once_while_requests_are_under_way(
    client: str, serve: Serve, configure: Configure
) -> None:
    def answer(prompt: str, number: int) -> Reply:
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return Reply(delay=0.0 if number == 0 else 120.0)

    server = serve(answer)
    judge = load_judge(configure(server, client, concurrency=3))
    with pytest.raises(KeyboardInterrupt):
        judge.rate(ITEMS)
    assert server.under_way == 3  # nobody has waited for them
    rated = load_judge(configure(serve(by_words), client)).rate(ITEMS)
    assert values(rated)[0] == {"concept": 2, "instruction": 2, "fluency": 1}


def test_answers_under_way_at_sigterm_are_kept(serve: Serve, configure: Configure) -> None:
    def end(_signal: int, _frame: object) -> None:
        raise Terminated

    def answer(prompt: str, number: int) -> Reply:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return Reply(delay=1.0)

    server = serve(answer)
    config = configure(server, concurrency=3)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(Terminated):
            load_judge(config).rate(ITEMS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(server.asked) == 3
    server.answer = by_words
    assert load_judge(config).rate(ITEMS).cost.from_cache == 3


USAGES = ["many", -5, 1.5, True, None, [3], {"a": 1}, 10**30]


@CLIENTS
@pytest.mark.parametrize("number", USAGES, ids=str)
def test_a_usage_that_is_no_number_counts_as_much_as_there_can_have_been(
    client: str, number: object, serve: Serve, configure: Configure
) -> None:
    text = "Rating: [[1]]"
    message = {"role": "assistant", "content": text}
    body = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": text}],
        "usage": {
            **{"prompt_tokens": number, "completion_tokens": number},
            **{"input_tokens": number, "output_tokens": number},
        },
    }
    config = configure(serve(lambda *_: Reply(raw=json.dumps(body).encode())), client)
    assert config.judge is not None
    first = load_judge(config).rate(ITEMS[:1])
    again = load_judge(config).rate(ITEMS[:1])
    assert again.ratings == first.ratings
    for rated in (first, again):
        assert values(rated) == [{"concept": 1, "instruction": 1, "fluency": 1}]
        assert rated.cost.input_tokens > 300
        assert rated.cost.output_tokens == 3 * config.judge.max_tokens


def test_a_poisoned_answer_of_an_earlier_version_does_no_harm(
    serve: Serve, configure: Configure, tmp_path: Path
) -> None:
    config = configure(serve())
    load_judge(config).rate(ITEMS[:1])
    for file in (Path(config.paths.cache_dir) / "judges").rglob("*.json"):
        content = json.loads(file.read_text())
        del content["sha256"]
        content["answer"]["input_tokens"] = "many"
        file.write_text(json.dumps(content))
    rated = load_judge(config).rate(ITEMS[:1])
    assert (rated.cost.from_cache, rated.cost.output_tokens) == (3, 30)


def test_a_kept_answer_with_another_text_is_asked_for_again(
    serve: Serve, configure: Configure
) -> None:
    server = serve()
    config = configure(server)
    first = load_judge(config).rate(ITEMS[:1])
    file = next((Path(config.paths.cache_dir) / "judges").rglob("*.json"))
    file.write_text(file.read_text().replace("[[1]]", "[[2]]"))
    assert load_judge(config).rate(ITEMS[:1]).ratings == first.ratings
    assert len(server.asked) == 4


@CLIENTS
def test_an_unparsable_answer_is_asked_for_again_in_the_same_conversation(
    client: str, serve: Serve, configure: Configure
) -> None:
    server = serve(lambda prompt, number: ["", "I'd say two.", "Rating: [[2]]"][number % 3])
    config = configure(server, client, concurrency=1)
    rated = load_judge(config).rate([replace(ITEMS[0], instruction=None)])
    assert values(rated) == [{"concept": 2, "fluency": 2}]
    assert len(server.asked) == 6
    roles = [message["role"] for message in server.asked[2]["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    said = [message["content"] for message in server.asked[2]["messages"]]
    assert (said[1], said[3]) == ("(nothing)", "I'd say two.")
    assert said[0] == server.asked[0]["messages"][0]["content"]
    again = load_judge(config).rate([replace(ITEMS[0], instruction=None)])
    assert again.ratings == rated.ratings
    assert (len(server.asked), again.cost.from_cache) == (6, 6)


@pytest.mark.parametrize(("as_zero", "value"), [(False, None), (True, 0)])
def test_what_stays_unparsable_is_missing_and_counted_or_axbenchs_zero(
    as_zero: bool, value: int | None, serve: Serve, configure: Configure
) -> None:
    server = serve(lambda prompt, number: Reply(text="Rating: [[3]]", stopped="length"))
    config = configure(server, unparsable_is_zero=as_zero)
    rated = load_judge(config).rate(ITEMS)
    assert values(rated) == [dict.fromkeys(("concept", "instruction", "fluency"), value)] * 2
    assert {one.missing for rating in rated.ratings for one in rating.values()} == {UNPARSABLE}
    assert rated.missing() == {
        aspect: {UNPARSABLE: 2} for aspect in ("concept", "instruction", "fluency")
    }
    assert "'3'" in rated.ratings[0]["concept"].detail
    assert "(it ended with length)" in rated.ratings[0]["concept"].detail
    assert len(server.asked) == 3 * 6
    load_judge(configure(server, unparsable_is_zero=not as_zero)).rate(ITEMS)
    assert len(server.asked) == 3 * 6  # the setting is no reason to ask again


def test_no_more_than_concurrency_are_under_way_and_all_are_used(
    serve: Serve, configure: Configure
) -> None:
    four = threading.Barrier(4, timeout=20)  # breaks unless four requests are there at once

    def answer(prompt: str, number: int) -> Reply:
        if number < 4:
            four.wait()
        return Reply(delay=0.005)

    server = serve(answer)
    items = [Item(f"Text {n}.", f"concept {n % 5}") for n in range(40)]
    rated = load_judge(configure(server, concurrency=4)).rate(items)
    assert server.most_at_once == 4
    assert len(server.asked) == 80
    assert all(one.value == 1 for rating in rated.ratings for one in rating.values())


def test_ratings_come_to_the_items_they_are_of_however_answers_are_ordered(
    serve: Serve, configure: Configure
) -> None:
    def answer(prompt: str, number: int) -> Reply:
        which = int(prompt.split("Text ")[1].split(".")[0])
        return Reply(f"Rating: [[{which % 3}]]", delay=0.002 * (7 * which % 5))

    items = [Item(f"Text {n}.", "boats", "Count.") for n in range(30)]
    rated = load_judge(configure(serve(answer), concurrency=6)).rate(items)
    for number, rating in enumerate(rated.ratings):
        assert {one.value for one in rating.values()} == {number % 3}


def test_the_same_thing_is_asked_once(serve: Serve, configure: Configure) -> None:
    server = serve()
    same = Item("The same text.", "boats", "Do it.")
    items = [same, same, replace(same, concept="cars")]
    rated = load_judge(configure(server)).rate(items)
    assert len(server.asked) == 4  # concept twice, instruction and fluency once
    assert values(rated) == [{"concept": 1, "instruction": 1, "fluency": 1}] * 3


@CLIENTS
def test_a_wrong_key_is_one_sentence(
    client: str, serve: Serve, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "bad-secret")
    judge = load_judge(configure(serve(key=KEY), client, key_variable="MY_KEY"))
    for call in (judge.check, lambda: judge.rate(ITEMS)):
        with pytest.raises(SteerlensError, match="refuses the key in MY_KEY: wrong key") as caught:
            call()
        assert "bad-secret" not in str(caught.value)


@CLIENTS
def test_an_unknown_model_is_told_with_the_nearest(
    client: str, serve: Serve, configure: Configure
) -> None:
    judge = load_judge(configure(serve(), client, model="judge-smal"))
    for call in (judge.check, lambda: judge.rate(ITEMS)):
        with pytest.raises(SteerlensError, match="'judge-smal'; did you mean 'judge-small'"):
            call()


def test_an_alias_that_is_not_listed_is_fine(serve: Serve, configure: Configure) -> None:
    judge = load_judge(configure(serve(), model="an-alias"))
    judge.check()
    assert judge.rate(ITEMS).stopped is None


def test_a_server_that_lists_no_models_is_asked_all_the_same(
    serve: Serve, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    judge = load_judge(configure(serve(lists_models=False)))
    judge.check()
    assert "judge.model=judge-small can't be checked" in caplog.text
    assert judge.rate(ITEMS).stopped is None


def test_an_address_without_the_service_is_one_sentence(serve: Serve, configure: Configure) -> None:
    judge = load_judge(configure(serve().url + "/elsewhere"))
    with pytest.raises(SteerlensError, match=r"is judge\.base_url right\? It usually ends in /v1"):
        judge.rate(ITEMS)


@CLIENTS
def test_no_server_is_one_sentence(client: str, serve: Serve, configure: Configure) -> None:
    with JudgeServer() as gone:
        url = gone.url
    judge = load_judge(configure(url, client, retries=0))
    with pytest.raises(SteerlensError, match=f"no judge answers at {url}"):
        judge.check()
    with pytest.raises(SteerlensError, match="doesn't answer: no connection to"):
        judge.rate(ITEMS)


def test_openais_own_server_takes_the_limit_by_its_newer_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked: dict[str, object] = {}
    chat = OpenAIChat(JudgeConfig("openai", "gpt-4o-mini", max_tokens=33))

    async def create(**settings: object) -> object:
        asked.update(settings)
        raise ValueError

    monkeypatch.setattr(chat.client.chat.completions, "create", create)
    (answer,) = chat.answers([(Message("user", "Is it?"),)])
    assert isinstance(answer, Unanswered)
    assert (asked["max_completion_tokens"], "max_tokens" in asked) == (33, False)
