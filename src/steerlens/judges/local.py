"""judge=local: a Hugging Face model with a chat template, in this process, always greedy."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.config.folders import has_chat_template
from steerlens.config.judge import check_model, local_model, refuse_settings_of_others
from steerlens.config.schema import JudgeConfig, ModelConfig
from steerlens.errors import SteerlensError
from steerlens.judges.chat import Answer, Conversation, TooLong, Unanswered
from steerlens.judges.rate import language_model_judge

if TYPE_CHECKING:
    import torch

    from steerlens.judges import JudgeSettings
    from steerlens.judges.items import Judge
    from steerlens.judges.lexical import Lexicon


class LocalChat:
    """A causal language model that answers several conversations at a time.

    An answer doesn't depend on those beside it, but for what rounding does to padded batches.
    """

    workers = 1

    def __init__(self, settings: JudgeSettings) -> None:
        from steerlens.config.identity import model_identity
        from steerlens.engine.subject.device import resolve_device, resolve_dtype

        assert settings.judge is not None
        entry = local_model(settings.judge)
        assert entry is not None
        cache_dir = Path(settings.paths.cache_dir)
        self.batch = settings.judge.concurrency
        self._max_tokens = settings.judge.max_tokens
        self._abandoned = threading.Event()
        dtype = resolve_dtype(settings.dtype, settings.device, settings.device_map)
        device = resolve_device(settings.device)
        self._model, self._tokenizer = _load(entry, cache_dir, dtype, device)
        self.identity: Mapping[str, Any] = {
            "judge": "local",
            "model": entry.path,
            **model_identity(entry, cache_dir),
            "dtype": str(self._model.dtype),
            "max_tokens": self._max_tokens,
        }

    def check(self) -> None:
        """Check nothing: loading has checked it all."""

    def abandon(self) -> None:
        """Give up what is under way."""
        self._abandoned.set()

    def answers(self, conversations: Sequence[Conversation]) -> list[Answer | Unanswered]:
        """Return one greedy answer for each conversation; none for one that is too long for the
        model.

        When memory runs out, fewer are answered at a time.
        """
        from steerlens.engine.memory import batches

        self._abandoned.clear()
        tokens = [self._tokens(conversation) for conversation in conversations]
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        replies: list[Answer | Unanswered] = [
            TooLong(
                f"{len(ids)} tokens and {self._max_tokens} of an answer are more than the "
                f"model's {room}"
            )
            for ids in tokens
        ]
        fit = [n for n, ids in enumerate(tokens) if not room or len(ids) + self._max_tokens <= room]

        def run(rows: slice, _full: int) -> None:
            indices = fit[rows]
            for n, answer in zip(
                indices, self._generate([tokens[n] for n in indices]), strict=True
            ):
                replies[n] = answer

        for _ in batches(len(fit), max(1, len(fit)), run):
            pass
        return replies

    def _tokens(self, conversation: Conversation) -> list[int]:
        ids: Any = self._tokenizer.apply_chat_template(
            [turn._asdict() for turn in conversation],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        return list(ids["input_ids"])

    def _generate(self, tokens: Sequence[Sequence[int]]) -> list[Answer]:
        import torch

        length = max(map(len, tokens))
        pad = self._tokenizer.pad_token_id or 0
        # On the left, so that every row's answer begins at the same place.
        tokens_BL = torch.tensor([[pad] * (length - len(ids)) + list(ids) for ids in tokens])
        mask_BL = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in tokens])
        device = self._model.device

        def is_abandoned(tokens_BL: torch.Tensor, _logits_BV: Any, **_settings: Any) -> Any:
            return torch.full((len(tokens_BL),), self._abandoned.is_set(), device=device)

        with torch.inference_mode():
            out_BL: torch.Tensor = self._model.generate(
                tokens_BL.to(device),
                attention_mask=mask_BL.to(device),
                max_new_tokens=self._max_tokens,
                do_sample=False,
                pad_token_id=pad,
                stopping_criteria=[is_abandoned],
            )
        if self._abandoned.is_set():  # the answers are cut off
            raise CancelledError
        return [
            self._answer(ids, new)
            for ids, new in zip(tokens, out_BL[:, length:].tolist(), strict=True)
        ]

    def _answer(self, prompt_ids: Sequence[int], new: list[int]) -> Answer:
        """Return the answer in new tokens, which end with an end token if there was room for it."""
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        written = next((n + 1 for n, token in enumerate(new) if token in ends), len(new))
        ended = new[written - 1 : written] and new[written - 1] in ends
        text = self._tokenizer.decode(new[:written], skip_special_tokens=True)
        return Answer(text, len(prompt_ids), written, stopped="stop" if ended else "length")


def _load(
    model: ModelConfig, cache_dir: Path, dtype: torch.dtype, device: torch.device
) -> tuple[Any, Any]:
    """Return the judge's model and tokenizer.

    Raises:
        SteerlensError: they can't be loaded, or have no chat template.
    """
    from transformers import AutoModelForCausalLM

    from steerlens.engine.subject.gguf import loadable
    from steerlens.engine.subject.load_errors import load_error
    from steerlens.engine.subject.model import load_tokenizer, silence_transformers

    silence_transformers()
    entry = loadable(model, cache_dir)
    tokenizer = load_tokenizer(entry)
    if not tokenizer.chat_template:
        raise _no_template(model)
    model_class: Any = AutoModelForCausalLM
    try:
        loaded = model_class.from_pretrained(
            entry.path, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except MemoryError:
        raise
    except Exception as error:
        raise load_error(entry, error) from error
    return loaded.to(device).eval(), tokenizer


def check(config: JudgeConfig) -> None:
    """Refuse settings that can't work."""
    check_model(config)
    refuse_settings_of_others(config, ("base_url", "key_variable"))
    if config.temperature:
        raise SteerlensError(
            f"judge.temperature={config.temperature}: judge=local always takes the most probable "
            "token; leave it out."
        )
    model = local_model(config)
    if model and has_chat_template(model) is False:
        raise _no_template(model)


def _no_template(model: ModelConfig) -> SteerlensError:
    return SteerlensError(
        f"judge.model={model.path} has no chat template, so it follows no instructions; choose an "
        "instruction model."
    )


def load(settings: JudgeSettings, lexicon: Lexicon | None = None) -> Judge:
    """Give the judge of a run."""
    return language_model_judge(LocalChat(settings), settings)
