"""When a text is finished."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EOS, STOP, LENGTH = "eos", "stop", "length"


class Stopping:
    """Finds out, token by token, what ends a text: EOS, a stop string, or its length.

    A text ends with the token that completes a stop string, as in Transformers; the rest of that
    token stays.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: Iterable[int],
        stop_strings: Sequence[str],
        max_new_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._strings = tuple(stop_strings)
        self.max_new_tokens = max_new_tokens
        # A token has at least a byte of the text, and one more gives the context to decode in.
        self._tail = 1 + max((len(text.encode()) for text in self._strings), default=0)
        self._known: dict[tuple[int, ...], str] = {}

    def reason(self, token_ids: Sequence[int]) -> str | None:
        """Return why the text of these new tokens ends with the last of them, or None."""
        if token_ids[-1] in self._eos_ids:
            return EOS
        if self._strings and self._completes(tuple(token_ids[-self._tail :])):
            return STOP
        return LENGTH if len(token_ids) == self.max_new_tokens else None

    def _completes(self, tail: tuple[int, ...]) -> bool:
        """Return whether the last token of `tail` completes a stop string."""
        before, text_now = self._decode(tail[:-1]), self._decode(tail)
        return any(text_now.count(text) > before.count(text) for text in self._strings)

    def _decode(self, ids: tuple[int, ...]) -> str:
        if ids not in self._known:
            text = self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
            self._known[ids] = str(text)
        return self._known[ids]
