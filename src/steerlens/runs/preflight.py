"""Every check of a configuration that needs no model."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from steerlens.config.belonging import refuse_other_model
from steerlens.config.concepts import check_concepts
from steerlens.config.judge import check_judge, local_model
from steerlens.config.kinds import PUBLISHED, kind_of
from steerlens.config.parse import parse_feature_file, parse_ids
from steerlens.config.saes import layers_with_sae
from steerlens.config.schema import (
    CORPORA,
    JUDGE,
    CorpusConfig,
    FeaturesConfig,
    JudgeConfig,
    ModelConfig,
    RunConfig,
)
from steerlens.config.settings import Settings, parse_settings
from steerlens.config.steering import (
    check_choice,
    check_coverage,
    check_evaluate,
    check_generation,
    check_lens,
    check_objective,
    check_pmi,
    check_selection,
    check_steer,
    check_study,
    check_toward,
)
from steerlens.data.tasks import check_tasks, shipped_tasks
from steerlens.engine.examples import read_metadata, refuse_missing_layers
from steerlens.engine.lens_file import is_of_pytorch, model_beside, read_lens_file
from steerlens.errors import SteerlensError, unknown
from steerlens.results.text import visible
from steerlens.runs.content_check import check_concept_set, check_contents
from steerlens.runs.subject_check import (
    check_context,
    check_ids,
    check_local_model,
    check_sae_source,
    check_template,
)

DTYPES = ("auto", "float32", "float16", "bfloat16")
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
PLANS = (True, False, "measure")
TRACKING = ("offline", "online", "disabled")


def check(config: RunConfig) -> None:
    """Refuse, in one sentence, what can't work; reads local folders, but loads nothing."""
    _check_scalars(config)
    settings = parse_settings(config)
    scores, toward = settings.scores.values(), settings.toward_words
    steers = bool(settings.steering.factors)
    for score in scores:
        score.check()
        score.check_subject(config.model.title, config.sae.title)
    check_steer(config.steer)
    check_generation(config.generation)
    for metric in config.metrics.values():
        if check_metric := getattr(metric, "check", None):
            check_metric()
    check_selection(config.selection)
    check_choice(config.choice)
    check_lens(config.lens, settings.scores)
    check_evaluate(config.evaluate)
    if config.study.name == "capability" and not config.evaluate.tasks:
        raise SteerlensError(
            "experiment=capability has no tasks: evaluate.tasks=[...] names them; the tasks that "
            f"need no download are {', '.join(shipped_tasks())}."
        )
    if config.choice.success == "concept_success" and config.concept is None and not toward:
        raise SteerlensError("choice.success=concept_success needs concept=WORD.")
    if steers and config.choice.rule == JUDGE:
        _check_judge_of_factors(config.judge, bool(config.concept or toward))
    check_toward(config.toward, steers)
    for key, value in (("concept", config.concept), ("shard", config.shard)):
        if toward and value is not None:
            raise SteerlensError(
                f"toward.words can't go with {key}={value}; leave one of them out."
            )
    check_pmi(config.pmi)
    check_study(config.study)
    n_words, n_prompts = len(settings.coverage_words), len(settings.steering.prompts)
    check_coverage(config.coverage, n_words, steers, n_prompts)
    if config.quality.n_tokens is not None and config.quality.n_tokens < 1:
        raise SteerlensError(f"quality.n_tokens={config.quality.n_tokens} must be at least 1.")
    if config.judge is not None:
        check_judge(config.judge)
    check_concepts(config, settings.steering.factors)
    check_objective(config.objective, steers)
    _check_features(config.features)
    _check_shard(settings)
    _check_corpus(config.corpus, settings.reads_corpus, config.plan is True)
    _check_reference(config)
    if settings.loads_subject:
        models = {
            "model.path": config.model,
            "evaluator.path": config.evaluator,
            "judge.model": local_model(config.judge),
        }
        for key, model in models.items():
            if model:
                check_local_model(model, key, Path(config.paths.cache_dir))
    if config.chosen.refusal and config.chosen.kind == settings.kind.name:
        raise SteerlensError(config.chosen.refusal)
    check_tasks(config.evaluate)
    if not settings.loads_subject:
        return
    check_template(settings)
    check_context(settings)
    check_sae_source(config)
    layers = layers_with_sae(settings.subject)
    check_ids(config, layers)
    if config.concepts is not None:
        check_concept_set(config)
    check_contents(settings, layers or [])
    for file in {file for score in scores for file in score.examples()}:
        refuse_missing_layers(file, read_metadata(file), layers or [])
    if config.lens.path:
        _check_lens_file(Path(config.lens.path), config.model, layers or [])


def tell_begin(config: RunConfig, is_sweep: bool = False) -> None:
    """Say what was asked for: importing and loading take longer than people wait for a sign."""
    start = "a sweep, whose first job is " if is_sweep else ""
    subject = f"{config.model.title} with {config.sae.title}, layer {config.layer}"
    if kind_of(config) is PUBLISHED:
        subject = "from published numbers, without a model"
    print(visible(f"{start}{config.name}, {subject} ..."), file=sys.stderr, flush=True)


