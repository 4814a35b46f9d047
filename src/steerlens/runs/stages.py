"""The stages of a run, each layer by layer; what is finished is written at once."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from steerlens.analysis.roles import with_roles
from steerlens.config.gguf import model_names
from steerlens.config.parse import parse_concept, parse_memory, parse_scores, parse_words
from steerlens.config.reference import COLUMNS, cache_file
from steerlens.config.registry import ScoreConfig
from steerlens.config.schema import CorpusConfig, RunConfig
from steerlens.config.settings import parse_subject
from steerlens.config.sources import counts_need_a_pass, shipped_examples
from steerlens.config.steering import with_template
from steerlens.data.neuronpedia import (
    Labels,
    label_columns,
    labels_of_layer,
    read_labels,
    source_of_sae,
)
from steerlens.engine.run_context import ScoreRun
from steerlens.errors import SteerlensError
from steerlens.report.terminal import progress
from steerlens.results import (
    CONCEPTS,
    COVERAGE,
    FEATURES,
    GENERATIONS,
    NULL_SCORES,
    RATINGS,
    SAES,
    STEERING,
    WORDS,
)
from steerlens.results.pmi import PMI_FILE
from steerlens.results.reference import Reference
from steerlens.scores.selection import best_first, part, select_features
from steerlens.storage.files import json_text, write_json
from steerlens.storage.provenance import (
    PROVENANCE_FILE,
    code_digest,
    file_identity,
    provenance,
)
from steerlens.storage.store import Store

if TYPE_CHECKING:
    import numpy as np

    from steerlens.engine.subject import LoadedModel, Subject, WeightCache
    from steerlens.scores.concepts import ConceptTokens

logger = logging.getLogger(__name__)


class Stages:
    """A run's stages and what they share: its model, its memory, its cache, its provenance."""

    def __init__(
        self, config: RunConfig, folder: Path, weight_cache: WeightCache | None = None
    ) -> None:
        self._config = config
        self._folder = folder
        self._weight_cache = weight_cache
        self._lm: LoadedModel | None = None
        self._words: dict[str, ConceptTokens | str] = {}
        self._covered: list[dict[str, Any]] = []
        self._null_scores: list[pd.DataFrame] = []
        self._texts: list[pd.DataFrame] = []
        self._steered: list[pd.DataFrame] = []
        self._tried: list[dict[str, Any]] = []
        self._facts: dict[str, Any] = {"model": None, "saes": {}, "corpus": None, "seconds": {}}
        self._warn()
        self._run = ScoreRun(
            memory_budget=parse_memory(config.memory_budget),
            seed=config.seed,
            task=progress,
            corpus=config.corpus,
            examples=shipped_examples(config),
            store=Store(Path(config.paths.cache_dir) / "scores"),
        )

    def _warn(self) -> None:
        """Tell at once, and note for the report, what is hardly meant of the scores' settings."""
        scores = parse_scores(self._config.score).values()
        for warning in (line for score in scores for line in score.warnings()):
            logger.warning("%s", warning)
            self._facts["notes"] = [*self._facts.get("notes", []), warning]

    @cached_property
    def _evaluator(self) -> LoadedModel | None:
        """The model whose perplexity is measured, if it isn't the steered one."""
        from steerlens.steering.metrics.perplexity import load_evaluator

        entry = self._config.evaluator
        return (
            load_evaluator(entry, parse_subject(self._config), self._weight_cache)
            if entry
            else None
        )

    def score(self) -> pd.DataFrame:
        """The table of features of all layers, with all chosen scores; writes those of the SAEs, of
        random directions, and of the words that the SAEs cover, too."""
        from steerlens.engine.corpus_pass import PiecesFired, in_groups, read_corpus
        from steerlens.engine.subject import load_subjects
        from steerlens.scores.quality import describe

        self._refuse_absent_concept()
        methods = parse_scores(self._config.score)
        frames: list[pd.DataFrame] = []
        saes: list[Mapping[str, Any]] = []
        requests = [*methods.values()]
        if counts_need_a_pass(self._config):
            requests.append(PiecesFired(at_most=self._config.features.min_examples or 1))
        subjects = load_subjects(parse_subject(self._config), weight_cache=self._weight_cache)
        for group in in_groups(subjects, requests, self._run.memory_budget):
            self._use(group[0].lm)
            self._words = self._words or self._word_tokens(group[0].lm)
            # Of its own for each group, so that only one group's activations are in memory.
            run = dataclasses.replace(self._run, activations={}, prompts={})
            read_corpus(group, requests, run)
            saes += describe(group, self._config.quality.n_tokens, run)
            SAES.write(SAES.frame(saes), self._folder)
            for frame in self._score_group(group, methods, run):
                frames.append(frame)
                FEATURES.write(pd.concat(frames, ignore_index=True), self._folder)
            self._cover(group, run)
        if not frames and self._config.shard:
            raise SteerlensError(
                f"shard={self._config.shard} is empty: no layer has so many features; split into "
                "fewer parts."
            )
        if not frames:  # nothing stands for the concept, which is an answer, too
            FEATURES.write(FEATURES.frame([]), self._folder)
            return FEATURES.frame([])
        return pd.concat(frames, ignore_index=True)

    def _refuse_absent_concept(self) -> None:
        """Refuse a concept that no token stands for, before the model is loaded."""
        from steerlens.engine.subject.gguf import loadable
        from steerlens.engine.subject.model import load_tokenizer
        from steerlens.scores.concepts import concept_tokens

        concept = self._config.features.concept
        if concept is not None:
            entry = loadable(self._config.model, Path(self._config.paths.cache_dir))
            concept_tokens(load_tokenizer(entry), parse_concept(concept))

    def published(self, reference: Reference) -> pd.DataFrame:
        """The table of published scores, as if they were ours."""
        config = self._config.reference
        files = [cache_file(config, key) for key in ("features", *COLUMNS)]
        cache = Path(self._config.paths.cache_dir)
        self._facts["reference"] = [file_identity(file, cache) for file in files if file]
        FEATURES.write(reference.table, self._folder)
        self._write_provenance()
        return reference.table

    def _use(self, lm: LoadedModel) -> None:
        """Take `lm` for the run's model: whether it has a chat template decides what it's asked."""
        self._lm = lm
        generation = with_template(
            self._config.generation, bool(lm.tokenizer.chat_template), lm.name
        )
        self._config = dataclasses.replace(self._config, generation=generation)
        self._facts["chat_template"] = generation.chat_template

    def _score_group(
        self, group: Sequence[Subject], methods: Mapping[str, ScoreConfig], group_run: ScoreRun
    ) -> Iterator[pd.DataFrame]:
        """For each subject of a group that has read the corpus together, its table."""
        from steerlens.scores.scoring import null_columns, score_layer

        config = self._config
        labels = (
            read_labels(Path(config.labels), model_names(config.model)) if config.labels else {}
        )
        for subject in group:
            source = source_of_sae(
                subject.sae.cfg.metadata.neuronpedia_id, subject.layer, subject.name
            )
            named = labels_of_layer(labels, subject.layer, source, f"labels={config.labels}")
            features = self._features(subject, named, group_run)
            if not features:
                continue
            start = time.perf_counter()
            name = f"layer {subject.layer}"
            with progress(len(features), name, each=len(methods)) as advance:
                run = dataclasses.replace(group_run, progress=advance)
                columns = score_layer(subject, features, methods, config.logit_lens_k, run)
                if null := null_columns(subject, methods, run):
                    self._null_scores.append(NULL_SCORES.frame(null))
                    NULL_SCORES.write(pd.concat(self._null_scores, ignore_index=True), self._folder)
            columns |= label_columns(named, features)
            facts: dict[str, Any] = {"corpus": _corpus_facts(group_run)}
            if files := {file for method in methods.values() for file in method.examples()}:
                cache = Path(config.paths.cache_dir)
                facts["examples"] = [file_identity(file, cache) for file in sorted(files)]
            self._note(subject, "scoring", start, **facts)
            yield FEATURES.frame(columns)

    def _features(
        self,
        subject: Subject,
        labels: Labels,
        run: ScoreRun,
    ) -> list[int]:
        """The features of a layer that the run looks at, the candidates of its concept if any."""
        config = self._config.features
        shard = self._config.shard
        if config.concept is None:
            fired = self._pieces_fired(subject, run) if config.min_examples else None
            ids = select_features(config, subject.layer, subject.d_sae, run.seed, fired)
            return part(ids, shard)
        from steerlens.engine.logit_lens import kept_logit_lens
        from steerlens.scores.concepts import candidates, concept_tokens

        with kept_logit_lens(subject, config.top_k, run.store):
            of_concept = candidates(
                subject,
                concept_tokens(subject.lm.tokenizer, parse_concept(config.concept)),
                k=config.top_k,
                labels={feature: text for feature, (text, _) in labels.items()},
                examples=config.examples,
                memory_budget=self._run.memory_budget,
            )
        return part(sorted(candidate.feature for candidate in of_concept), shard)

    def _pieces_fired(self, subject: Subject, run: ScoreRun) -> np.ndarray:
        """In how many texts each feature fires, (F,): of the corpus, or of what ships instead."""
        from steerlens.engine.corpus_pass import pieces_fired
        from steerlens.engine.examples import read_examples

        if counts_need_a_pass(self._config):
            return pieces_fired(subject, run)
        return read_examples(Path(str(run.examples)), subject, ["peak_tokens"]).n_texts()

    def _word_tokens(self, lm: LoadedModel) -> dict[str, ConceptTokens | str]:
        """This shard's part of the words, each with its tokens or why it has none."""
        words = parse_words(self._config.coverage.words)
        if not words:
            return {}
        from steerlens.steering.coverage import word_tokens

        of_word = word_tokens(lm.tokenizer, words)
        return {word: of_word[word] for word in part(words, self._config.shard)}

    def _cover(self, group: Sequence[Subject], run: ScoreRun) -> None:
        """Adds what the SAEs of a group give for every word to the table of words."""
        if not self._words:
            return
        from steerlens.steering.coverage import cover_layer

        evaluator = self._evaluator
        for subject in group:
            start = time.perf_counter()
            self._covered += cover_layer(subject, self._words, self._config, run, evaluator)
            COVERAGE.write(COVERAGE.frame(self._covered), self._folder)
            self._note(subject, "coverage", start, evaluator=evaluator and evaluator.identity)

    def steer(self, features: pd.DataFrame) -> None:
        """Writes the tables of texts and of the best factors for the rows of `features`."""
        config = self._config
        if config.steer.together:
            best = best_first(features, config.selection.score)
            features = pd.concat([best, features.drop(index=best.index)])
        self._steer(features, config)

    def _steer(self, features: pd.DataFrame, config: RunConfig) -> pd.DataFrame:
        """Steer with the rows of `features`, and add to the tables of texts and best factors.

        Returns:
            Their rows of `steering.parquet`.
        """
        from steerlens.analysis.factors import choose_factors
        from steerlens.engine.subject import load_subjects
        from steerlens.steering.features import concept_label, steer_layer

        evaluator = self._evaluator
        layers = sorted(set(features["layer"].tolist()))
        tables: list[pd.DataFrame] = []
        for subject in load_subjects(
            parse_subject(config).of_layers(layers), self._lm, self._weight_cache
        ):
            start = time.perf_counter()
            ids = features.loc[features["layer"] == subject.layer, "feature"].tolist()
            run = dataclasses.replace(self._run, activations={}, prompts={})
            texts = steer_layer(subject, ids, config, run, evaluator)
            best = choose_factors(texts, config.choice).dropna(axis=1, how="all")
            scored = features.drop(columns=features.columns.intersection(best.columns[5:]))
            best = best.merge(scored, on=list(FEATURES.keys), how="left")
            tables.append(STEERING.frame(best.assign(concept=concept_label(config))))
            self._texts.append(texts)
            self._steered.append(tables[-1])
            GENERATIONS.write(pd.concat(self._texts, ignore_index=True), self._folder)
            STEERING.write(pd.concat(self._steered, ignore_index=True), self._folder)
            self._note(subject, "steering", start, evaluator=evaluator and evaluator.identity)
        return pd.concat(tables, ignore_index=True)

    def answer(self, features: pd.DataFrame) -> None:
        """Writes whether one of the candidates in `features` steers toward the run's concept."""
        from steerlens.scores.concepts import concept_tokens
        from steerlens.steering.features import concept_label

        config = self._config
        assert self._lm is not None
        tokens = concept_tokens(self._lm.tokenizer, parse_concept(config.concept))
        steering = pd.concat([STEERING.frame([]), *self._steered], ignore_index=True)
        selection = config.selection
        threshold = selection.threshold if selection.score == "concept_score" else None
        self._answer(str(concept_label(config)), tokens, features, steering, threshold)
        WORDS.write(WORDS.frame(self._tried), self._folder)

    def _answer(
        self,
        word: str,
        tokens: ConceptTokens,
        scored: pd.DataFrame,
        steering: pd.DataFrame,
        threshold: float | None,
    ) -> bool:
        """Note a row of the table of words; True if a feature steers toward the word."""
        from steerlens.analysis.toward import word_row

        top_k = self._config.features.top_k
        row = word_row(word, tokens.texts, scored, steering, threshold, top_k)
        self._tried.append(row)
        return row.get("reason") is None

    def steer_toward(self, features: pd.DataFrame) -> None:
        """Steers toward one word of `toward.words` after the other until enough have a feature.

        Candidates are found by the logit-lens tokens in the table of features, and those of all
        words scored together; a feature is steered with toward one word only.
        """
        from steerlens.steering.coverage import tokens_or_reason

        config, toward = self._config, self._config.toward
        assert self._lm is not None
        words = parse_words(toward.words, "toward.words")
        enough = len(words) if toward.n is None else toward.n
        tokens = tokens_or_reason(self._lm.tokenizer, words)
        scored = self._scored_toward(features, tokens)
        rows_of = self._features_of_words(words, scored)
        n_found, n_ahead = 0, 0
        for index, word in enumerate(words):
            if index == n_ahead:
                n_ahead += enough - n_found
                self._steer_ahead([rows_of[name] for name in words[index:n_ahead]])
            formed = tokens[word]
            if isinstance(formed, str):
                self._tried.append({"word": word, "reason": formed.rstrip(".")})
                continue
            rows = rows_of[word]
            of_this_word = dataclasses.replace(config, concept=word)
            steering = self._steer(rows, of_this_word) if len(rows) else STEERING.frame([])
            of_word = scored.loc[scored["word"] == word]
            n_found += self._answer(word, formed, of_word, steering, toward.threshold)
            if n_found == enough:
                break
        WORDS.write(WORDS.frame(self._tried), self._folder)

    def _features_of_words(
        self, words: Sequence[str], scored: pd.DataFrame
    ) -> dict[str, pd.DataFrame]:
        """Give the features to steer with toward each word, the best first, no feature twice."""
        toward = self._config.toward
        used: set[tuple[int, int]] = set()
        rows_of: dict[str, pd.DataFrame] = {}
        for word in words:
            rows = scored.loc[
                (scored["word"] == word) & (scored["concept_score"] >= toward.threshold)
            ]
            rows = rows.loc[[key not in used for key in _layers_and_features(rows)]]
            rows = rows.sort_values("concept_score", ascending=False, kind="stable")
            rows_of[word] = rows.head(toward.top_n).drop(columns="word")
            used |= {*_layers_and_features(rows_of[word])}
        return rows_of

    def _steer_ahead(self, groups: Sequence[pd.DataFrame]) -> None:
        """Make the texts of several words' features in one batch, for `_steer` to find in the
        store: a word's alone are so few that most of the time would go into starting.

        A search asks for factors by a word's success, so it goes word by word.
        """
        from steerlens.engine.subject import load_subjects
        from steerlens.steering.features import steer_layer

        features = pd.concat(groups)
        if features.empty or self._run.store is None or self._config.steer.search:
            return
        layers = sorted(set(features["layer"].tolist()))
        of_layers = parse_subject(self._config).of_layers(layers)
        for subject in load_subjects(of_layers, self._lm, self._weight_cache):
            ids = features.loc[features["layer"] == subject.layer, "feature"].tolist()
            run = dataclasses.replace(self._run, activations={}, prompts={})
            steer_layer(subject, ids, self._config, run, self._evaluator)

    def _scored_toward(
        self, features: pd.DataFrame, tokens: Mapping[str, ConceptTokens | str]
    ) -> pd.DataFrame:
        """A row of the table of features for each word and candidate, scored toward the word."""
        from steerlens.analysis.toward import lens_candidates
        from steerlens.engine.subject import load_subjects
        from steerlens.steering.coverage import scores_toward

        config = self._config
        formed = {word: ids for word, ids in tokens.items() if not isinstance(ids, str)}
        ids = {word: [*tokens_of_word.texts] for word, tokens_of_word in formed.items()}
        pairs = lens_candidates(features, ids, config.features.top_k)
        columns = features.drop(columns=["concept_score", "concept_token"])
        if pairs.empty:
            return pairs.assign(concept_score=pd.Series(dtype=float))
        tables = []
        layers = sorted(set(pairs["layer"].tolist()))
        of_layers = parse_subject(config).of_layers(layers)
        for subject in load_subjects(of_layers, self._lm, self._weight_cache):
            of_layer = pairs.loc[pairs["layer"] == subject.layer]
            run = dataclasses.replace(self._run, activations={}, prompts={})
            word_features = [*of_layer[["word", "feature"]].itertuples(index=False, name=None)]
            scores = scores_toward(subject, word_features, formed, config, run)
            tables.append(
                of_layer.assign(
                    concept_score=scores["output_score"], concept_token=scores["output_token"]
                ).merge(columns, on=list(FEATURES.keys), how="left")
            )
        return pd.concat(tables, ignore_index=True)

    def concepts(self) -> None:
        """Writes the tables of concepts, of their features and of rated texts, layer by layer."""
        from steerlens.data.concept_sets.load import load_concepts
        from steerlens.engine.subject import load_subjects
        from steerlens.engine.subject.model import load_weights
        from steerlens.steering.concepts import Judging, Steered, steer_concepts

        config, evaluator = self._config, self._evaluator
        assert config.concepts is not None
        scores = parse_scores(config.score)
        judging = Judging(config)
        self._refuse_lacking_texts()
        steered_parts: list[Steered] = []
        for subject in load_subjects(parse_subject(config), weight_cache=self._weight_cache):
            start = time.perf_counter()
            self._use(subject.lm)
            config = self._config
            assert config.concepts is not None
            concepts = load_concepts(
                config.concepts, subject.layer, config.seed, bool(config.generation.chat_template)
            )
            of_shard = tuple(part(concepts.concepts, config.shard))
            concepts = dataclasses.replace(concepts, concepts=of_shard)
            for note in concepts.notes:
                print(note)
            run = dataclasses.replace(self._run, activations={}, prompts={})
            steered = steer_concepts(
                subject, concepts, config, scores, run, judging,
                lambda: load_weights(parse_subject(self._config)), evaluator,
            )  # fmt: skip
            steered_parts.append(steered)
            for table, name in (
                (FEATURES, "features"),
                (CONCEPTS, "concepts"),
                (RATINGS, "ratings"),
            ):
                parts = [getattr(part, name) for part in steered_parts]
                table.write(pd.concat(parts, ignore_index=True), self._folder)
            judged = {"cost": vars(judging.cost), "stopped": judging.stopped}
            self._note(subject, "concepts", start, judge=judged, concepts=list(concepts.notes))
        for line in filter(None, (judging.sentence(), judging.stopped)):
            print(line)

    def _refuse_lacking_texts(self) -> None:
        """Refuse concepts that methods or the judge can't learn, before the model is loaded."""
        from steerlens.engine.subject.sae import sae_sources
        from steerlens.steering.concepts import refuse_lacking_texts

        config = self._config
        for source in sae_sources(parse_subject(config)):
            if source.layer is not None:
                refuse_lacking_texts(config, source.layer)

    def published_ratings(self) -> None:
        """The published ratings of steered texts, as if they were ours."""
        from steerlens.judges.published import as_tables, read_published

        folder = Path(str(self._config.reference.ratings))
        published = read_published(folder)
        for finding in published.findings:
            print(finding)
        features, concepts, ratings = as_tables(published)
        FEATURES.write(features, self._folder)
        CONCEPTS.write(concepts, self._folder)
        RATINGS.write(ratings, self._folder)
        cache = Path(self._config.paths.cache_dir)
        self._facts["reference"] = [file_identity(file, cache) for file in published.files]
        self._facts["findings"] = published.findings
        self._write_provenance()

    def pmi(self) -> None:
        """Writes how success tokens go with the first logit-lens token in the corpus' texts.

        Nothing if no steered feature has both scores, because the others have no role.
        """
        from steerlens.analysis.pmi import generated_pairs, pmi

        steering, generations = STEERING.read(self._folder), GENERATIONS.read(self._folder)
        if with_roles(steering).empty:
            return
        corpus, store = self._config.corpus, self._run.store
        generated = json_text(generated_pairs(steering, generations).to_dict("list"))
        key = {
            "pmi": dataclasses.asdict(self._config.pmi),
            "pairs": hashlib.sha256(generated.encode()).hexdigest(),
            "corpus": self._run.corpus_key(),
            "code": code_digest(("analysis", "data")),
        }
        content = store.load_json(key, PMI_FILE) if store else None
        if content is None:
            with progress(corpus.n_tokens, "PMI", "words") as advance:
                texts = _some_texts(corpus, advance)
                content = pmi(steering, generations, texts, self._config.pmi).content()
            if store:
                store.keep_json(key, PMI_FILE, content)
        write_json(self._folder / PMI_FILE, content)
        self._facts["corpus"] = self._facts["corpus"] or self._run.corpus_key()
        self._write_provenance()

    def _note(self, subject: Subject, stage: str, start: float, **facts: Any) -> None:
        """Writes to provenance.json what was used and how long it took."""
        from steerlens.engine.subject.belonging import note_of_copy

        agreement = dataclasses.asdict(subject.lm.agreement)
        self._facts |= {"model": subject.lm.identity, "agreement": agreement, **facts}
        if note := note_of_copy(subject.lm, subject.sae):
            self._facts["notes"] = list(dict.fromkeys([*self._facts.get("notes", []), note]))
        self._facts["saes"][subject.layer] = subject.identity
        seconds = self._facts["seconds"].setdefault(subject.layer, {})
        seconds[stage] = round(time.perf_counter() - start, 3)
        self._write_provenance()

    def _write_provenance(self) -> None:
        record = provenance(self._facts, sys.argv, self._config.seed)
        write_json(self._folder / PROVENANCE_FILE, record)


def _layers_and_features(rows: pd.DataFrame) -> list[tuple[int, int]]:
    return [*rows[["layer", "feature"]].itertuples(index=False, name=None)]


def _corpus_facts(run: ScoreRun) -> dict[str, Any] | None:
    """What provenance says of the corpus, if a method has read it."""
    read = [activations.n_tokens for activations in run.activations.values()]
    return {**(run.corpus_key() or {}), "tokens_read": max(read)} if read else None


def _some_texts(corpus: CorpusConfig, advance: Callable[[int], None]) -> Iterator[str]:
    """The corpus up to about `n_tokens` words, so that one without an end has one, too."""
    from steerlens.data.corpus import texts
    from steerlens.data.corpus.values import contents

    read = 0
    for text in texts(corpus, contents):
        yield text
        words = len(text.split())
        advance(words)
        read += words
        if corpus.n_tokens is not None and read >= corpus.n_tokens:
            return
