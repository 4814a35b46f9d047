"""The embedded corpus: English prose that every installation already has on its disk.

The text is read from Python source files of the standard library and of the installed
packages: docstrings, long string literals (that is how `numpy` and `torch` document their
compiled functions), block comments, and the language reference in `pydoc_data.topics`.
Sources are parsed, never imported. Nothing of the text is shipped with the package.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Document", "Kind", "Split", "clean", "default_roots", "documents", "read_module"]

Kind = Literal["docstring", "string", "comment"]
Split = Literal["train", "validation"]

#: One module in so many is held out for validation.
VALIDATION_EVERY = 50
#: Documents and stray strings shorter than this say too little.
MIN_CHARS = 60
#: Paragraphs shorter than this may repeat ("Returns the result."): too short to be boilerplate.
MIN_UNIQUE_CHARS = 30

_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "lib2to3", "test", "tests", "_vendor"}
)
_LICENCE = re.compile(
    r"licen[sc]ed? |copyright|\(c\) \d{4}|warrant(y|ies)|redistribut|all rights reserved", re.I
)
_UNDERLINE = re.compile(r"^\s*([-=~^*#+_.\"'`|: ])\1{2,}[-=~^*#+_.|: ]*$")
_SECTION = re.compile(
    r"^\s*(args?|arguments|parameters?|returns?|yields?|raises|notes?|examples?|see also|"
    r"references|attributes|methods|warnings?|warns|keyword arguments|other parameters|"
    r"inputs?|outputs?|shape|usage|todo)\s*:?\s*$",
    re.I,
)
_FIELD = re.compile(r"^\s*:(?:param|type|returns?|rtype|raises?|i?var|arg)\b[^:]*:\s*")
_GOOGLE_FIELD = re.compile(r"^(?:[-*]\s+)?[`*]*\w+[`*]*\s*\([^()]{1,80}\)\s*:\s*")
_TYPE_LINE = re.compile(r"^[*`]*\w[\w*`, ]{0,50}\s:\s\S.{0,90}$")
_BULLET = re.compile(r"[-*+•] ")
_PROSE_DIRECTIVES = (".. note", ".. warning", ".. version", ".. deprecated")
_ROLE = re.compile(r":[a-z][\w:+-]*:`~?\.?([^`<]*?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"\[([^\]\[]*)\]\((?:[^()]|\([^()]*\))*\)")
_URL = re.compile(r"<?\b(?:https?|ftp)://\S+")
_MARKUP = re.compile(r"</?[a-z][a-z0-9]*(?: [^<>]*)?/?>|``?|\*\*|\[\d+\]_|\$")
#: Names of code; paragraphs that differ in nothing else come from one template.
_NAME = re.compile(r"\w*(?:[_\d]|\.\w|[a-z][A-Z])[\w.]*")
_SPACES = re.compile(r"\s+")
_WORD = re.compile(r"[A-Za-z][a-z]*(?:['-][a-z]+)*[.,;:!?)]*$")
#: Words that prose cannot do without; a paragraph with hardly any is a table or code.
_GLUE = re.compile(
    "the|a|an|of|to|in|is|and|for|or|be|are|by|as|with|that|this|it|if|not|on|from|which|will|"
    "can|at|should|has|have|when|used|use|into|its|all|each|then|than|but|may|must|was"
)


@dataclass(frozen=True)
class Document:
    """One piece of prose and where it comes from."""

    text: str
    module: str  # dotted path of the module: the concept label
    name: str  # path inside the module ("Class.method"), or "line 12" where there is none
    kind: Kind

    @property
    def package(self) -> str:
        """The top-level package or module."""
        return self.module.partition(".")[0]

    @property
    def split(self) -> Split:
        """Whole modules are held out: their documents are about the same things."""
        key = hashlib.sha256(self.module.encode()).hexdigest()
        return "validation" if int(key[:8], 16) % VALIDATION_EVERY == 0 else "train"


def default_roots() -> list[Path]:
    """Return the standard library first, then the folder of installed packages."""
    paths = sysconfig.get_paths()
    return [Path(path) for path in dict.fromkeys((paths["stdlib"], paths["purelib"]))]


def documents(
    roots: Iterable[Path] | None = None,
    *,
    packages: Iterable[str] | None = None,
    modules: Callable[[str], bool] = lambda module: True,
    split: Split | None = None,
    kinds: Iterable[Kind] = ("docstring", "string", "comment"),
    seed: int | None = None,
) -> Iterator[Document]:
    """Yield cleaned documents in a fixed order, no paragraph twice.

    With a `seed`, modules come in an order drawn from it, so that a part of all is a fair sample.

    `packages` keeps only these top-level packages, and `modules` those modules of which it is true;
    others aren't read. What is dropped as a repetition depends on the files read before, so ask for
    `split` here rather than reading twice.
    """
    package_names = None if packages is None else frozenset(packages)
    allowed = frozenset(kinds)
    hashes: set[bytes] = set()
    for path, module in _ordered(default_roots() if roots is None else roots, package_names, seed):
        if not modules(module):
            continue
        for document in read_module(path, module):
            if document.kind not in allowed:
                continue
            fresh = _drop_repeats(document, hashes)
            if fresh is not None and split in (None, fresh.split):
                yield fresh


def read_module(path: Path, module: str) -> Iterator[Document]:
    """Yield the documents of one source file, cleaned; their paragraphs are lines."""
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes are not our news
            tree = ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return
    for name, kind, raw in (*_strings(tree), *_comments(source)):
        text = clean(raw)
        if len(text) >= MIN_CHARS:
            yield Document(text, module, name, kind)


def clean(raw: str) -> str:
    """Return prose of a docstring: one paragraph a line, without code, tables, types and markup."""
    paragraphs = (_tidy(" ".join(block)) for block in _blocks(raw))
    return "\n".join(text for text in paragraphs if _is_prose(text))


def _ordered(
    roots: Iterable[Path], package_names: frozenset[str] | None, seed: int | None
) -> Iterable[tuple[Path, str]]:
    modules = (module for root in roots for module in _modules(root, package_names))
    if seed is None:
        return modules
    return sorted(
        modules, key=lambda module: hashlib.sha256(f"{seed} {module[1]}".encode()).digest()
    )


def _modules(root: Path, package_names: frozenset[str] | None) -> Iterator[tuple[Path, str]]:
    for path in _files(root, package_names):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED_FOLDERS.intersection(parts[:-1]) or any("-" in part for part in parts):
            continue
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        module = ".".join(parts)
        if package_names is None or module.partition(".")[0] in package_names:
            yield path, module


def _files(root: Path, package_names: frozenset[str] | None) -> list[Path]:
    if package_names is None:
        return sorted(root.rglob("*.py"))
    single = [path for name in package_names if (path := root / f"{name}.py").is_file()]
    return sorted(
        [*single, *(path for name in package_names for path in (root / name).rglob("*.py"))]
    )


def _drop_repeats(document: Document, hashes: set[bytes]) -> Document | None:
    paragraphs = []
    for paragraph in document.text.split("\n"):
        template = _NAME.sub("#", paragraph).lower()
        mark = hashlib.blake2b(template.encode(), digest_size=12).digest()
        if mark not in hashes:
            paragraphs.append(paragraph)
            if len(paragraph) >= MIN_UNIQUE_CHARS:
                hashes.add(mark)
    text = " ".join(paragraphs)
    if len(text) < MIN_CHARS:
        return None
    return Document(text, document.module, document.name, document.kind)


def _strings(tree: ast.Module) -> Iterator[tuple[str, Kind, str]]:
    """Yield docstrings and other long strings, in the order of the source."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    stack: list[tuple[ast.AST, str]] = [(tree, "")]
    while stack:
        node, name = stack.pop()
        docstring = None
        if isinstance(node, documented):
            if not isinstance(node, ast.Module):
                name = f"{name}.{node.name}".lstrip(".")
            if node.body and isinstance(node.body[0], ast.Expr):
                docstring = ast.get_docstring(node)
                if docstring is not None:
                    yield name or "module", "docstring", docstring
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield name or f"line {node.lineno}", "string", node.value
        children = list(ast.iter_child_nodes(node))
        if docstring is not None:
            children.remove(node.body[0])  # type: ignore[attr-defined]
        stack.extend((child, name) for child in reversed(children))