def _check_scalars(config: RunConfig) -> None:
    if not re.fullmatch(r"\w[\w .-]*", config.name):
        raise SteerlensError(f"name={config.name} is no folder name; use letters, digits, - and _.")
    if not 0 <= config.seed < 2**32:
        raise SteerlensError(f"seed={config.seed} is out of range; seeds are 0 to 4294967295.")
    if config.logit_lens_k < 1:
        raise SteerlensError(f"logit_lens_k={config.logit_lens_k} must be at least 1.")
    if config.dtype not in DTYPES:
        raise unknown("dtype", config.dtype, DTYPES)
    device = re.sub(r":\d+$", "", config.device)
    if device not in DEVICES:
        raise unknown("device", device, DEVICES)
    if isinstance(config.device_map, str) and config.device_map not in DEVICE_MAPS:
        raise unknown("device_map", config.device_map, DEVICE_MAPS)
    if not (config.device_map is None or isinstance(config.device_map, str | dict)):
        raise SteerlensError("device_map must be auto, or {module: device}.")
    if config.tracking.mode not in TRACKING:
        raise unknown("tracking.mode", config.tracking.mode, TRACKING)
    if not config.paths.output_dir.strip():
        raise SteerlensError("paths.output_dir is empty; name a folder, or leave it out.")
    if config.plan not in PLANS:
        raise unknown("plan", str(config.plan), ["true", "false", "measure"])


def _check_lens_file(path: Path, model: ModelConfig, layers: Iterable[int]) -> None:
    """Refuse Jacobians of another model or layer, as far as that is told without torch."""
    file = None if is_of_pytorch(path) else read_lens_file(path)
    if whose := file.model if file else model_beside(path):
        refuse_other_model(f"lens.path={path}", whose, model)
    if file:
        file.refuse_other_width(model.d_model, model.title)
        file.refuse_missing_layers(layers)


def _check_corpus(corpus: CorpusConfig, is_read: bool, is_planned: bool) -> None:
    if corpus.source not in CORPORA:
        raise unknown("corpus.source", corpus.source, CORPORA)
    if corpus.n_tokens is not None and corpus.n_tokens < 1:
        raise SteerlensError(f"corpus.n_tokens={corpus.n_tokens} must be at least 1.")
    if corpus.context_length < 2:
        raise SteerlensError(f"corpus.context_length={corpus.context_length} must be at least 2.")
    if corpus.shippable and corpus.source in ("embedded", "webtext"):
        raise SteerlensError(
            f"corpus.shippable is a column of a file or data set; corpus={corpus.name} has none."
        )
    if corpus.source == "embedded":
        return
    if corpus.source == "webtext":
        if is_read and not is_planned:  # a subject chooses it for all of its runs
            from steerlens.data.corpus.webtext import webtext

            webtext()  # refuses where its files aren't on this machine
        return
    if not corpus.path:
        kind = "ORGANISATION/NAME" if corpus.source == "hub" else "FILE"
        raise SteerlensError(f"corpus={corpus.name} needs corpus.path={kind}.")
    if corpus.source != "hub" and not Path(str(corpus.path)).is_file():
        raise SteerlensError(f"corpus.path: there is no file {corpus.path}.")
    if corpus.source != "hub" and is_read:
        from steerlens.data.corpus import refuse_without_text

        refuse_without_text(corpus)


def _check_judge_of_factors(judge: JudgeConfig | None, is_toward: bool) -> None:
    if judge is None or judge.name == "lexical":
        lexical = "; judge=lexical learns its words from a set of concepts" if judge else ""
        raise SteerlensError(
            f"choice.rule=judge needs a language model, judge=openai|anthropic|local{lexical}."
        )
    if not is_toward:
        raise SteerlensError(
            "choice.rule=judge needs concept=WORD, toward which the judge rates the texts."
        )


def _check_features(features: FeaturesConfig) -> None:
    ways = ("ids", "n", "file", "concept", "per_word")
    ways_given = [name for name in ways if getattr(features, name) is not None]
    if len(ways_given) > 1:
        both = " and ".join(f"features.{name}" for name in ways_given)
        raise SteerlensError(f"{both} are both given; choose one of them.")
    for name in ("n", "per_word"):
        number = getattr(features, name)
        if number is not None and number < 1:
            raise SteerlensError(f"features.{name}={number} must be at least 1.")
    if features.min_examples is not None:
        least = f"features.min_examples={features.min_examples}"
        if features.min_examples < 1:
            raise SteerlensError(f"{least} must be at least 1.")
        if ways_given and ways_given != ["n"]:
            raise SteerlensError(
                f"{least} is for all or random features, not for features.{ways_given[0]}; add "
                "features.min_examples=null."
            )
    if features.ids is not None:
        parse_ids(features.ids)
    if features.file is not None:
        if not features.file:
            raise SteerlensError("features=file needs features.file=FILE.")
        parse_feature_file(features.file)


def _check_reference(config: RunConfig) -> None:
    from steerlens.config.reference import KNOWN, check_reference

    check_reference(config.reference)
    if config.reference.model and not config.reference.alone:
        model_name = KNOWN[config.reference.model].model
        refuse_other_model(f"reference.model={config.reference.model}", model_name, config.model)


def _check_shard(settings: Settings) -> None:
    """Refuse choices that only the whole can make, of a part."""
    if settings.shard is None or not settings.steering.factors:
        return
    for name, of_all in (
        ("selection.top_n", settings.selection.top_n),
        ("steer.together", settings.steering.steer.together),
    ):
        if of_all:
            raise SteerlensError(
                f"{name} compares all features, of which shard={settings.shard} sees a part; "
                "select by selection.threshold, or leave the shard out."
            )
