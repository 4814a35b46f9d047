"""What of a run lies in the cache already, told without the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from steerlens.config.folders import sae_facts, sae_folders
from steerlens.config.identity import model_identity
from steerlens.config.schema import LENSES
from steerlens.config.settings import Settings
from steerlens.engine.run_context import RunContext
from steerlens.runs.plan.rates import OF_EDIT, OF_ROWS
from steerlens.storage.files import read_json
from steerlens.storage.provenance import code_digest, folder_identity
from steerlens.storage.store import KEY_FILE, Store

OF_TEXT = ("feature", "control", "together", "factor", "prompt", "sample")
"""The columns that tell texts apart."""
OF_TEXTS = {"model", "sae", "code", "texts", "edit", "seed"}
"""All that the key of texts says."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """The finished work of a run's subject, by the keys that lie beside it in the store."""

    settings: Settings
    dtype: str
    """That of the run's numbers, as torch calls it, without `torch.`."""

    @cached_property
    def _store(self) -> Store:
        return Store(self.settings.cache_dir / "scores")

    @cached_property
    def _keys(self) -> list[dict[str, Any]]:
        """The keys of all that this code has made with this model."""
        model = model_identity(self.settings.subject.model, self.settings.cache_dir)
        expected = {**model, "dtype": f"torch.{self.dtype}"}
        keys = (read_json(file) for file in sorted(self._store.root.glob(f"*/{KEY_FILE}")))
        return [
            key
            for key in keys
            if isinstance(key, dict)
            and key.get("code") == code_digest()
            and _has(key.get("model"), expected)
        ]

    @cached_property
    def _folders(self) -> dict[int | None, Path]:
        path = self.settings.subject.sae.path
        return {sae_facts(file).layer: file for file in sae_folders(Path(path))} if path else {}

    def _keys_of_layer(self, layer: int) -> Iterator[dict[str, Any]]:
        sae = self.settings.subject.sae
        if sae.path:
            expected = folder_identity(self._folders[layer], self.settings.cache_dir)
        else:
            sae_id = str(sae.sae_id).replace("{layer}", str(layer))
            expected = {"release": sae.release, "sae_id": sae_id}
        return (key for key in self._keys if _has(key.get("sae"), expected))

    def scores(self, layer: int, ids: Sequence[int]) -> int:
        """Count the scores of features `ids` that are there, all methods together."""
        context = RunContext(corpus=self.settings.corpus, store=self._store)
        of_run = {"seed": lambda: self.settings.seed, "corpus": context.corpus_key}
        n_scores = 0
        for score in self.settings.scores.values():
            expected = {name: of_run[name]() for name in score.uses()}
            expected["score"] = dataclasses.asdict(score)
            for key in self._keys_of_layer(layer):
                if _has(key, expected) and (table := self._store.read(key)):
                    n_scores += int(np.isin(ids, table["feature"].to_numpy()).sum())
        return n_scores

    def texts(self, layer: int, generation: Mapping[str, Any]) -> int:
        """Count the texts that are there, with the run's settings and any features.

        Args:
            layer: their layer.
            generation: settings of texts, `chat_template` decided.
        """
        expected = {
            "texts": {name: value for name, value in generation.items() if name not in OF_ROWS},
            "seed": self.settings.seed,
        }
        edit = {name: getattr(self.settings.steering.steer, name) for name in OF_EDIT}
        n_texts = 0
        for key in self._keys_of_layer(layer):
            of_texts = _has(key, expected) and key.keys() <= OF_TEXTS  # not of their metrics
            if of_texts and _has(key["edit"], edit) and "with" not in key["edit"]:
                table = self._store.read(key, OF_TEXT)
                n_texts += table.num_rows if table else 0
        return n_texts

    def candidates(self, layer: int, d_sae: int) -> int | None:
        """Count the features that may stand for the run's concept by their logit-lens tokens.

        Returns:
            None where that isn't known: their tokens aren't there, another lens finds them, or
            labels and examples may bring in more.
        """
        features = self.settings.features
        if self.settings.labels or features.examples or self.settings.lens.name != LENSES[0]:
            return None
        for key in self._keys_of_layer(layer):
            if key.get("logit_lens", 0) >= features.top_k:
                table = self._store.read(key)
                if table and table.num_rows == d_sae:
                    tokens = table["tokens"].combine_chunks().flatten().to_numpy()
                    tokens_FK = tokens.reshape(d_sae, -1)[:, : features.top_k]
                    hits_FK = np.isin(tokens_FK, self._concept_tokens)
                    return int(hits_FK.any(axis=1).sum())
        return None

    @cached_property
    def _concept_tokens(self) -> list[int]:
        from steerlens.engine.subject.gguf import loadable
        from steerlens.engine.subject.model import load_tokenizer
        from steerlens.scores.concepts import concept_tokens

        entry = loadable(self.settings.subject.model, self.settings.cache_dir)
        return list(concept_tokens(load_tokenizer(entry), self.settings.features_concept).texts)


def _has(stored: Any, expected: Mapping[str, Any]) -> bool:
    """Whether what a key holds agrees with `expected`, as JSON writes it."""
    plain = json.loads(json.dumps(expected, default=str))
    return isinstance(stored, dict) and all(
        name in stored and stored[name] == value for name, value in plain.items()
    )
