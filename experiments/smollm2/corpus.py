"""Collect the text that the SAEs of the default are trained on, without a network.

    apt-get install -y dict-gcide dict-foldoc wordnet-base debian-handbook jargon-text fortunes \
        bible-kjv perl-doc git-doc libreoffice-help-en-us python3-doc debian-policy \
        debian-reference-en developers-reference
    pip install --no-deps --target DIR/gensim gensim==4.4.0     # for its extract of Wikipedia
    python -m experiments.smollm2.corpus --model DIR --scratch DIR

Writes `tokens/SOURCE.npy` (uint16, documents one after another) with `tokens/SOURCE.starts.npy`,
the index at which each document begins. The model's own texts come from `sample.py`. Which sources
may be shown in shipped examples is `SHIPPABLE`. """

from __future__ import annotations

import argparse
import bz2
import gzip
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from lxml import html
from transformers import AutoTokenizer

DOC = Path("/usr/share/doc")
SHIPPABLE = ("wordnet", "jargon", "bible", "python", "samples")
"""WordNet's licence, the public domain, the PSF licence, and what the model wrote itself."""
MIN_CHARACTERS = 200


def _spaces(text: str) -> str:
    return re.sub(r"[ \t]*\n[ \t]*", "\n", re.sub(r"[ \t]+", " ", text)).strip()


def _unzipped(file: Path) -> str:
    return gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace")


def _pages(folder: Path) -> Iterator[str]:
    """Yield the prose of each HTML page below a folder: headings, paragraphs and list items."""
    for file in sorted(file for file in folder.rglob("*.html") if file.is_file()):
        tree = html.parse(str(file)).getroot()
        if tree is None:
            continue
        texts = (
            _spaces(element.text_content())
            for element in tree.iter("h1", "h2", "h3", "p", "li", "dd")
            if element.tag != "li" or element.find(".//p") is None
        )
        yield "\n\n".join(dict.fromkeys(filter(None, texts)))


def wordnet() -> Iterator[str]:
    """Yield glosses as a dictionary has them, forty synsets a document."""
    glosses = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in Path(f"/usr/share/wordnet/data.{part}").read_text().splitlines():
            if line.startswith(" "):
                continue
            fields, gloss = line.split(" | ", 1)
            n_words = int(fields.split()[3], 16)
            words = [w.replace("_", " ") for w in fields.split()[4 : 4 + 2 * n_words : 2]]
            glosses.append(f"{', '.join(words)}: {gloss.strip()}.")
    random.Random(0).shuffle(glosses)
    for start in range(0, len(glosses), 40):
        yield "\n".join(glosses[start : start + 40])


def _dictionary(name: str) -> Iterator[str]:
    """Yield a dictd dictionary in pieces of about forty entries, in an order drawn at random."""
    text = _unzipped(Path(f"/usr/share/dictd/{name}.dict.dz"))
    text = re.sub(r"\n *\[1913 Webster[^\]]*\]|\n *\[PJC\]|\n *\[WordNet[^\]]*\]", "", text)
    entries = [_spaces(e) for e in re.split(r"\n\n(?=\S)", text)]
    pieces = ["\n\n".join(entries[i : i + 40]) for i in range(0, len(entries), 40)]
    random.Random(0).shuffle(pieces)
    yield from pieces


def jargon() -> Iterator[str]:
    text = _unzipped(DOC / "jargon-text" / "jargon.txt.gz")
    entries = [_spaces(e) for e in re.split(r"\n(?=:)", text)]
    for start in range(0, len(entries), 10):
        yield "\n\n".join(entries[start : start + 10])


def fortunes() -> Iterator[str]:
    for file in sorted(Path("/usr/share/games/fortunes").iterdir()):
        if not file.suffix and file.name not in ("art", "ascii-art", "translate-me"):
            quotes = [_spaces(q) for q in file.read_text(errors="replace").split("\n%\n")]
            for start in range(0, len(quotes), 15):
                yield "\n\n".join(quotes[start : start + 15])


