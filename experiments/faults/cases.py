"""The commands that are disturbed, on a subject of random weights, small enough to run often.

They write all kinds of files: tables layer by layer, figures, a cache of scores, activations,
texts, fitted weights and judges' answers, and the folders of a sweep.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.axbench import save_concepts, save_instructions
from tests.support.tiny import make_decided, save_model, save_sae

LAYERS = (1, 2)
OUT, CACHE = "out", "cache"
"""The run's folder and its cache, in the folder of a try."""

CONCEPTS = (
    *("concepts=folder", "layer=2", "steer=axbench", "steer.factors=[2,8]", "score=output"),
    *("concepts.n_prompts=6", "concepts.instructions=genre", "generation.max_new_tokens=4"),
    *("generation.stop=null", "generation.chat_template=false", "corpus.n_tokens=400"),
)
CASES: dict[str, tuple[str, ...]] = {
    "scores": ("score=all", "features.n=12", "layer=[1,2]", "score.input.min_examples=1"),
    "grid": (
        *("score=output", "features.n=3", "layer=[1,2]", "steer=grid", "steer.factors=[2,8]"),
        *("generation.max_new_tokens=4", "generation.n_prompts=2", "corpus.n_tokens=400"),
    ),
    "concept": (
        *("concept=w145", "layer=2", "features.top_k=60", "selection.top_n=2"),
        *("generation.max_new_tokens=4", "generation.n_prompts=2", "steer.factors=[1,4]"),
    ),
    "sweep": ("-m", "layer=1,2", "score=output,token_confidence", "features.n=4"),
    "table1": (
        *CONCEPTS,
        *("judge=lexical", "concepts.methods=[SAE,DiffMean,LoReFT]", "study.name=table1"),
        "concepts.settings={LoReFT: {layers: [1], rank: 2, epochs: 1}}",
    ),
    "judge": (
        *CONCEPTS,
        *("judge=openai", "judge.model=judge-small", "judge.retries=0", "judge.concurrency=4"),
        *("judge.timeout=2", "concepts.methods=[SAE,DiffMean]"),
    ),
}


def save_material(folder: Path) -> None:
    """Write the model, its SAEs, a corpus, and concepts with instructions."""
    make_decided(save_model(folder / "model"), 4)
    for layer in LAYERS:
        save_sae(folder / "saes" / f"layer_{layer}", "jumprelu", layer=layer)
    lines = [f"the w{20 + i} of w{60 + i % 7} my experience , Note that" for i in range(60)]
    (folder / "text.txt").write_text("\n".join(lines))
    save_concepts(folder / "concepts", LAYERS[-1])
    save_instructions(folder / "text.jsonl")


def words_of(case: str, material: Path, *more: str) -> list[str]:
    """The arguments of a case, as typed in the folder of a try.

    Args:
        case: a key of `CASES`.
        material: what `save_material` has written.
        more: further arguments.
    """
    words = [
        *("model=local", f"model.path={material / 'model'}"),
        *("sae=local", f"sae.path={material / 'saes'}", "device=cpu", "dtype=float32"),
        *("corpus=text", f"corpus.path={material / 'text.txt'}", "corpus.context_length=16"),
        *("evaluator=null", f"paths.output_dir={OUT}", f"paths.cache_dir={CACHE}"),
    ]
    if "concepts=folder" in CASES[case]:
        words += [f"concepts.path={material / 'concepts'}"]
        words += [f"concepts.instructions_path={material}"]
    if not any(word.startswith("tracking") for word in more):
        words += ["tracking.mode=disabled"]
    return [*CASES[case], *words, *more]
