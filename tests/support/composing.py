"""Composing without reading every file again: most of what a tiny run or subject would cost.

Hydra resolves the defaults lists and merges some 25 files for every composition, a fifth of a
second. What it makes of one choice of options is the same until
a schema is registered, so tests make it once; each setting is still put in by Hydra itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from steerlens.config.entries import conf_dir


@contextmanager
def composed_once() -> Iterator[None]:
    """While it lasts, options are merged once for each choice of them, and words parsed once."""
    loader: Any = config_loader_impl
    make_list = loader.create_defaults_list
    merge = loader.ConfigLoaderImpl._compose_config_from_defaults_list
    load = CachingConfigRepository.load_config
    parse, store = OverridesParser.parse_rule, ConfigStore.store
    files: dict[str, Any] = {}
    lists: dict[str, DefaultsList] = {}
    trees: dict[str, Any] = {}
    rules: dict[tuple[str, str], Any] = {}

    def shallow(self: CachingConfigRepository, delegate: Any) -> None:
        self.delegate = copy.copy(delegate)  # deep, it would be every schema each time
        self.cache = {}

    def loaded(self: CachingConfigRepository, config_path: str) -> Any:
        if f"config_path={config_path}" in self.cache or not _only_ours(self):
            return load(self, config_path)
        if config_path not in files:
            files[config_path] = load(self, config_path)
        self.cache[f"config_path={config_path}"] = copy.deepcopy(files[config_path])
        return self.cache[f"config_path={config_path}"]

    def listed(
        repo: Any, config_name: str | None, overrides_list: list[Any], **flags: bool
    ) -> DefaultsList:
        given = (config_name, overrides_list)
        if not _only_ours(repo):
            return make_list(repo, *given, **flags)
        overrides = Overrides(repo, overrides_list)
        chosen = (overrides.override_choices, overrides.append_group_defaults, overrides.deletions)
        key = repr((config_name, chosen, sorted(flags.items())))
        if key not in lists:
            lists[key] = make_list(repo, *given, **flags)
            return lists[key]
        overrides.known_choices = dict(lists[key].overrides.known_choices)
        return DefaultsList(
            lists[key].defaults, lists[key].defaults_tree, overrides.config_overrides, overrides
        )

    def merged(self: Any, defaults: Sequence[Any], repo: Any) -> Any:
        if not _only_ours(repo):
            return merge(self, defaults, repo)
        key = repr(defaults)
        if key not in trees:
            trees[key] = merge(self, defaults, repo)
        return copy.deepcopy(trees[key])

    def parsed(self: OverridesParser, s: str, rule_name: str) -> Any:
        if (s, rule_name) not in rules:
            rules[s, rule_name] = parse(self, s, rule_name)
        return copy.deepcopy(rules[s, rule_name])

    def stored(*args: Any, **kwargs: Any) -> None:
        for memo in (files, lists, trees):
            memo.clear()
        store(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachingConfigRepository, "__init__", shallow)
        patch.setattr(CachingConfigRepository, "load_config", loaded)
        patch.setattr(loader, "create_defaults_list", listed)
        patch.setattr(loader.ConfigLoaderImpl, "_compose_config_from_defaults_list", merged)
        patch.setattr(OverridesParser, "parse_rule", parsed)
        patch.setattr(ConfigStore, "store", stored)
        yield


def _only_ours(repo: Any) -> bool:
    """Whether no folder of a test's own is searched: its files may change."""
    folders = {source.path for source in repo.get_sources() if source.scheme() == "file"}
    return folders <= {str(conf_dir())}
