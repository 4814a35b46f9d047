"""The hub's real loading code, offline, on a cache that the test fills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from steerlens.results import FEATURES
from tests.support.tiny import D_SAE, save_model, save_sae

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def snapshot(cache: Path, repo_id: str) -> Path:
    """An empty snapshot of a repository in the layout of the hub's cache."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    folder = repo / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def test_a_ready_entry_loads_its_release_and_model_from_the_hubs_cache(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    save_model(snapshot(cache, "openai-community/gpt2"), "gpt2")
    release = snapshot(cache, "jbloom/GPT2-Small-SAEs-Reformatted")
    sae = save_sae(release / "blocks.2.hook_resid_pre", layer=2, site="resid_pre")
    # The release is older than SAELens 6: one flat config.
    flat = {"d_in": 32, "d_sae": D_SAE, "model_name": "gpt2-small", "dtype": "torch.float32"}
    flat |= {"hook_point": "blocks.2.hook_resid_pre", "activation_fn_str": "relu"}
    (sae / "cfg.json").write_text(json.dumps(flat))
    out = tmp_path / "out"
    words = ["model=gpt2-small", "model.n_layers=4", "sae=gpt2-small-res-jb", "layer=2"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "steerlens", *words, "tracking.mode=disabled"),
            *(f"paths.output_dir={out}", f"paths.cache_dir={tmp_path / 'cache'}"),
        ],
        env={**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    frame = FEATURES.read(out)
    assert frame["hook_name"].unique().tolist() == ["blocks.2.hook_resid_pre"]
    assert len(frame) == D_SAE
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["model"]["revision"] == COMMIT
    assert provenance["model"]["processing"]["center_writing_weights"] is True
    assert provenance["saes"]["2"]["revision"] == COMMIT
    assert provenance["saes"]["2"]["path"] == "blocks.2.hook_resid_pre"
