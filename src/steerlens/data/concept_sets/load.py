"""The concept set of a run's settings."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from steerlens.config.schema import CONCEPT_SOURCES, ConceptsConfig
from steerlens.data.concept_sets import ConceptSet
from steerlens.data.concept_sets.axbench import axbench_folder, axbench_hub
from steerlens.data.concept_sets.contrast import contrast_folder
from steerlens.data.concept_sets.embedded import as_answers, embedded_concepts, unread_topics
from steerlens.data.concept_sets.folders import holds_pairs, names_of_folder
from steerlens.data.concept_sets.instructions import with_instructions
from steerlens.errors import unknown

# Once for all layers: reading the installed documentation takes some seconds.
_embedded = cache(embedded_concepts)


def load_concepts(
    config: ConceptsConfig,
    layer: int,
    seed: int,
    chat_template: bool = False,
    texts: bool = True,
) -> ConceptSet:
    """Return the concepts for a layer, with their texts and prompts, which are requests inside a
    chat template.

    Args:
        config: which concepts, and how many texts and prompts of each.
        layer: of a path that has one of its own for each layer.
        seed: what texts and prompts are drawn by.
        chat_template: whether the model is steered in a chat.
        texts: false reads no installed documentation, for counting: its topics have no texts, and
            all of them are said to be there.

    Raises:
        SteerlensError: what `config` names can't be read, or has no such concept.
    """
    if config.source == "embedded" and not texts:
        concepts = unread_topics(config.n_prompts)
    elif config.source == "embedded":
        concepts = _embedded(config.n_train, config.n_test, config.n_prompts, seed)
    else:
        path = str(config.path).replace("{layer}", str(layer))
        if config.source == "folder":
            concepts = _folder(Path(path), config, seed)
        elif config.source != "hub":
            raise unknown("concepts.source", config.source, CONCEPT_SOURCES)
        else:
            subset = str(config.subset).replace("{layer}", str(layer))
            concepts = axbench_hub(path, subset, config.revision)
    if config.only:
        concepts = concepts.only(config.only)
    concepts = concepts.first(config.n)
    if not concepts.are_instructions:
        return as_answers(concepts, config.n_prompts, seed) if chat_template else concepts
    file = config.instructions_path
    return with_instructions(
        concepts, config.instructions, Path(file) if file else None, config.n_prompts
    )


def _folder(path: Path, config: ConceptsConfig, seed: int) -> ConceptSet:
    """Return the concepts of a folder in AxBench's layout, or of contrast pairs."""
    if not holds_pairs(path):
        return axbench_folder(path)
    names = names_of_folder(path)
    for name in config.only:
        if name not in names:
            raise unknown(f"concept of {path.name}", name, names)
    return contrast_folder(path, config.n_train, config.n_test, config.n_prompts, seed, config.only)