def bible() -> Iterator[str]:
    """Yield chapters, without the numbers of verses."""
    text = subprocess.run(
        ["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True
    ).stdout
    verses = re.findall(r"^(\S+?)(\d+):\d+ (.*)$", text, re.M)
    chapters: dict[tuple[str, str], list[str]] = {}
    for book, chapter, verse in verses:
        chapters.setdefault((book, chapter), []).append(verse)
    yield from (" ".join(lines) for lines in chapters.values())


def perl() -> Iterator[str]:
    for file in sorted(Path("/usr/share/perl").rglob("pod/*.pod")):
        text = re.sub(r"^=\w+ ?", "", file.read_text(errors="replace"), flags=re.M)
        yield _spaces(re.sub(r"[A-Z]<+([^<>]*)>+", r"\1", text))


def git() -> Iterator[str]:
    for file in sorted((DOC / "git-doc").rglob("*.txt")):
        yield _spaces(file.read_text(errors="replace"))


def python() -> Iterator[str]:
    yield from _pages(DOC / "python3.11" / "html")


def handbook() -> Iterator[str]:
    yield from _pages(DOC / "debian-handbook" / "html" / "en-US")
    for package in ("debian-policy", "developers-reference", "debian-reference-en"):
        yield from _pages(DOC / package)


def libreoffice() -> Iterator[str]:
    yield from _pages(Path("/usr/share/libreoffice/help/en-US"))


def wikipedia(gensim: Path) -> Iterator[str]:
    sys.path.insert(0, str(gensim))
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki  # type: ignore[import-not-found]

    data = gensim / "gensim" / "test" / "test_data"
    file = data / "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    for title, text, _ in extract_pages(bz2.BZ2File(file), filter_namespaces=("0",)):
        plain = re.sub(r"={2,}\s*(.*?)\s*={2,}", r"\1", filter_wiki(text))
        plain = re.sub(r"^[*#:;]+ ?", "", re.sub(r"'{2,}", "", plain), flags=re.M)
        if not text.lower().startswith("#redirect"):
            yield f"{title}\n\n{_spaces(plain)}"


def installed() -> Iterator[str]:
    """Yield the documentation of the installed Python packages, a module a document."""
    from steerlens.data.corpus.installed import documents

    module, texts = None, []
    for document in documents(kinds=("docstring", "string"), seed=0):
        if document.module != module and texts:
            yield "\n\n".join(texts)
            texts = []
        module = document.module
        texts.append(document.text)


def sources(gensim: Path) -> dict[str, tuple[Callable[[], Iterator[str]], int]]:
    """Map each source to its documents and to how many tokens of it are taken."""
    return {
        "wikipedia": (lambda: wikipedia(gensim), 700_000),
        "wordnet": (wordnet, 350_000),
        "gcide": (lambda: _dictionary("gcide"), 250_000),
        "foldoc": (lambda: _dictionary("foldoc"), 200_000),
        "jargon": (jargon, 250_000),
        "fortunes": (fortunes, 350_000),
        "bible": (bible, 200_000),
        "perl": (perl, 150_000),
        "git": (git, 100_000),
        "python": (python, 300_000),
        "handbook": (handbook, 250_000),
        "libreoffice": (libreoffice, 150_000),
        "installed": (installed, 250_000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--gensim", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    folder = arguments.scratch / "tokens"
    folder.mkdir(parents=True, exist_ok=True)
    for name, (read, n_tokens) in sources(arguments.gensim or arguments.scratch / "gensim").items():
        if (folder / f"{name}.npy").exists():
            continue
        texts = [text for text in islice(read(), 20_000) if len(text) >= MIN_CHARACTERS]
        random.Random(0).shuffle(texts)
        ids: list[list[int]] = []
        total = 0
        for text in texts:
            # The longest document is a tenth of its source.
            document = tokenizer(text, add_special_tokens=False)["input_ids"][: n_tokens // 10]
            ids.append(document)
            total += len(document)
            if total >= n_tokens:
                break
        starts = np.cumsum([0] + [len(document) for document in ids[:-1]])
        np.save(folder / f"{name}.starts.npy", starts)
        np.save(folder / f"{name}.npy", np.concatenate([np.asarray(d, np.uint16) for d in ids]))
        print(f"{name}: {len(ids)} of {len(texts)} documents, {total:,} tokens", flush=True)


if __name__ == "__main__":
    main()
