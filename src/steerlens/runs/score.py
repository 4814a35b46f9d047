"""Scoring: the tables of the SAEs, of their features, and of the words that they cover."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from steerlens.analysis.ranking import BEST_OF_LAYER, best_of_layers
from steerlens.config.gguf import model_names
from steerlens.config.settings import Settings
from steerlens.data.neuronpedia import (
    Labels,
    label_columns,
    labels_of_layer,
    read_labels,
    source_of_sae,
)
from steerlens.engine.run_context import RunContext
from steerlens.errors import SteerlensError
from steerlens.report.terminal import progress
from steerlens.results import (
    CARDS,
    COVERAGE,
    EXAMPLES,
    FEATURES,
    NEIGHBOURS,
    NULL_SCORES,
    SAES,
)
from steerlens.runs.models import RunModels, steering_of
from steerlens.runs.run_folder import RunFolder
from steerlens.scores.selection import part, select_features
from steerlens.storage.provenance import file_identity

if TYPE_CHECKING:
    import numpy as np

    from steerlens.engine.subject import LoadedModel, Subject
    from steerlens.scores.concepts import ConceptTokens

CONVERGED_ON = 512
"""Features on which two halves of a lens's sequences are compared."""

WordTokens = Mapping[str, "ConceptTokens | str"]
"""Words, each with its tokens or why it has none."""


def score(
    settings: Settings, ctx: RunContext, models: RunModels, folder: RunFolder
) -> pd.DataFrame:
    """Score the chosen features of all layers by all chosen methods.

    What is finished is written layer by layer: the SAEs, the features, random directions beside
    them, and the words that the SAEs cover.

    Args:
        settings: the run's.
        ctx: memory, seed, corpus, and the store of finished scores.
        models: model, SAEs and evaluator.
        folder: where the tables go.

    Returns:
        The table of features.

    Raises:
        SteerlensError: there is nothing to score, or it can't be.
    """
    from steerlens.engine.corpus_pass import PiecesFired, in_groups, read_corpus
    from steerlens.engine.subject.sae import sae_sources
    from steerlens.scores.quality import sae_rows

    refuse_absent_concept(settings)
    names = model_names(settings.subject.model)
    labels = read_labels(Path(settings.labels), names) if settings.labels else {}
    requests = [*settings.scores.values()]
    if settings.counts_need_a_pass:
        requests.append(PiecesFired(at_most=settings.features.min_examples or 1))
    words: WordTokens = {}
    sources = sae_sources(settings.subject)
    layers = tuple(source.layer for source in sources if source.layer is not None)
    for group in in_groups(models.subjects(), requests, ctx.memory_budget):
        lm = group[0].lm
        folder.note(chat_template=steering_of(lm, settings.steering).generation.chat_template)
        words = words or words_of_shard(lm, settings)
        # Of its own for each group, so that only one group's activations are in memory.
        group_ctx = dataclasses.replace(ctx.for_group(), later=models.after, layers=layers)
        read_corpus(group, requests, group_ctx)
        folder.add(SAES, SAES.frame(sae_rows(group, settings.quality_tokens, group_ctx)))
        _score_group(group, settings, labels, group_ctx, folder)
        if words:
            _cover_group(group, words, settings, group_ctx, models, folder)
    features = folder.rows(FEATURES)
    if features.empty:
        if settings.shard:
            raise SteerlensError(
                f"shard={settings.shard} is empty: no layer has so many features; split into "
                "fewer parts."
            )
        folder.add(FEATURES, features)  # nothing stands for the concept, which is an answer, too
    return features


def refuse_absent_concept(settings: Settings) -> None:
    """Refuse a concept that no token stands for, before the model is loaded."""
    from steerlens.engine.subject.gguf import loadable
    from steerlens.engine.subject.model import load_tokenizer
    from steerlens.scores.concepts import Vocabulary

    if concepts := settings.concepts_looked_up:
        vocabulary = Vocabulary(
            load_tokenizer(loadable(settings.subject.model, settings.cache_dir))
        )
        for names in concepts:
            vocabulary.tokens(names)


