"""Whether the bridge gives the logits of Hugging Face's model, in every way that it is run here.

The bridge computes much of a model anew. Where it does so wrongly, all numbers are wrong, and
nothing else tells. So a few tokens are run by the model itself before the bridge takes it over,
plainly, and compared with what the bridge gives: in a batch padded on the right (the corpus pass),
padded on the left, with rows selected and a cached step (generation), with rows that go on from
what they share (perplexity), and with one row that becomes many at a block (the output score).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from steerlens.engine.memory import is_out_of_memory
from steerlens.engine.subject.forward import (
    final_vectors,
    is_expandable,
    left_padded,
    new_cache,
    rows_of_one,
)
from steerlens.engine.subject.load_errors import first_line
from steerlens.errors import SteerlensError
from steerlens.storage.files import read_json, write_json
from steerlens.storage.provenance import LIBRARIES, code_digest, version_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from steerlens.engine.subject.head import Head

LENGTHS = (10, 8)
"""Tokens of the two texts that are compared."""
AT_MOST, AT_MOST_COARSE = 1e-3, 5e-2
"""What difference of logits passes, in standard deviations of the logits of a position: in float32
the largest; in 16-bit numbers the root mean square over the vocabulary, and if that is more, as
much as one unit in the last place of the embeddings moves. For SmolLM2-135M in bfloat16 that is
0.15, and Hugging Face's own model differs from itself by 0.035, at most 0.13, with a cache."""
Pair = tuple[torch.Tensor, torch.Tensor]
"""Logits (..., V), and what they must equal."""
SITES = ("hook_resid_post", "hook_attn_out", "hook_mlp_out")
"""Where one row may become many: after a block, and at a sub-layer's output, which is added to."""


@dataclass(frozen=True)
class Agreement:
    """How the bridge has to run a model, and how close it then is to Hugging Face's."""

    difference: float
    """How far logits are apart, in standard deviations of a position's logits, as `AT_MOST` says;
    log-probabilities where weights are processed."""
    own_attention: bool = False
    """Whether attention is left to the model's own modules, because the bridge's is another."""
    rows_from_start: bool = False
    """Whether rows must be as many in all blocks, because the model prepares for their number."""


@dataclass(frozen=True)
class Reference:
    """Texts, and the logits that Hugging Face's model gives for them, one text at a time."""

    texts: tuple[list[int], list[int]]
    logits: tuple[torch.Tensor, torch.Tensor]
    """(L, V) each, float32."""
    rounding: float = 0.0
    """By how much 16-bit rounding moves them: see `AT_MOST_COARSE`."""


