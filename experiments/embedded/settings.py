"""Every choice behind the embedded default, in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "steerlens"
MODEL_NAME = "steerlens-embedded"


@dataclass(frozen=True)
class TokenizerSettings:
    vocabulary: int = 8192
    """Mostly whole words: success of steering is then easier to read off single tokens."""
    min_frequency: int = 4
    shipped: bool = False
    """Take the shipped one instead of training one: models are then comparable by the token."""


@dataclass(frozen=True)
class ModelSettings:
    family: str = "llama"
    d_model: int = 192
    n_layers: int = 8
    n_heads: int = 6
    d_mlp: int = 512
    """GPT-2 and GPT-NeoX have two matrices in their MLP, not three: 768 is as many parameters."""
    tied: bool = False
    """Whether the embedding is the unembedding."""
    context: int = 256


@dataclass(frozen=True)
class TrainingSettings:
    tokens: int = 26_000_000
    """Budget. `build.py --stop-at HH:MM` starts the decay early enough to end then."""
    batch: int = 16
    optimizer: str = "muon"
    muon_lr: float = 0.01
    adam_lr: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_share: float = 0.6
    """Warmup, constant, then linear to zero over this share of the budget."""
    bf16: bool = True
    compile: bool = True
    seed: int = 0
    validation_rows: int = 512
    checkpoint_minutes: float = 5.0


@dataclass(frozen=True)
class SAESettings:
    release: str
    architecture: str
    d_sae: int
    options: dict[str, Any]
    tokens: int
    """The clock chose: the narrower one is twice as fast, so it sees more."""


@dataclass(frozen=True)
class SAETrainingSettings:
    """Shared by all SAEs.

    Small batches and a high rate: with so few tokens the number of steps decides how many features
    die (layer 1, 216k tokens, 2,048 and 1e-3: 76 %; 650k tokens, 512 and 3e-3: 3 %).
    """

    batch: int = 512
    lr: float = 3e-3
    buffer_rows: int = 192
    dead_window: int = 300
    """Steps without firing after which the auxiliary loss takes care of a feature."""
    bf16: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Settings:
    scratch: Path = Path("/tmp/steerlens-embedded")
    """Corpus and tokens, and for the default all other work files."""
    variant: str = ""
    """Set for what isn't shipped: a folder of its own in `scratch`, and part of the name."""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    saes: tuple[SAESettings, ...] = (
        SAESettings("sae-topk", "topk", 2048, {"k": 32}, 1_200_000),
        SAESettings("sae-batchtopk", "batchtopk", 1024, {"k": 32}, 1_600_000),
    )
    sae_training: SAETrainingSettings = field(default_factory=SAETrainingSettings)
    threads: int = 2

    @property
    def name(self) -> str:
        return f"{MODEL_NAME}-{self.variant}" if self.variant else MODEL_NAME

    @property
    def work(self) -> Path:
        return self.scratch / self.variant

    @property
    def corpus_file(self) -> Path:
        return self.scratch / "corpus.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint"

    def as_dict(self) -> dict[str, Any]:
        """Plain values without the machine's paths, for the card."""
        return {key: value for key, value in asdict(self).items() if key != "scratch"}


def in_float32(settings: Settings) -> Settings:
    """For processors without bfloat16 products, where they are 60 times slower than float32."""
    return replace(
        settings,
        training=replace(settings.training, bf16=False),
        sae_training=replace(settings.sae_training, bf16=False),
    )


#: Four architectures of one shape, tied where the family's real models are.
FAMILIES = {
    "llama": ModelSettings("llama"),
    "gpt_neox": ModelSettings("gpt_neox", d_mlp=768),
    "gpt2": ModelSettings("gpt2", d_mlp=768, tied=True),
    "gemma2": ModelSettings("gemma2", tied=True),
}


def family_settings(family: str, tokens: int, sae_tokens: int = 200_000) -> Settings:
    """The default's recipe for another architecture, with less text and one release of SAEs.

    Smaller batches: with few tokens the number of steps counts; and of few steps warmup is a tenth.
    """
    model, batch = FAMILIES[family], 8
    return replace(
        Settings(),
        variant=family,
        tokenizer=TokenizerSettings(shipped=True),
        model=model,
        training=TrainingSettings(
            tokens=tokens,
            batch=batch,
            compile=False,
            warmup_steps=min(100, tokens // (batch * model.context) // 10),
        ),
        saes=(SAESettings("sae-topk", "topk", 1024, {"k": 32}, sae_tokens),),
        sae_training=SAETrainingSettings(batch=256),
    )


GRID_LAYER = 5


def grid_settings(ks: tuple[int, ...], widths: tuple[int, ...], tokens: int) -> Settings:
    """TopK SAEs of every k and width for one layer of the shipped model; smaller batches."""
    return replace(
        Settings(),
        variant="grid",
        tokenizer=TokenizerSettings(shipped=True),
        sae_training=SAETrainingSettings(batch=256),
        saes=tuple(
            SAESettings(f"k{k}_w{width}", "topk", width, {"k": k}, tokens)
            for width in widths
            for k in ks
        ),
    )