def _score_group(
    group: Sequence[Subject],
    settings: Settings,
    labels: Mapping[str, Labels],
    ctx: RunContext,
    folder: RunFolder,
) -> None:
    """Write the rows of each subject of a group that has read the corpus together."""
    from steerlens.engine.lens import JACOBIAN
    from steerlens.scores.scoring import null_columns, score_layer

    scores = settings.scores
    for subject in group:
        source = source_of_sae(subject.sae.cfg.metadata.neuronpedia_id, subject.layer, subject.name)
        labels_here = labels_of_layer(labels, subject.layer, source, f"labels={settings.labels}")
        features = features_of(subject, settings, labels_here, ctx)
        if not features:
            continue
        start = time.perf_counter()
        name = f"layer {subject.layer}"
        with progress(len(features), name, each=len(scores)) as advance:
            own_ctx = dataclasses.replace(ctx, progress=advance)
            columns = score_layer(subject, features, scores, settings.logit_lens_k, own_ctx)
            if null := null_columns(subject, scores, own_ctx):
                folder.add(NULL_SCORES, NULL_SCORES.frame(null))
        if settings.lens.name == JACOBIAN and any(method.uses_lens() for method in scores.values()):
            folder.note_line(_convergence(subject, features, settings, ctx))
        facts: dict[str, Any] = {"corpus": None}
        if n_tokens := [read.n_tokens for read in ctx.cache.activations.values()]:
            facts["corpus"] = {**(ctx.corpus_key() or {}), "tokens_read": max(n_tokens)}
        if files := {file for method in scores.values() for file in method.examples()}:
            facts["examples"] = [file_identity(file, settings.cache_dir) for file in sorted(files)]
        folder.finish_stage(subject, "scoring", start, **facts)
        rows = FEATURES.frame(columns | label_columns(labels_here, features))
        folder.add(FEATURES, rows)
        if settings.describes_features:
            _write_cards(subject, rows, settings, ctx, folder)


def _convergence(
    subject: Subject, features: Sequence[int], settings: Settings, ctx: RunContext
) -> str:
    """Say how far the Jacobian lens's tokens depend on the sequences that it is the mean of."""
    import torch

    from steerlens.engine.lens import convergence

    if path := settings.lens.path:
        sae = settings.subject.sae
        ships = f", which ships with sae={sae.name}" if path == sae.jacobians else ""
        return f"The Jacobian lens of layer {subject.layer} is read from {path}{ships}."
    ids = torch.tensor(features[:CONVERGED_ON])
    cosine, overlap = convergence(subject, ids, settings.logit_lens_k, ctx)
    return (
        f"The Jacobian lens of layer {subject.layer} is the mean over {settings.lens.n_prompts} "
        f"sequences; its halves agree on {overlap:.0%} of {settings.logit_lens_k} tokens "
        f"(mean cosine of J d {cosine:.3f}; {len(ids):,} features)."
    )


def _write_cards(
    subject: Subject, rows: pd.DataFrame, settings: Settings, ctx: RunContext, folder: RunFolder
) -> None:
    """Write what the page shows of a layer's best features beside their scores."""
    from steerlens.scores.cards import card_rows

    best = rows["feature"].to_numpy()[best_of_layers(rows, BEST_OF_LAYER)]
    ids = sorted(best.tolist())
    cards = card_rows(subject, ids, settings.logit_lens_k, ctx)
    folder.add(CARDS, CARDS.frame(cards.cards))
    folder.add(EXAMPLES, EXAMPLES.frame(cards.examples))
    folder.add(NEIGHBOURS, NEIGHBOURS.frame(cards.neighbours))


