from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from multiprocessing import get_context
from pathlib import Path

import pytest

import steerlens
from steerlens.errors import SteerlensError
from steerlens.storage import provenance as module
from steerlens.storage.provenance import (
    COMPUTING,
    code_digest,
    command_line,
    file_identity,
    folder_identity,
    git_state,
    provenance,
    without_docstrings,
)

PACKAGE = Path(steerlens.__file__).parent


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights" * 1000)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_provenance_says_what_ran_on_what() -> None:
    found = provenance({"model": {"revision": "abc"}}, ["/x/bin/steerlens", "layer=3"], {"seed": 0})
    assert found["model"] == {"revision": "abc"}
    assert found["command"] == "steerlens layer=3"
    assert found["seeds"] == {"seed": 0}
    assert {"python", "torch", "transformer-lens", "sae-lens"} <= set(found["versions"])
    assert found["hardware"]["cores"] == os.cpu_count()
    json.dumps(found, allow_nan=False)


def test_no_environment_variable_and_no_home_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret-key")
    monkeypatch.setenv("HOME", "/home/somebody")
    text = json.dumps(provenance({}, ["/home/somebody/.venv/bin/steerlens"], {}))
    assert "very-secret-key" not in text
    assert "somebody" not in text


def test_the_command_line_is_as_typed_but_for_secrets() -> None:
    argv = ["/a/steerlens/__main__.py", 'score.prompt="From my experience,"', "tokenizer=x"]
    assert command_line(argv) == "steerlens 'score.prompt=\"From my experience,\"' tokenizer=x"
    assert command_line(["steerlens", "hydra.job.env_set.HF_TOKEN=hf_abc"]) == (
        "steerlens 'hydra.job.env_set.HF_TOKEN=***'"
    )


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)


def test_git_tells_commit_and_changes_of_our_checkout_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "steerlens"
    package.mkdir(parents=True)
    (package / "provenance.py").touch()
    monkeypatch.setattr(module, "__file__", str(package / "storage" / "provenance.py"))
    assert git_state() is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    state = git_state()
    assert state is not None
    assert (len(state["commit"]), state["dirty"]) == (40, False)
    (package / "new.py").touch()
    assert git_state() == {**state, "dirty": True}
    # Installed somewhere inside another project's repository, its commit says nothing about us.
    installed = tmp_path / ".venv" / "lib" / "steerlens" / "storage" / "provenance.py"
    monkeypatch.setattr(module, "__file__", str(installed))
    assert git_state() is None


def test_a_file_is_identified_by_its_content(weights: Path, tmp_path: Path) -> None:
    expected = {"file": "model.safetensors", "bytes": 7000, "sha256": sha256(weights)}
    assert file_identity(weights, tmp_path / "cache") == expected
    assert file_identity(weights, tmp_path / "cache") == expected


def test_a_hash_is_remembered_until_the_file_changes(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = file_identity(weights, cache)
    with monkeypatch.context() as patch:
        patch.setattr(module.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        assert file_identity(weights, cache) == first
    weights.write_bytes(b"others!" * 1000)
    os.utime(weights, ns=(1, 1))
    assert file_identity(weights, cache)["sha256"] == sha256(weights) != first["sha256"]


@pytest.mark.parametrize("index", [0, 1_500_000, 2_999_999])
def test_other_weights_of_the_same_size_and_time_are_noticed(tmp_path: Path, index: int) -> None:
    file = tmp_path / "model.safetensors"
    content = bytearray(3_000_000)
    file.write_bytes(content)
    stat = file.stat()
    first = file_identity(file, tmp_path / "cache")
    content[index : index + 300_000] = b"x" * len(content[index : index + 300_000])
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_identity(file, tmp_path / "cache")["sha256"] == sha256(file) != first["sha256"]


@pytest.mark.parametrize("junk", ["", "[]", '{"sha256": 3}', '{"bytes": 7000', "\x00"])
def test_a_corrupt_cache_is_ignored(weights: Path, tmp_path: Path, junk: str) -> None:
    cache = tmp_path / "cache"
    first = file_identity(weights, cache)
    for cached in (cache / "sha256").iterdir():
        cached.write_text(junk)
    assert file_identity(weights, cache) == first


def test_a_cache_that_cannot_be_written_is_no_failure(weights: Path) -> None:
    assert file_identity(weights, weights / "cache")["sha256"] == sha256(weights)


def test_several_processes_share_one_cache(weights: Path, tmp_path: Path) -> None:
    jobs = [(weights, tmp_path / "cache")] * 8
    with get_context("spawn").Pool(2) as pool:
        found = pool.starmap(file_identity, jobs)
    assert {identity["sha256"] for identity in found} == {sha256(weights)}
    assert len(list((tmp_path / "cache" / "sha256").iterdir())) == 1


def test_a_missing_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SteerlensError, match=r"can't read .*no such file"):
        file_identity(tmp_path / "none", tmp_path)


def test_a_folder_is_identified_by_weights_configuration_and_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    names = [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "layer_1/sae_weights.safetensors",
    ]
    for name in [*names, "README.md", ".git/config.json", ".cache/x.json"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    identity = folder_identity(folder, tmp_path / "cache")
    assert identity["folder"] == "model"
    assert sorted(file["file"] for file in identity["files"]) == sorted(names)
    assert str(tmp_path) not in json.dumps(identity)


def test_a_change_of_any_module_that_computes_is_other_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "steerlens"
    for room in COMPUTING:
        shutil.copytree(PACKAGE / room, package / room)
    monkeypatch.setattr(module, "__file__", str(package / "storage" / "provenance.py"))
    monkeypatch.setattr(module, "without_docstrings", str)  # parsing all of it often takes minutes
    digest = code_digest.__wrapped__
    before, files = digest(), sorted(package.rglob("*.py"))
    assert len(files) > 80
    for file in files:
        source = file.read_text()
        file.write_text(source + "\nFACTOR = 1000\n")
        assert digest() != before, file
        file.write_text(source)
    assert digest() == before
    (package / "report.py").write_text("WIDTH = 80\n")
    assert digest() == before
    assert digest((".",)) != before


def test_docstrings_and_comments_are_no_other_code() -> None:
    old = (
        '''"""A module."""\nN = 1\n"""A constant."""\n\ndef f():\n    """One."""\n    return N\n'''
    )
    new = '''N = 1  # a comment\n\n\ndef f():\n    """Another."""\n    return N\n'''
    assert without_docstrings(old) == without_docstrings(new)
    assert without_docstrings(old) != without_docstrings(old.replace("N = 1", "N = 2"))
    text = 'def f():\n    return "a text"\n'
    assert without_docstrings(text) != without_docstrings(text.replace("a text", "another"))