@torch.no_grad()
def reference_logits(hf_model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> Reference:
    """Run a model that no bridge has touched.

    Raises:
        SteerlensError: it can't be run on token ids alone, or its logits overflow.
    """
    long, short = _texts(hf_model, tokenizer)
    rounding = 0.0
    try:
        logits = _plain_logits(hf_model, long), _plain_logits(hf_model, short)
        if hf_model.dtype.itemsize == 2:
            rounding = _rounding(hf_model, long, logits[0])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise SteerlensError(
            f"{name} ({hf_model.config.model_type}) doesn't continue texts by itself, which "
            f"steering needs: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not (math.isfinite(rounding) and all(logits_LV.isfinite().all() for logits_LV in logits)):
        dtype = str(hf_model.dtype).removeprefix("torch.")
        raise SteerlensError(
            f"the logits of {name} are NaN or infinite in {dtype}; use dtype=float32."
        )
    return Reference((long, short), logits, rounding)


def _rounding(hf_model: Any, ids: list[int], logits_LV: torch.Tensor) -> float:
    """Return by how much logits move when every number of the embeddings does by one unit in its
    last place, up, down or not: root mean square, in standard deviations.
    """
    generator = torch.Generator().manual_seed(0)

    def nudge(module: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        steps = torch.randint(-1, 2, out.shape, generator=generator).to(out.device)
        return (out.float() * (1 + torch.finfo(out.dtype).eps * steps)).to(out)

    handle = hf_model.get_input_embeddings().register_forward_hook(nudge)
    try:
        return _apart(_plain_logits(hf_model, ids), logits_LV, is_fine=False)
    finally:
        handle.remove()


def _apart(logits: torch.Tensor, expected: torch.Tensor, is_fine: bool) -> float:
    """Return how far logits (..., V) are apart, as `AT_MOST` says."""
    apart = (logits - expected).abs()
    if not is_fine:
        apart = apart.square().mean(dim=-1).sqrt()
    largest = float(apart.max())
    if math.isnan(largest):
        return math.inf
    return largest and largest / float(expected.std(dim=-1).mean())


def _plain_logits(hf_model: Any, ids: list[int]) -> torch.Tensor:
    device = hf_model.get_input_embeddings().weight.device
    return hf_model(torch.tensor([ids], device=device), use_cache=False).logits[0].float()


def _texts(hf_model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return ordinary tokens, the same for all models with the same vocabulary."""
    d_vocab = min(len(tokenizer), int(hf_model.get_input_embeddings().weight.shape[0]))
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = [token for token in range(d_vocab) if token not in special] or [0]
    n_ctx = getattr(hf_model.config.get_text_config(), "max_position_embeddings", None)
    lengths = [min(length, n_ctx or length) for length in LENGTHS]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(ordinary), (sum(lengths),), generator=generator).tolist()
    tokens = [ordinary[index] for index in drawn]
    return tokens[: lengths[0]], tokens[lengths[0] :]


@torch.no_grad()
def agree(
    bridge: TransformerBridge, head: Head, reference: Reference, processed: bool, name: str
) -> Agreement:
    """Compare the bridge with `reference`, and find out how it has to be run to agree.

    Attention that differs is left to the model's own modules, and rows that can't begin at a block
    begin at the first one. Afterwards the bridge is as the result says.

    Args:
        bridge: the model, ready to run.
        head: its last stage.
        reference: logits of the same model before the bridge took it over.
        processed: whether weights were processed, which may move all logits of a position.
        name: what the model is called in an error.

    Raises:
        SteerlensError: it agrees in no way, or can't be run so.
    """
    compare = _Comparison(bridge, head, reference, processed)
    text = [compare.batch, compare.left_padded, compare.continued]
    if not is_expandable(bridge):
        text = [compare.batch]  # what needs more is refused where it is asked for
    own_attention = False
    outcome = compare.largest(text)
    if not outcome.passes and use_own_attention(bridge):
        own_attention = True
        outcome = compare.largest(text)
    outcome.refuse(name)
    if not is_expandable(bridge):
        return Agreement(outcome.difference, own_attention)
    rows_from_start = False
    rows = compare.largest([partial(compare.rows, from_start=False)])
    if not rows.passes:
        rows_from_start = True
        rows = compare.largest([partial(compare.rows, from_start=True)])
    rows.refuse(name)
    return Agreement(max(outcome.difference, rows.difference), own_attention, rows_from_start)


def use_own_attention(bridge: TransformerBridge) -> bool:
    """Leave attention to the model's own modules; False where that changes nothing.

    The bridge's hooks of what goes into it and comes out of it stay, also before W_O.
    """
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    changed, plain = False, AttentionBridge.forward
    for module in bridge.blocks.modules():
        if not isinstance(module, AttentionBridge):
            continue
        if getattr(module.forward, "__func__", module.forward) is not plain:
            # Plainly: the bridge's own setattr would change the module that it stands for.
            object.__setattr__(module, "forward", MethodType(plain, module))
            changed = True
    return changed


@dataclass(frozen=True)
class _Outcome:
    """What a comparison has come to."""

    model_type: str
    difference: float
    at_most: float
    error: Exception | None = None

    @property
    def passes(self) -> bool:
        return self.error is None and self.difference <= self.at_most

    def refuse(self, name: str) -> None:
        """Raise what is wrong, if anything is."""
        if self.error is not None:
            raise SteerlensError(
                f"{name} is of type {self.model_type}, which TransformerLens' bridge can't run "
                f"as steerlens does: {type(self.error).__name__}: {first_line(self.error)}"
            ) from self.error
        if not self.passes:
            raise SteerlensError(
                f"{name} is of type {self.model_type}, for which TransformerLens' bridge gives "
                f"other logits than Hugging Face's model, by up to {self.difference:.2g} standard "
                f"deviations where {self.at_most:.2g} is rounding; steerlens can't use it."
            )


class _Comparison:
    """The ways in which steerlens runs a model, each as pairs of logits (..., V)."""

    def __init__(
        self, bridge: TransformerBridge, head: Head, reference: Reference, processed: bool
    ) -> None:
        self._bridge, self._head, self._processed = bridge, head, processed
        self._long, self._short = reference.texts
        self._logits = [logits_LV.to(head.device) for logits_LV in reference.logits]
        self._device = next(bridge.embed.parameters()).device
        hf_model: Any = bridge.original_model
        self._rounding = reference.rounding
        self._is_fine = hf_model.dtype in (torch.float32, torch.float64)

    def largest(self, ways: Sequence[Callable[[], Iterator[Pair]]]) -> _Outcome:
        """Run all `ways`, and give the largest difference or the first error."""
        hf_model: Any = self._bridge.original_model
        at_most = AT_MOST if self._is_fine else max(AT_MOST_COARSE, self._rounding)
        outcome = partial(_Outcome, hf_model.config.model_type, at_most=at_most)
        try:
            differences = [self._difference(*pair) for way in ways for pair in way()]
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return outcome(difference=math.inf, error=error)
        return outcome(difference=max(differences))

    def _difference(self, logits: torch.Tensor, expected: torch.Tensor) -> float:
        logits, expected = logits.float().to(expected.device), expected.expand_as(logits)
        if self._processed:
            logits, expected = logits.log_softmax(-1), expected.log_softmax(-1)
        return _apart(logits, expected, self._is_fine)

    def _of_vectors(self, h: torch.Tensor) -> torch.Tensor:
        """Return logits (N, V) of normed vectors (N, D), as the engine computes them."""
        return self._head.finish(self._head.logits(h.to(self._head.device)))

    def _tokens(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor([list(ids) for ids in rows], device=self._device)

    def batch(self) -> Iterator[Pair]:
        """Yield texts in a batch, padded on the right, where nothing sees it (corpus pass)."""
        captured: list[torch.Tensor] = []
        padding = [0] * (len(self._long) - len(self._short))
        logits_BLV = self._bridge.run_with_hooks(
            self._tokens([self._long, self._short + padding]),
            fwd_hooks=[("unembed.hook_in", lambda h_BLD, hook: captured.append(h_BLD))],
        )
        for h_LD, own_LV, expected_LV in zip(captured[0], logits_BLV, self._logits, strict=True):
            length = len(expected_LV)
            yield own_LV[:length], expected_LV
            yield self._of_vectors(h_LD[:length]), expected_LV

    def left_padded(self) -> Iterator[Pair]:
        """Yield prompts padded on the left, more rows that go on from them, and a step
        (generation).
        """
        n_padding = len(self._long) - len(self._short)
        tokens_PL = self._tokens([self._long, [self._short[0]] * n_padding + self._short])
        n_padding_P = torch.tensor([0, n_padding], device=self._device)
        cache = new_cache(self._bridge)
        begun = tokens_PL.shape[1] - 1
        inputs = left_padded(n_padding_P, 0, begun)
        h_PD = final_vectors(self._bridge, tokens_PL[:, :begun], cache=cache, last=True, **inputs)
        yield self._of_vectors(h_PD), torch.stack([logits_LV[-2] for logits_LV in self._logits])
        rows = torch.tensor([1, 0, 1], device=self._device)
        cache.reorder_cache(rows)
        inputs = left_padded(n_padding_P[rows], begun, 1)
        h_BD = final_vectors(self._bridge, tokens_PL[rows, -1:], cache=cache, last=True, **inputs)
        expected = [self._logits[row][-1] for row in rows.tolist()]
        yield self._of_vectors(h_BD), torch.stack(expected)

    def continued(self) -> Iterator[Pair]:
        """Yield rows of several tokens that go on from what they have in common (perplexity)."""
        begun = len(self._long) // 2
        tokens_BL = self._tokens([self._long, self._long])
        cache = new_cache(self._bridge)
        final_vectors(self._bridge, tokens_BL[:1, :begun], cache=cache)
        cache.reorder_cache(torch.zeros(2, dtype=torch.int64, device=self._device))
        for h_LD in final_vectors(self._bridge, tokens_BL[:, begun:], cache=cache):
            yield self._of_vectors(h_LD), self._logits[0][begun:]

    def rows(self, from_start: bool) -> Iterator[Pair]:
        """Yield the last position in several rows, from a block on (output score)."""
        n_rows, middle = 3, len(self._bridge.blocks) // 2
        tokens_1L = self._tokens([self._long])
        cache = new_cache(self._bridge)
        final_vectors(self._bridge, tokens_1L[:, :-1], cache=cache, last=True)
        token_B1 = tokens_1L[:, -1:].expand(n_rows if from_start else 1, -1)
        for site in SITES:
            hook = f"blocks.{middle}.{site}"
            if hook not in self._bridge.hook_dict:
                continue
            of_rows = rows_of_one(cache, n_rows, 0 if from_start else middle + 1)
            hooks = [(hook, lambda x, hook: x.expand(n_rows, *x.shape[1:]).clone())]
            h_BD = final_vectors(self._bridge, token_B1, hooks, of_rows, last=True)
            yield self._of_vectors(h_BD), self._logits[0][-1]


def read_agreement(key: Mapping[str, Any], cache_dir: Path) -> Agreement | None:
    """Give what `keep_agreement` has kept for the same model, device, dtype and versions."""
    content = read_json(_file(key, cache_dir))
    try:
        return Agreement(**content)
    except TypeError:  # nothing is there, or something else
        return None


def keep_agreement(key: Mapping[str, Any], cache_dir: Path, agreement: Agreement) -> None:
    """Keep what a comparison has found, so that later runs needn't compare."""
    file = _file(key, cache_dir)
    with suppress(OSError, SteerlensError):  # only a cache
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(agreement))


def _file(key: Mapping[str, Any], cache_dir: Path) -> Path:
    versions = {name: version_of(name) for name in LIBRARIES}
    identity = {**key, "versions": versions, "code": code_digest(("engine/subject",))}
    text = json.dumps(identity, sort_keys=True, default=str)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return Path(cache_dir) / "agreement" / f"{name}.json"