def features_of(subject: Subject, settings: Settings, labels: Labels, ctx: RunContext) -> list[int]:
    """Choose the features of a layer that the run looks at, the candidates of its concept or its
    words if those are asked for.

    Args:
        subject: the layer's model and SAE.
        settings: the run's.
        labels: Neuronpedia's explanations of the layer's features, in which concepts are looked up.
        ctx: holds what the pass over the corpus has counted.
    """
    chosen = settings.features
    if chosen.per_word is not None:
        return part(_drawn_of_words(subject, settings, chosen.per_word, ctx), settings.shard)
    if not settings.features_concept:
        fired_F = _pieces_fired(subject, settings, ctx) if chosen.min_examples else None
        ids = select_features(chosen, subject.layer, subject.d_sae, ctx.seed, fired_F)
        return part(ids, settings.shard)
    from steerlens.engine.logit_lens import kept_logit_lens
    from steerlens.scores.concepts import candidates, concept_tokens

    with kept_logit_lens(subject, chosen.top_k, ctx.store):
        of_concept = candidates(
            subject,
            concept_tokens(subject.lm.tokenizer, settings.features_concept),
            ctx,
            k=chosen.top_k,
            labels={feature: text for feature, (text, _) in labels.items()},
            examples=chosen.examples,
        )
    return part(sorted(candidate.feature for candidate in of_concept), settings.shard)


def _drawn_of_words(
    subject: Subject, settings: Settings, per_word: int, ctx: RunContext
) -> list[int]:
    """Draw features of a layer that may stand for each of `toward.words`; one may for several.

    Of each word they are the first ones in a random order of all the layer's features, so that
    another word changes nobody else's.
    """
    import numpy as np

    from steerlens.engine.logit_lens import kept_logit_lens
    from steerlens.scores.concepts import candidates
    from steerlens.steering.coverage import tokens_or_reason

    rank_F = np.random.default_rng([ctx.seed, subject.layer]).permutation(subject.d_sae)
    drawn: set[int] = set()
    top_k = settings.features.top_k
    with kept_logit_lens(subject, top_k, ctx.store):
        for tokens in tokens_or_reason(subject.lm.tokenizer, settings.toward_words).values():
            if isinstance(tokens, str):
                continue
            ids = [candidate.feature for candidate in candidates(subject, tokens, ctx, k=top_k)]
            drawn |= {*sorted(ids, key=lambda feature: rank_F[feature])[:per_word]}
    return sorted(drawn)


def _pieces_fired(subject: Subject, settings: Settings, ctx: RunContext) -> np.ndarray:
    """Return in how many texts each feature fires, (F,): of the corpus, or of what ships
    instead.
    """
    from steerlens.engine.corpus_pass import pieces_fired
    from steerlens.engine.examples import read_examples

    if settings.counts_need_a_pass:
        return pieces_fired(subject, ctx)
    return read_examples(Path(str(ctx.examples)), subject, ["peak_tokens"]).n_texts()


def words_of_shard(lm: LoadedModel, settings: Settings) -> WordTokens:
    """Find the tokens of this shard's part of `coverage.words`."""
    words = settings.coverage_words
    if not words:
        return {}
    from steerlens.steering.coverage import word_tokens

    of_word = word_tokens(lm.tokenizer, words)
    return {word: of_word[word] for word in part(words, settings.shard)}


def _cover_group(
    group: Sequence[Subject],
    words: WordTokens,
    settings: Settings,
    ctx: RunContext,
    models: RunModels,
    folder: RunFolder,
) -> None:
    """Write what the SAEs of a group give for every word."""
    from steerlens.steering.coverage import cover_layer, prompt_settings

    evaluator, score = models.evaluator, prompt_settings(settings.scores.values())
    for subject in group:
        start = time.perf_counter()
        steering = steering_of(subject.lm, settings.steering)
        rows = cover_layer(subject, words, settings.coverage, score, steering, ctx, evaluator)
        folder.add(COVERAGE, COVERAGE.frame(rows))
        folder.finish_stage(subject, "coverage", start, evaluator=evaluator and evaluator.identity)
