"""The top of a page: what was run, what came out, and how to run it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.analysis.coverage import coverage_explanation
from steerlens.analysis.steering_summary import steering_explanation
from steerlens.analysis.summary import STEERABLE, explanation
from steerlens.analysis.toward import words_explanation
from steerlens.analysis.toward_texts import steered_toward
from steerlens.report.concept_page import is_of_a_concept, share_sentence
from steerlens.report.page.contents import KeyNumber, Overview
from steerlens.report.reference import reference_lines
from steerlens.results import SAES
from steerlens.results.folder import RunTables, unfinished
from steerlens.results.status import read_status
from steerlens.results.text import counted, number, visible, visible_token
from steerlens.storage.files import read_json
from steerlens.storage.provenance import PROVENANCE_FILE

if TYPE_CHECKING:
    import pandas as pd

VERSIONS = ("steerlens", "python", "torch", "transformers", "transformer-lens", "sae-lens")


def run_title(summary: Mapping[str, Any]) -> str:
    """Give the names of model and SAE."""
    if not summary.get("model"):
        return "A run without features"
    return visible(f"{_names(summary.get('model'))} with {_names(summary.get('sae'))}")


def run_overview(tables: RunTables, summary: Mapping[str, Any], folder: Path) -> Overview:
    """Give the top of a run's page."""
    provenance = read_json(folder / PROVENANCE_FILE)
    return Overview(
        kind="run",
        question=visible(_question(tables, summary)),
        sentences=[visible(line) for line in run_sentences(tables, summary)],
        notes=[visible(note) for note in (*tables.notes, *_doubts(tables, provenance))],
        state=visible(tables.unfinished or "done"),
        command=visible(tables.command) if tables.command else None,
        facts=_facts(tables.saes, provenance if isinstance(provenance, dict) else {}, folder),
        key_numbers=[*key_numbers(tables, summary)],
    )


def key_numbers(tables: RunTables, summary: Mapping[str, Any]) -> Iterator[KeyNumber]:
    """Give the few numbers that say most of a run."""
    overall = summary.get("overall") or {}
    yield KeyNumber(f"{len(tables.features):,}", "features", "")
    high = STEERABLE
    names = [("output_score", "S_out", "amplified, they write their own tokens")]
    names += [("input_score", "S_in", "they fire on their own tokens")]
    # Candidates for a concept say nothing of features in general.
    for name, symbol, meaning in names if not is_of_a_concept(tables) else []:
        if overall.get(f"{name}_count"):
            null = overall.get(f"{name}_null_at_least_{high:g}")
            beside = "" if null is None else f"random directions: {null:.1%}"
            share = f"{overall[f'{name}_at_least_{high:g}']:.1%}"
            yield KeyNumber(share, f"have {symbol} ≥ {high:g}: {meaning}", beside)
    if len(tables.words):
        n_found = sum(bool(word["found"]) for word in summary["words"])
        singular, plural = "word has a feature toward it", "words have a feature toward them"
        n_words = len(tables.words)
        yield KeyNumber(f"{n_found} of {n_words}", singular if n_words == 1 else plural, "")
    if len(tables.generations):
        n = len(tables.steering[["layer", "feature"]].drop_duplicates())
        yield KeyNumber(f"{len(tables.generations):,}", "texts", f"{counted(n, 'feature')} steered")
    if len(tables.ratings):
        methods = len(set(tables.ratings["method"].tolist()))
        yield KeyNumber(f"{len(tables.ratings):,}", "rated texts", counted(methods, "method"))


def overview_without_tables(why: str, folder: Path) -> Overview:
    """Give the top of the page of a run whose tables aren't there or can't be read."""
    provenance = read_json(folder / PROVENANCE_FILE)
    provenance = provenance if isinstance(provenance, dict) else {}
    command = provenance.get("command")
    return Overview(
        kind="run",
        question="Nothing of this run can be shown.",
        sentences=[],
        notes=[visible(why)],
        state=visible(unfinished(folder) or "done"),
        command=visible(str(command)) if command else None,
        facts=_facts(SAES.frame([]), provenance, folder),
    )


def _doubts(tables: RunTables, provenance: Any) -> Iterator[str]:
    """Say what of the run isn't there, or may read differently today."""
    if len(tables.steering) and not len(tables.generations):
        yield "generations.parquet is missing: what the steered features wrote can't be shown."
    elif len(tables.generations) and not any(tables.generations["text"].dropna().tolist()):
        yield "No text in generations.parquet has a character: none can be shown."
    if provenance is None:
        yield f"{PROVENANCE_FILE} is missing: with which command and versions isn't known."
    if len(tables.generations) and not len(tables.steering):
        yield "steering.parquet is missing: best factors can't be shown."
    versions = provenance.get("versions") if isinstance(provenance, dict) else None
    written = versions.get("steerlens") if isinstance(versions, dict) else None
    if written and written != version("steerlens"):
        yield f"The run is of steerlens {written}; the page was made by {version('steerlens')}."


