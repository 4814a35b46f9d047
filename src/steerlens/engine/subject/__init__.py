"""The subject of an experiment: a language model and one SAE of its, joined at a hook.

`load_subjects` yields one `Subject` per layer, with the model loaded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from steerlens.config.settings import SubjectSettings
from steerlens.config.sources import jacobians_of
from steerlens.engine.subject.belonging import check_belongs
from steerlens.engine.subject.model import LoadedModel, load_model, with_bos
from steerlens.engine.subject.sae import SaeSource, load_sae, sae_sources
from steerlens.engine.subject.site import Site
from steerlens.engine.subject.weight_cache import WeightCache
from steerlens.errors import SteerlensError
from steerlens.storage.provenance import code_digest

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.saes.sae import SAEMetadata

__all__ = [
    "LoadedModel",
    "SaeSource",
    "Site",
    "Subject",
    "WeightCache",
    "load_subjects",
    "refuse_no_subject",
]


@dataclass(repr=False)
class Subject:
    """A model and an SAE that belongs to it.

    Dimension letters everywhere: B rows, L positions, D d_model, F d_sae, V vocabulary, K top-k.
    """

    lm: LoadedModel
    sae: SAE[Any]
    name: str
    """Name of the SAE release."""
    site: Site
    prepend_bos: bool
    n_uncounted: int = 0
    """Positions at the beginning of a text that count in no statistic: BOS, and those that the SAE
    wasn't trained on, because the model keeps no meaning there."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What was loaded, and how: written to provenance.json."""
    examples: str | None = None
    """File of examples of the SAE's features, which may stand for a corpus."""
    jacobians: str | None = None
    """File of Jacobians of the SAE's layers, which the Jacobian lens may read."""

    logit_lens_memo: torch.Tensor | None = field(default=None, repr=False)
    """(F, K) token ids that `logit_lens` has found; -1 where it hasn't been asked."""

    def __repr__(self) -> str:
        return f"<{self.lm.name} with {self.name}, layer {self.layer}: {self.d_sae:,} features>"

    @property
    def key(self) -> dict[str, Any]:
        """Everything that numbers of this subject depend on: two equal keys, equal numbers."""
        model = {name: fact for name, fact in self.lm.identity.items() if name != "device"}
        return {"model": model, "sae": self.identity, "code": code_digest()}

    @property
    def layer(self) -> int:
        """Give the layer that the SAE reads."""
        return self.site.layer

    @property
    def hook_name(self) -> str:
        """Give TransformerLens' name of the hook that the SAE reads."""
        return self.site.hook_name

    @property
    def d_sae(self) -> int:
        """Give the number of features."""
        return int(self.sae.cfg.d_sae)

    def in_residual_stream(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """Return what vectors where the SAE writes, such as decoder rows, add to the residual
        stream.

        The vectors themselves; for an SAE of the heads' outputs (`hook_z`), those after W_O.
        """
        if not self.site.is_z:
            return rows_BD
        W_O = self.lm.bridge.blocks[self.layer].attn.o.original_component
        return W_O(rows_BD) - W_O(torch.zeros_like(rows_BD[:1]))  # without its bias

    @property
    def bos(self) -> int | None:
        """The token before every text, if the SAE was trained with one.

        Where the tokenizer has no BOS, it is EOS, as in SAELens' training.
        """
        if not self.prepend_bos:
            return None
        tokenizer: Any = self.lm.tokenizer
        bos = tokenizer.bos_token_id
        return tokenizer.eos_token_id if bos is None else bos

    def to_tokens(self, text: str, chat_template: bool = False) -> torch.Tensor:
        """Return token ids of `text`, shape (1, L), with BOS exactly when the SAE was trained with
        it.

        With `chat_template` the text is a user's turn, and a BOS that the template writes stays.
        """
        if not text:
            raise SteerlensError("the prompt is empty; give it at least one word.")
        text = self.lm.chat(text) if chat_template else text
        ids = with_bos(self.lm.tokenizer(text, add_special_tokens=False)["input_ids"], self.bos)
        n_ctx = int(self.lm.bridge.cfg.n_ctx)
        if not ids or len(ids) > n_ctx:
            raise SteerlensError(
                f"the prompt has {len(ids)} tokens; {self.lm.name} takes 1 to {n_ctx}."
            )
        return torch.tensor([ids], device=self.lm.device)


def refuse_no_subject(subject: Any) -> None:
    """Refuse what isn't a subject, where one is the first argument."""
    if not isinstance(subject, Subject):
        raise SteerlensError(
            f"the first argument must be a subject, from steerlens.load_subject(), not "
            f"{type(subject).__name__}."
        )


def load_subjects(
    settings: SubjectSettings,
    lm: LoadedModel | None = None,
    weight_cache: WeightCache | None = None,
) -> Iterator[Subject]:
    """Load the subjects of a run, one per layer in rising order, and the model once.

    Args:
        settings: model, SAEs and layers.
        lm: the run's model, if it is loaded already.
        weight_cache: what earlier runs have loaded.

    Raises:
        SteerlensError: something can't be loaded, or doesn't belong together.
    """
    for source in sae_sources(settings):
        load = partial(load_sae, source, settings)
        key = (source, settings.dtype, settings.device)
        sae, sae_identity = (
            load() if weight_cache is None else weight_cache.sae(key, settings.memory_budget, load)
        )
        lm = lm or shared_model(settings, sae.cfg.metadata, weight_cache)
        site = check_belongs(lm, sae, source, settings)
        of_sae = sae.cfg.metadata.prepend_bos
        prepend_bos = lm.prepended_bos is not None if of_sae is None else bool(of_sae)
        prepend_bos &= _has_bos(lm, sae.cfg.metadata)
        n_uncounted = max(int(prepend_bos), untrained_positions(sae.cfg.metadata))
        subject = Subject(
            lm=lm,
            sae=sae.to(lm.device_of_block(site.layer)),
            name=settings.sae.title,
            site=site,
            prepend_bos=prepend_bos,
            n_uncounted=n_uncounted,
            examples=settings.sae.examples,
            jacobians=jacobians_of(settings.sae, settings.model),
        )
        subject.identity = {
            **sae_identity,
            "hook_name": site.hook_name,
            "read_at": site.read,
            "written_at": site.write,
            "prepend_bos": prepend_bos,
            "prepend_bos_from": "tokenizer" if of_sae is None else "SAE metadata",
            "before_texts": lm.token_name(subject.bos),
            "uncounted_positions": n_uncounted,
        }
        yield subject
        del sae, subject  # or it would still be in memory while the next is loaded


def _has_bos(lm: LoadedModel, metadata: SAEMetadata) -> bool:
    """Return whether there was a token to put before texts when the SAE was trained.

    SAELens trains on TransformerLens' models, whose tokenizers take EOS for a BOS that they lack;
    with Hugging Face's own class, and in other libraries, whose converted SAEs have no version of
    SAELens' training, texts begin without one.
    """
    if lm.tokenizer.bos_token_id is not None:
        return True
    of_saelens = metadata.sae_lens_training_version is not None
    is_plain = metadata.model_class_name == "AutoModelForCausalLM"
    return of_saelens and not is_plain and lm.tokenizer.eos_token_id is not None


def untrained_positions(metadata: SAEMetadata) -> int:
    """Return at how many positions from the first an SAE wasn't trained, as its metadata says.

    SAELens says `seqpos_slice: [1, null]`; `exclude_first_position: true` says it in words.
    """
    start = slice(*(metadata.seqpos_slice or (None,))).start
    return max(start or 0, int(bool(metadata.exclude_first_position)))


def shared_model(
    settings: SubjectSettings,
    metadata: SAEMetadata,
    weight_cache: WeightCache | None,
    role: str = "steered",
) -> LoadedModel:
    """Load the model as the SAE's `metadata` wants it, or find it in `weight_cache`."""
    if weight_cache is None:
        return load_model(settings, metadata)
    where = (settings.dtype, settings.device, settings.device_map)
    key = (asdict(settings.model), where, metadata.model_from_pretrained_kwargs)
    return weight_cache.model(role, key, lambda: load_model(settings, metadata))
