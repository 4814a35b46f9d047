"""The models, SAEs and subjects that have a name of their own, beside SAELens' list of releases."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from omegaconf import OmegaConf

from steerlens.config.belonging import refuse_other_model
from steerlens.config.catalog import family, listing, read_release, releases
from steerlens.config.compose import compose
from steerlens.config.entries import entries, resolved
from steerlens.config.resolvers import features_of_width, register
from steerlens.config.schema import ModelConfig, RunConfig, SaeConfig
from steerlens.config.settings import parse_subject
from steerlens.errors import SteerlensError
from steerlens.runs.preflight import check

FAMILIES = r"gemma-scope-2-.*|qwen-scope-.*|goodfire-.*|.*gpt-oss.*|.*-andyrdt"
"""Releases of SAELens' list of which every SAE has a short name."""

PUBLISHED = sorted(name for name, entry in entries("sae").items() if entry.get("release"))


@pytest.fixture(scope="module")
def base() -> RunConfig:
    """What is composed once; the entries take their places in it."""
    return compose(["steer=grid", "corpus=embedded"])


@pytest.fixture(scope="module")
def directory() -> dict[str, Any]:
    """SAELens' list as SAELens reads it."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return dict(get_pretrained_saes_directory())


def entry_of(group: str, name: str, **settings: str) -> dict[str, Any]:
    register()
    entry = resolved(entries(group)[name], **settings)
    return {key: value for key, value in entry.items() if key != "about"}


@pytest.mark.parametrize(("group", "schema"), [("model", ModelConfig), ("sae", SaeConfig)])
def test_an_entry_has_its_files_name_and_only_keys_of_the_schema(group: str, schema: type) -> None:
    for name in entries(group):
        tree: Any = OmegaConf.merge(OmegaConf.structured(schema), entry_of(group, name))
        assert tree.name == name


def with_sae(base: RunConfig, name: str, **settings: str) -> RunConfig:
    """The run of an SAE on the model that it says it is of."""
    sae = SaeConfig(**entry_of("sae", name, **settings))
    assert sae.model
    model = ModelConfig(**entry_of("model", sae.model))
    return dataclasses.replace(base, model=model, sae=sae)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_ready_sae_is_in_saelens_list_for_its_model_at_each_of_its_layers(
    name: str, base: RunConfig, directory: dict[str, Any]
) -> None:
    from steerlens.engine.subject.sae import sae_sources

    config = with_sae(base, name)
    check(config)
    assert config.sae.release
    listed = directory[config.sae.release]
    refuse_other_model(name, listed.model, config.model)
    sources = sae_sources(parse_subject(config))
    assert {source.sae_id for source in sources} <= set(listed.saes_map)
    assert config.model.n_layers
    every_layer = None if config.sae.site else list(range(config.model.n_layers))
    layers = [source.layer for source in sources]
    assert layers
    assert layers == (config.sae.layers or every_layer or layers)
    check(dataclasses.replace(config, layer=layers[-1]))


def test_every_sae_of_the_families_has_a_short_name_and_no_name_is_of_none(
    directory: dict[str, Any],
) -> None:
    named = set()
    for name in PUBLISHED:
        in_family = re.fullmatch(FAMILIES, entry_of("sae", name)["release"])
        for chosen, layers in family(name) if in_family else ():
            entry = resolved(entries("sae")[name], **chosen)
            named |= {(entry["release"], entry["sae_id"].format(layer=n)) for n in layers}
    listed = {
        (name, id)
        for name, release in directory.items()
        for id in release.saes_map
        if re.fullmatch(FAMILIES, name)
    }
    assert len(listed) > 5000
    assert named == listed


def test_gemma_scope_2_has_every_site_and_layer_of_its_models() -> None:
    for size in ("270m", "1b", "4b", "12b", "27b"):
        for name in (f"gemma-scope-2-{size}", f"gemma-scope-2-{size}-it"):
            by_site: dict[str, set[int]] = {}
            for chosen, layers in family(name):
                by_site.setdefault(chosen["site"], set()).update(layers)
            n_layers = entries("model")[entries("sae")[name]["model"]]["n_layers"]
            for site, layers in by_site.items():
                assert site in ("res", "att", "mlp", "transcoders") or site.endswith("-all")
                if site.endswith("-all"):
                    assert layers == set(range(n_layers))
            # SAELens lists fewer for the base model of 27B.
            assert {"res", "res-all", "transcoders-all"} <= set(by_site)
            assert len(by_site) == (3 if name == "gemma-scope-2-27b" else 8)


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n.startswith(("qwen-scope", "goodfire"))])
def test_sizes_are_those_that_saelens_knows(name: str, base: RunConfig) -> None:
    from sae_lens.loading import pretrained_sae_loaders as loaders

    for chosen, layers in family(name):
        config = with_sae(base, name, **chosen)
        assert config.sae.release
        assert config.sae.sae_id
        release = read_release(config.sae.release)
        id = config.sae.sae_id.format(layer=layers[0])
        path = next(sae["path"] for sae in release["saes"] if sae["id"] == id)
        loader = {
            "qwen_scope": loaders.get_qwen_scope_config_from_hf,
            "goodfire": loaders.get_goodfire_config_from_hf,
        }[release["conversion_func"]]
        told = loader(release["repo_id"], path, "cpu")
        assert (config.model.d_model, config.sae.d_sae) == (told["d_in"], told["d_sae"])
        assert told["hook_name"] == f"blocks.{layers[0]}.hook_resid_post"


def test_a_width_is_the_power_of_two_that_its_name_rounds() -> None:
    powers = {"16k": 14, "32k": 15, "65k": 16, "128k": 17, "131k": 17, "262k": 18, "1m": 20}
    assert {name: features_of_width(name) for name in powers} == {
        name: 2**power for name, power in powers.items()
    }


@pytest.mark.parametrize("name", sorted(entries("subject")))
def test_a_subject_is_a_model_with_an_sae_of_its(name: str, base: RunConfig) -> None:
    entry = {key: value for key, value in entries("subject")[name].items() if key != "about"}
    chosen = {key: value for part in entry.pop("defaults") for key, value in part.items()}
    for key, option in chosen.items():
        group = key.removeprefix("override /").partition("@")[0]
        assert option in entries(group)
    sae = chosen["override /sae"]
    assert entries("sae")[sae]["model"] == chosen["override /model"]
    tree: Any = OmegaConf.merge(OmegaConf.structured(RunConfig), entry)  # no key is unknown
    if sae in PUBLISHED:  # what ships need not be installed, and a corpus not be on this machine
        check(dataclasses.replace(with_sae(base, sae), dtype=tree.dtype))


def test_every_ready_model_of_the_list_has_a_subject_unless_it_has_no_output_scores() -> None:
    without = {"qwen3.5-2b", "qwen3.5-9b", "qwen3.5-27b", "qwen3.5-35b-a3b"}
    listed = {entries("sae")[name]["model"] for name in PUBLISHED}
    of_subjects = {entry["defaults"][0]["override /model"] for entry in entries("subject").values()}
    assert listed - of_subjects == without
    for name in without:
        assert "only score=input and activation" in entries("model")[name]["about"]


def test_the_settings_of_a_family_compose() -> None:
    words = ["sae.site=transcoders-all", "sae.width=262k", "sae.l0=big_affine", "corpus=embedded"]
    config = compose(["subject=gemma-3-270m", *words])
    check(config)
    sae = config.sae
    assert (sae.release, sae.sae_id, sae.d_sae) == (
        "gemma-scope-2-270m-pt-transcoders-all",
        "layer_{layer}_width_262k_l0_big_affine",
        262144,
    )
    assert config.model.path == "google/gemma-3-270m"


GEMMA = ["model=gemma-3-270m", "sae=gemma-scope-2-270m"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([*GEMMA, "sae.site=attn"], "unknown SAELens release 'gemma-scope-2-270m-pt-attn'; did"),
        ([*GEMMA, "sae.width=32k"], "layer_0_width_32k_l0_medium'; did you mean"),
        ([*GEMMA, "sae.width=wide"], "sae.width=wide is no width; widths look like 16k or 1m"),
        ([*GEMMA, "layer=3"], "sae=gemma-scope-2-270m has no SAE at layer 3; it has: 5, 9, 12, 15"),
        (
            ["model=gemma-3-1b", "sae=gemma-scope-2-1b-res", "sae.width=65k"],
            "sae=gemma-scope-2-1b-res has no choice of sae.width; sae=gemma-scope-2-1b has.",
        ),
        (
            ["model=gpt2-small", "sae=gpt2-small-res-jb", "sae.l0=50"],
            "sae=gpt2-small-res-jb has no choice of sae.l0; sae=gemma-scope-2-12b has.",
        ),
        (["model=gemma-3-270m-it", GEMMA[1]], "choose sae=gemma-scope-2-270m-it,"),
    ],
)
def test_a_choice_that_is_none_is_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(SteerlensError) as caught:
        check(compose(overrides))
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message


def test_the_name_of_a_family_lists_its_choices() -> None:
    lines = listing("saes", "qwen-scope-3-30b-a3b").splitlines()
    assert [line.split() for line in lines[3:]] == [
        ["sae.width", "sae.l0", "layers"],
        ["128k", "100", "0-47"],
        ["32k", "50", "0-47"],
    ]
    rows = [re.split(r"  +", line) for line in listing("saes", "gemma-scope-2-270m").splitlines()]
    assert ["res", "65k", "big, medium, small", "5, 9, 12, 15"] in rows
    assert ["transcoders", "16k", "small_affine", "9"] in rows
    assert set(releases()) >= {f"gemma-scope-2-270m-pt-{row[0]}" for row in rows[4:]}
