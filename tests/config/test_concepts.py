"""What can't work is refused before anything is loaded, in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlens.config.compose import compose
from steerlens.errors import SteerlensError
from steerlens.runs.preflight import check

BASE = ("concepts=embedded", "judge=lexical", "steer=axbench")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["steer=none"], "add steer=axbench"),
        (["steer.factors=[-1,1]"], "positive factors"),
        (["steer.operator=clamp"], "steer.operator=add alone"),
        (["concepts.methods=[DifMean]"], "did you mean 'DiffMean'"),
        (["concepts.methods=[]"], "concepts.methods=[] is empty"),
        (["concepts.methods=[SAE,SAE]"], "names a method twice"),
        (["concepts.settings={ReFT: {lr: 1}}"], "unknown concepts.settings: method 'ReFT'"),
        (["concepts.settings={SSV: 1}"], "SSV must be {SETTING: VALUE}"),
        (["concepts.source=folders"], "did you mean 'folder'"),
        (["concepts.n_prompts=1"], "concepts.n_prompts=1 must be at least 2"),
        (["concepts.features=0"], "concepts.features=0 must be at least 1"),
        (["concepts.together=1"], "concepts.together=1 must be at least 2"),
        (["concepts.n=0"], "concepts.n=0 must be at least 1"),
        (["concepts=folder"], "needs concepts.path=DIR"),
        (["concepts=folder", "concepts.path=nowhere"], "there is no folder nowhere"),
        (["concepts=concept500", "concepts.subset=null"], "needs concepts.subset, e.g. 9b/l20"),
        (["concepts=concept500", "concepts.instructions=alpaca"], "did you mean 'alpaca_eval'"),
        (["concepts=concept500", "concepts.instructions=released"], "instructions_path=FILE"),
        (["concepts=concept500", "concepts.instructions_path=no"], "instructions_path: there is"),
        (["shard=0/2"], "leave the shard out"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(SteerlensError) as error:
        check(compose([*BASE, *words]))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_texts_want_a_judge() -> None:
    with pytest.raises(SteerlensError, match="need a judge of the texts: add judge=lexical"):
        check(compose(["concepts=embedded", "steer=axbench"]))


def test_what_can_work_is_not(tmp_path: Path) -> None:
    words = [*BASE, "model=gpt2-small", "sae=gpt2-small-res-jb"]
    check(compose(words))
    (tmp_path / "metadata.jsonl").write_text('{"concept_id": 0, "concept": "rain"}\n')
    check(compose([*words, "concepts=folder", f"concepts.path={tmp_path}"]))
    check(compose([*words, "concepts=folder", 'concepts.path="somewhere/{layer}"']))


def test_a_key_without_concepts_says_how_to_choose_some() -> None:
    with pytest.raises(
        SteerlensError, match=r"there are no concepts yet; choose some with concept"
    ):
        compose(["concepts.n=3"])
