"""Many processes on one cache lose and corrupt nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from steerlens.results import FEATURES, GENERATIONS
from tests.support import forked
from tests.support.frames import assert_identical
from tests.support.tiny import save_sae

PROCESSES = 16


def work(words: list[str]) -> None:
    """One process's run."""
    from steerlens.config.compose import compose
    from steerlens.runs.run import run

    run(compose(words))


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_sixteen_processes_share_a_cache(
    tiny_folder: Callable[[str], Path], tmp_path: Path, undrawn_figures: None
) -> None:
    sae = save_sae(tmp_path / "sae", layer=2)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the w{20 + i % 30} Note that w{i + 60}" for i in range(90)))
    words = ["model=local", f"model.path={tiny_folder('llama')}", "sae=local", f"sae.path={sae}"]
    words += ["layer=2", "score=all", "corpus=text", f"corpus.path={text}", "device=cpu"]
    words += ["features.n=24", "steer=grid", "steer.factors=[2]", "generation.max_new_tokens=3"]
    words += ['generation.prompts=["Note that"]', "tracking.mode=disabled"]
    cache = tmp_path / "cache"

    def run(name: str, *more: str, cache: Path = cache) -> list[str]:
        paths = [f"paths.output_dir={tmp_path / name}", f"paths.cache_dir={cache}"]
        return [*words, *paths, *more]

    work(run("alone", cache=tmp_path / "another"))
    # Half want the same, half a quarter of it: they write the same parts, and others.
    shards = [f"shard={n % 4}/4" if n % 2 else "shard=null" for n in range(PROCESSES)]
    processes = [forked.start(work, run(str(n), shard)) for n, shard in enumerate(shards)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    for table in (FEATURES, GENERATIONS):
        expected = table.read(tmp_path / "alone")
        for n, shard in enumerate(shards):
            found = table.read(tmp_path / str(n))
            part = expected
            if shard != "shard=null":
                part = expected.loc[expected["feature"].isin(found["feature"].tolist())]
                assert len(set(found["feature"].tolist())) == 6
            assert_identical(found, part.reset_index(drop=True))
    before = files(cache)
    assert not [name for name in before if name.endswith(".tmp")]
    work(run("again"))
    assert files(cache) == before  # everything was found there
