"""Checks of names and counts against what files and vocabularies hold, without loading a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path

from steerlens.config.compose import usual_values
from steerlens.config.folders import tokenizer_file, vocabulary_size
from steerlens.config.kinds import CONCEPT, FEATURES
from steerlens.config.parse import parse_ids
from steerlens.config.schema import RunConfig, SelectionConfig
from steerlens.config.settings import Settings
from steerlens.data.concept_sets.embedded import TOPICS
from steerlens.data.concept_sets.folders import names_of_folder
from steerlens.data.neuronpedia import UNNAMED, activation_files, explanation_files, rows
from steerlens.errors import SteerlensError, unknown
from steerlens.scores.concepts import FileTokenizer, Vocabulary


def check_contents(settings: Settings, layers: Sequence[int]) -> None:
    """Refuse names that aren't where they are looked up, and counts of more than there is.

    Args:
        settings: the run's.
        layers: its layers, as far as they are told before the weights are here.

    Raises:
        SteerlensError: which name or count, and what there is.
    """
    _check_selection(settings)
    _check_together(settings)
    _check_tokens(settings)
    if settings.labels:
        for file in explanation_files(Path(settings.labels)):
            next(rows(file, "explanations"), None)
    for score in settings.scores.values():
        if getattr(score, "source", None) == "neuronpedia":
            for layer in layers:
                activation_files(Path(str(getattr(score, "path", None))), layer, UNNAMED)


def _check_selection(settings: Settings) -> None:
    """Refuse to select by a score that the run's methods don't compute, as far as they say."""
    selection, together = settings.selection, settings.steering.steer.together
    if settings.kind not in (FEATURES, CONCEPT):
        return
    selects = selection.threshold is not None or selection.top_n is not None or together
    if not selects and selection.score == SelectionConfig().score:
        return
    columns = [score.FILLS for score in settings.scores.values()]
    if all(columns) and selection.score not in chain(*columns):
        raise unknown("selection.score", selection.score, [*chain(*columns)])


def _check_together(settings: Settings) -> None:
    """Refuse to steer with more features at once than the run looks at in a layer."""
    features = settings.features
    n_ids = None if features.ids is None else len(parse_ids(features.ids))
    counts = {
        "the {n} of features.ids": n_ids,
        "features.n={n}": features.n,
        "selection.top_n={n}": settings.selection.top_n,
    }
    for n_together in settings.steering.steer.together:
        for source, n in counts.items():
            if n is not None and n_together > n:
                raise SteerlensError(
                    f"steer.together: {n_together} features together are more than "
                    f"{source.format(n=n)}."
                )


def _check_tokens(settings: Settings) -> None:
    """Refuse more tokens of a feature than there are, and a concept that no token stands for."""
    model = settings.subject.model
    counts = [
        ("logit_lens_k", settings.logit_lens_k, ""),
        ("features.top_k", settings.features.top_k, ""),
        ("coverage.top_k", settings.coverage.top_k, ""),
        ("generation.top_k", settings.steering.generation.top_k, ""),
    ]
    for name, score in settings.scores.items():
        of_score = f" of score {name}"
        counts += [(key, getattr(score, key, None), of_score) for key in ("top_k", "k")]
    n_tokens = vocabulary_size(model)
    for key, count, whose in counts:
        if count is not None and n_tokens is not None and count > n_tokens:
            raise SteerlensError(
                f"{key}={count}{whose} is more than the {n_tokens} tokens of {model.title}."
            )
    concepts = settings.concepts_looked_up
    file = tokenizer_file(model, settings.cache_dir) if concepts else None
    if file and (vocabulary := _vocabulary(file)):
        for names in concepts:
            vocabulary.tokens(names)


@cache
def _vocabulary(file: Path) -> Vocabulary | None:
    """Decode a tokenizer once for all jobs of a sweep; None where it can't be read alone."""
    try:
        return Vocabulary(FileTokenizer(file))
    except Exception:  # what `tokenizers` raises; loading the model tells what is wrong
        return None


def check_concept_set(config: RunConfig) -> None:
    """Refuse names of concepts that the set doesn't have, and more concepts than it has, as far as
    that is told before its texts are read.

    More than there are may be what the experiment is made for, on another set: the set tells then.
    """
    concepts = config.concepts
    assert concepts is not None
    if concepts.source == "embedded":
        names, where = list(TOPICS), "embedded"
    elif concepts.source == "folder" and "{layer}" not in str(concepts.path):
        names, where = names_of_folder(Path(str(concepts.path))), Path(str(concepts.path)).name
    else:
        return
    for name in concepts.only:
        if name not in names:
            raise unknown(f"concept of {where}", name, set(names))
    if concepts.only or concepts.n is None or concepts.n <= len(names):
        return
    _, experiment = usual_values(config)
    if experiment and experiment.concepts and experiment.concepts.n == concepts.n:
        return
    raise SteerlensError(
        f"concepts.n={concepts.n} is more than the {len(names)} concepts of {where}."
    )