def run_sentences(tables: RunTables, summary: Mapping[str, Any]) -> list[str]:
    """Say what came out, in the sentences that the terminal has."""
    lines: list[str] = []
    if summary.get("ranked_by") and not is_of_a_concept(tables):
        lines += explanation(summary)
    elif not summary.get("ranked_by"):
        lines.append(f"{counted(len(tables.features), 'feature')}, none with a score.")
    if len(tables.words):
        explained = words_explanation(summary["words"])
        n_first = int(len(tables.words) > 1)  # how many were found, before which
        lines += [
            *explained[:n_first],
            *_steered_toward(tables, summary["words"]),
            *explained[n_first:],
        ]
    elif summary.get("steering"):
        lines += steering_explanation(summary["steering"])
    lines += coverage_explanation(summary.get("coverage"))
    lines += reference_lines(tables)
    study = summary.get("study")
    return [*(study["sentences"] if study else []), *lines]  # what was asked comes first


def _steered_toward(tables: RunTables, words: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say what the best feature of each word that was found does."""
    for word in words:
        if not word["found"]:
            continue
        best = steered_toward(tables, word)[0]
        row, writes = best.row, " ".join(map(visible_token, best.writes[:4]))
        yield (
            f"{word['word']}: layer {row['layer']}, feature {row['feature']}, which writes "
            f"{writes}; "
            f"{share_sentence(best)}; perplexity {number(row['perplexity'], '.3g')} (unsteered "
            f"{number(row['perplexity_unsteered'], '.3g')})."
        )


def _question(tables: RunTables, summary: Mapping[str, Any]) -> str:
    """Say what was run, in a sentence."""
    if not len(tables.features):
        return "Nothing was scored: the table of features is empty."
    layers = sorted(set(tables.features["layer"].tolist()))
    where = f"at layer {layers[0]}" if len(layers) == 1 else f"at {len(layers)} layers"
    if len(layers) > 1:
        where += f", {layers[0]} to {layers[-1]},"
    scores = {"output_score": "output score", "input_score": "input score"}
    has_null = len(tables.null_scores) > 0
    filled = [title for name, title in scores.items() if bool(tables.features[name].notna().any())]
    scored = f"{' and '.join(filled).capitalize()} of " if filled else ""
    sentence = (
        f"{scored}{counted(len(tables.features), 'feature')} of {_names(summary.get('sae'))} "
        f"{where} of {_names(summary.get('model'))}"
    )
    if has_null:
        sentence += f", beside {counted(len(tables.null_scores), 'random direction')}"
    if len(tables.words):
        names = [str(word) for word in tables.words["word"].tolist()]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        sentence += f"; features looked for that steer toward {', '.join(names[:3])}{more}"
    if len(tables.steering):
        n = len(tables.steering[["layer", "feature"]].drop_duplicates())
        sentence += f"; {counted(n, 'feature')} steered with"
        if len(tables.generations):
            sentence += f", in {counted(len(tables.generations), 'text')}"
    if len(tables.ratings):
        methods = tables.ratings["method"].nunique()
        n_concepts = len(set(tables.ratings["concept_id"].tolist()))
        sentence += (
            f"; {counted(len(tables.ratings), 'text')} of {methods} methods toward "
            f"{counted(n_concepts, 'concept')} rated"
        )
    return f"{sentence}."


def _facts(
    described: pd.DataFrame, provenance: Mapping[str, Any], folder: Path
) -> list[tuple[str, str]]:
    """Model, SAEs, versions, commit, seed and date, as far as they are known."""
    model = provenance.get("model") or {}
    versions = provenance.get("versions") or {}
    git = provenance.get("git") or {}
    git = git if isinstance(git, Mapping) else {}
    saes = [
        f"layer {row['layer']}: {row['architecture']}, {row['d_sae']:,} features"
        for row in described.dropna(subset=["architecture", "d_sae"]).to_dict("records")
    ]
    file = model.get("file") or model.get("path") or model.get("repo_id")
    machine = ", ".join(str(model[name]) for name in ("dtype", "device") if model.get(name))
    finished = read_status(folder).get("finished")
    changed = " with uncommitted changes" if git.get("commit") and git.get("dirty") else ""
    facts = {
        "Weights": " ".join(str(part) for part in (file, model.get("revision")) if part),
        "Computed in": machine,
        "SAEs": "; ".join(saes[:6]) + (f" and {len(saes) - 6} more" if len(saes) > 6 else ""),
        "Seed": str(provenance["seeds"]) if "seeds" in provenance else "",
        "Finished": str(finished or provenance.get("time") or ""),
        "Commit": f"{git.get('commit') or ''}{changed}",
        "Versions": ", ".join(
            f"{name} {versions[name]}" for name in VERSIONS if versions.get(name)
        ),
    }
    return [(name, visible(value)) for name, value in facts.items() if value]


def _names(names: Any) -> str:
    names = [names] if isinstance(names, str) else list(names or ["?"])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + more
