"""The Python interface: load a subject, score features, get a DataFrame. Needs no Hydra run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    import pandas as pd

    from steerlens.config.schema import CorpusConfig
    from steerlens.engine.subject import Subject


def load_subject(
    model: str = "smollm2-135m-instruct",
    sae: str = "smollm2-topk",
    layer: int | str = "all",
    **settings: Any,
) -> Subject:
    """Return a model and the SAE of one of its layers.

    Args:
        model: an entry of `steerlens list models`.
        sae: an entry of `steerlens list saes`.
        layer: the layer; `"all"` where the SAE is a single one.
        **settings: any other key of the configuration, e.g. `device="cpu"` or
            `**{"model.path": "DIR"}`.

    Raises:
        SteerlensError: in one sentence, if anything doesn't exist or doesn't fit together.
    """
    from steerlens.config.compose import compose
    from steerlens.config.overrides import override
    from steerlens.config.settings import parse_subject
    from steerlens.engine.subject import load_subjects

    overrides = [override(key, value) for key, value in {"layer": layer, **settings}.items()]
    config = compose([f"model={model}", f"sae={sae}", *overrides])
    subjects = load_subjects(parse_subject(config))
    subject = next(subjects)
    if not isinstance(layer, int) and next(subjects, None) is not None:
        raise SteerlensError(
            f"{sae} has SAEs of several layers; choose one: layer={subject.layer}, say."
        )
    return subject


def score_features(
    subject: Subject,
    method: str = "output",
    features: Iterable[int] | None = None,
    logit_lens_k: int = 20,
    memory_budget: int = 2 * 1024**3,
    seed: int = 0,
    corpus: str | Mapping[str, Any] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Score features of `subject`: one row each, with the columns of `features.parquet`.

    Args:
        subject: from `load_subject`.
        method: an entry of `steerlens list scores`.
        features: feature ids; None = all.
        logit_lens_k: number of logit-lens tokens in the table.
        memory_budget: bytes that scoring may use beyond the weights.
        seed: for methods that draw.
        corpus: for methods that need texts: an option of the `corpus` group, or its name and keys,
            e.g. `{"name": "text", "path": "FILE"}`; None = the examples that ship with the SAE,
            and where there are none, `embedded`.
        **settings: the method's own settings, e.g. `factor=10`.
    """
    from steerlens.config.parse import parse_ids
    from steerlens.config.registry import load_part
    from steerlens.engine.run_context import ScoreRun
    from steerlens.errors import unknown
    from steerlens.results import FEATURES
    from steerlens.scores.scoring import score_layer

    config_class = load_part("scores", method).Config
    try:
        config = config_class(**settings)
    except TypeError:
        valid = config_class.__dataclass_fields__
        wrong = next(key for key in settings if key not in valid)
        raise unknown(f"setting of score {method}", wrong, valid) from None
    ids = range(subject.d_sae) if features is None else parse_ids(list(features), subject.d_sae)
    shipped = subject.examples if corpus is None else None
    config.resolve_source(shipped, subject.examples)
    config.check()
    texts = _corpus(corpus or "embedded") if config.corpus_pass() else None
    run = ScoreRun(memory_budget=memory_budget, seed=seed, corpus=texts, examples=shipped)
    return FEATURES.frame(score_layer(subject, ids, {method: config}, logit_lens_k, run))


def _corpus(corpus: str | Mapping[str, Any]) -> CorpusConfig:
    from steerlens.config.compose import compose
    from steerlens.config.overrides import override

    keys = {"name": corpus} if isinstance(corpus, str) else dict(corpus)
    name = keys.pop("name", "embedded")
    overrides = [override(f"corpus.{key}", value) for key, value in keys.items()]
    return compose([f"corpus={name}", *overrides]).corpus
