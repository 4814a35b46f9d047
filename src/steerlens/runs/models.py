"""The models and SAEs of a run, each loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from steerlens.config.schema import ModelConfig
from steerlens.config.settings import SteeringSettings, SubjectSettings
from steerlens.report.terminal import phase

if TYPE_CHECKING:
    from steerlens.engine.subject import LoadedModel, Subject, WeightCache


@dataclass
class RunModels:
    """A run's model, which is loaded once, its SAEs layer by layer, and its evaluator."""

    settings: SubjectSettings
    evaluator_entry: ModelConfig | None = None
    weight_cache: WeightCache | None = None
    """What earlier runs of this process have loaded."""
    lm: LoadedModel | None = None
    """None until the first subject is loaded."""

    def subjects(self, layers: Iterable[int] | None = None) -> Iterator[Subject]:
        """Load the subjects of the given layers, by default of all, in rising order."""
        from steerlens.engine.subject import load_subjects

        settings = self.settings if layers is None else self.settings.of_layers(layers)
        subjects = load_subjects(settings, self.lm, self.weight_cache)
        while True:
            description = "the next SAE" if self.lm else f"{settings.model.title} and its first SAE"
            with phase(f"loading {description}"):
                subject = next(subjects, None)
            if subject is None:
                return
            self.lm = subject.lm
            yield subject
            del subject  # or its SAE would be in memory while the next is loaded

    def after(self, layer: int) -> Iterator[Subject]:
        """Load the subjects of the run's layers after `layer`, in rising order."""
        from steerlens.engine.subject.sae import sae_sources

        layers = [source.layer for source in sae_sources(self.settings)]
        later = [number for number in layers if number is not None and number > layer]
        return self.subjects(later) if later else iter(())

    @cached_property
    def evaluator(self) -> LoadedModel | None:
        """The model whose perplexity is measured; None = the steered one."""
        from steerlens.steering.metrics.perplexity import load_evaluator

        if self.evaluator_entry is None:
            return None
        return load_evaluator(self.evaluator_entry, self.settings, self.weight_cache)


def steering_of(lm: LoadedModel, settings: SteeringSettings) -> SteeringSettings:
    """Decide `chat_template=auto` by whether the loaded model has a template."""
    return settings.for_model(bool(lm.tokenizer.chat_template), lm.name)
