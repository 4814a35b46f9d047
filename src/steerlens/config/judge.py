"""Values of `judge`: each has one meaning, and a check that needs neither model nor network."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from urllib.parse import urlsplit

from steerlens.config.entries import entries
from steerlens.config.prices import base_url, price_of, variable_of
from steerlens.config.registry import load_part, parts_of
from steerlens.config.schema import JudgeConfig, ModelConfig
from steerlens.errors import SteerlensError


def check_judge(judge: JudgeConfig) -> None:
    """Refuse, in one sentence, what can't work: also a missing client, key or price."""
    module = load_part("judges", judge.name)
    _check_numbers(judge)
    module.check(judge)


def check_model(judge: JudgeConfig) -> None:
    """Refuse a judge without a model, for one that is a language model."""
    if not (judge.model or "").strip():
        raise SteerlensError(f"judge={judge.name} needs judge.model=NAME.")


def local_model(judge: JudgeConfig | None) -> ModelConfig | None:
    """Return the model that a judge loads in this process, with its size if an entry of
    `conf/model` is of the same one; None where none is loaded.
    """
    if judge is None or judge.name != "local" or not judge.model:
        return None
    sizes = {entry["path"]: entry.get("n_params") for entry in entries("model").values()}
    size = sizes.get(judge.model)
    n_params = None if size is None else float(size)
    return ModelConfig(name=judge.model, path=judge.model, n_params=n_params)


def check_server(judge: JudgeConfig, client: str) -> None:
    """Refuse a server's judge without its `client` (a package), address, key or price."""
    check_model(judge)
    _check_url(judge)
    if importlib.util.find_spec(client) is None:
        raise SteerlensError(
            f"judge={judge.name} needs its client: pip install -c constraints.txt -e '.[judges]' "
            "in a checkout of steerlens."
        )
    judge_key(judge)
    if judge.budget_usd is not None and price_of(judge) is None:
        raise SteerlensError(
            f"judge.budget_usd={judge.budget_usd} needs the price of {judge.model}"
            f"{' at judge.base_url' if base_url(judge) else ''}, which isn't known: add "
            "judge.usd_per_million_input=... and judge.usd_per_million_output=... (0 on a "
            "machine of your own)."
        )


def key_variable(judge: JudgeConfig) -> str:
    """Return the environment variable that the key is read from."""
    return judge.key_variable or variable_of(judge, "API_KEY")


def judge_key(judge: JudgeConfig) -> str:
    """Return the key, from the environment.

    A server of one's own usually wants none, but the clients do: there, without one, any text.

    Raises:
        SteerlensError: there is none, and it's needed.
    """
    variable = key_variable(judge)
    key = os.environ.get(variable, "").strip()
    if key:
        return key
    if base_url(judge) and judge.key_variable is None:
        return "none"
    raise SteerlensError(
        f"judge={judge.name} needs a key in the environment variable {variable}: export "
        f"{variable}=..."
        + (
            ""
            if judge.name == "anthropic"
            else ", or name a server of your own, judge.base_url=URL"
        )
        + "."
    )


def _check_numbers(judge: JudgeConfig) -> None:
    for name in ("concurrency", "attempts", "max_tokens"):
        if getattr(judge, name) < 1:
            raise SteerlensError(f"judge.{name}={getattr(judge, name)} must be at least 1.")
    if judge.retries < 0:
        raise SteerlensError(f"judge.retries={judge.retries} must be 0 or more.")
    if not (math.isfinite(judge.timeout) and judge.timeout > 0):
        raise SteerlensError(f"judge.timeout={judge.timeout} must be seconds, more than 0.")
    for name in (
        "budget_usd",
        "usd_per_million_input",
        "usd_per_million_output",
        "temperature",
    ):
        number = getattr(judge, name)
        if number is not None and not (math.isfinite(number) and number >= 0):
            raise SteerlensError(f"judge.{name}={number} must be 0 or more.")
    if (judge.usd_per_million_input is None) != (judge.usd_per_million_output is None):
        raise SteerlensError(
            "judge.usd_per_million_input and judge.usd_per_million_output are a price only "
            "together: give both."
        )


def refuse_settings_of_others(judge: JudgeConfig, names: tuple[str, ...]) -> None:
    """Refuse the settings `names`, which mean nothing to this judge, where they are given."""
    for name in names:
        if getattr(judge, name) is not None:
            judges = [judge for judge in parts_of("judges") if judge not in ("lexical", "local")]
            judges += ["local"] if name == "model" else []
            raise SteerlensError(
                f"judge.{name} means nothing to judge={judge.name}; it is for "
                f"judge={'|'.join(judges)}."
            )


def _check_url(judge: JudgeConfig) -> None:
    url = base_url(judge)
    if url is None:
        return
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise SteerlensError(
            f"judge.base_url={_without_secrets(url)} is no address of a server; write "
            "judge.base_url=http://127.0.0.1:8000/v1, say."
        )
    parts = urlsplit(url)
    held = "a name or password" if "@" in parts.netloc else "a query"
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url:
        raise SteerlensError(
            f"judge.base_url={_without_secrets(url)} has {held} in it, which would be written into "
            f"the run's files; leave it out, and put a key into the environment variable "
            f"{key_variable(judge)}."
        )


def _without_secrets(url: str) -> str:
    """Return an address without the parts that may hold a key."""
    return re.sub(r"^(\w+://)?[^/]*@", r"\1***@", re.sub(r"[?#].*", "?***", url, flags=re.S))