def _comments(source: str) -> Iterator[tuple[str, Kind, str]]:
    """Yield blocks of at least two whole-line comments."""
    block: list[str] = []
    start = 0
    for number, line in enumerate((*source.splitlines(), ""), start=1):
        stripped = line.strip()
        if stripped.startswith("#") and not stripped.startswith(("#!", "#:")):
            start = start if block else number
            block.append(stripped.lstrip("#").removeprefix(" "))
            continue
        if len(block) > 1:
            yield f"line {start}", "comment", "\n".join(block)
        block = []


def _blocks(raw: str) -> Iterator[list[str]]:
    """Yield paragraphs as lists of lines, without underlines, section names and types."""
    block: list[str] = []
    for line in _without_code(raw):
        # Such as `axis : {int, tuple of int}, optional` in a table of parameters.
        is_type = _TYPE_LINE.match(line) and not line.endswith(".")
        ends = not line or _UNDERLINE.match(line) or _SECTION.match(line) or is_type
        entry = _FIELD.match(line) or _GOOGLE_FIELD.match(line) or _BULLET.match(line)
        if ends or entry:
            if block:
                yield block
            block = []
        text = line[entry.end() :] if entry else line
        if text and not ends:
            block.append(text)


def _without_code(raw: str) -> Iterator[str]:
    """Yield stripped lines; doctests, fenced and literal blocks and directives become empty
    lines.
    """
    literal_indent = -1
    in_doctest = in_fence = False
    for line in (*raw.expandtabs(4).splitlines(), ""):
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if bare.startswith(("```", "~~~")):
            in_fence = not in_fence
            bare = ""
        if in_fence:
            continue
        in_doctest = bool(bare) and (in_doctest or bare.startswith((">>>", "In [")))
        if bare and literal_indent >= 0 and indent <= literal_indent:
            literal_indent = -1
        if in_doctest or literal_indent >= 0:
            bare = ""
        if bare.startswith(".. ") or bare.endswith("::"):
            introduces = bare.endswith("::") and not bare.startswith("..")
            literal_indent = -1 if bare.startswith(_PROSE_DIRECTIVES) else indent
            bare = bare.rstrip(":") + ":" if introduces else ""
        yield bare


def _tidy(text: str) -> str:
    text = _LINK.sub(r"\1", _ROLE.sub(r"\1", text))
    return _SPACES.sub(" ", _MARKUP.sub("", _URL.sub("", text))).strip(" -*|:#")


def _is_prose(text: str) -> bool:
    words = text.split()
    if len(words) < 4 or len(text) / len(words) > 12 or _LICENCE.search(text):
        return False
    plain = sum(1 for word in words if _WORD.match(word))
    glue = sum(1 for word in words if _GLUE.fullmatch(word.lower()))
    return plain >= 0.72 * len(words) and glue >= 0.12 * len(words)
