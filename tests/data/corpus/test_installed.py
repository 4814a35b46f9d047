"""The embedded corpus, on a folder of a few files made here."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlens.data.corpus.installed import MIN_CHARS, Document, clean, documents

SORTING = "Return a sorted copy of the list that is given, without touching the list itself."
NETWORK = "Open a connection to the server and wait until it is ready for the first request."
MANY = "The module {} is one of the many that are in this folder full of small modules."
LICENCE = "Redistribution and use in source and binary forms are permitted under the licence."

SOLVER = f'''
"""Solvers for the systems of equations that this package has to deal with.

{LICENCE}
"""

# The tolerance is relative to the norm of the right-hand side of the system,
# because an absolute one would depend on the units that the user has chosen.
TOLERANCE = 1e-6


class Solver:
    def run(self, steps):
        """{SORTING}

        Parameters
        ----------
        steps : int, optional
            The number of steps after which the solver gives up and raises an error.

        Examples
        --------
        >>> Solver().run(3)
        [1, 2, 3]
        """
        raise ValueError("The solver has not converged in the number of steps that it was given.")
'''


def letters(number: int) -> str:
    """A word of its own for each number, because numbers don't tell paragraphs apart."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "alpha/__init__.py": f'"""{NETWORK}"""',
        "alpha/solver.py": SOLVER,
        "alpha/tests/test_solver.py": f'"""This test should not be read: {NETWORK}"""',
        "beta.py": f'def first():\n    """{SORTING}"""\n',
        "broken.py": 'def first(:\n    """Nobody can parse this file, which is quite all right."""',
        **{
            f"many/module_{number}.py": (f'"""{MANY.format(letters(number))}"""')
            for number in range(300)
        },
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def by_label(root: Path) -> dict[tuple[str, str, str], str]:
    return {(d.module, d.name, d.kind): d.text for d in documents([root])}


def test_reading_twice_gives_the_same_documents_in_the_same_order(root: Path) -> None:
    assert list(documents([root])) == list(documents([root]))


def test_splits_are_disjoint_and_together_are_everything(root: Path) -> None:
    train = {d.text for d in documents([root], split="train")}
    validation = {d.text for d in documents([root], split="validation")}
    assert train
    assert validation
    assert not train & validation
    assert train | validation == {d.text for d in documents([root])}


def test_a_module_is_held_out_as_a_whole() -> None:
    texts = (SORTING, NETWORK)
    for module in (f"package.module_{number}" for number in range(200)):
        splits = {Document(text, module, "name", "docstring").split for text in texts}
        assert len(splits) == 1


def test_no_document_is_empty_and_whitespace_is_folded(root: Path) -> None:
    found = list(documents([root]))
    assert found
    for document in found:
        assert len(document.text) >= MIN_CHARS
        assert document.text == " ".join(document.text.split())


def test_labels_name_the_module_and_the_place_inside_it(root: Path) -> None:
    found = by_label(root)
    assert found["alpha", "module", "docstring"] == NETWORK
    assert found["alpha.solver", "Solver.run", "docstring"].startswith(SORTING)
    assert "tolerance is relative" in found["alpha.solver", "line 7", "comment"]
    assert "has not converged" in found["alpha.solver", "Solver.run", "string"]
    assert {d.package for d in documents([root])} == {"alpha", "many"}


def test_a_paragraph_appears_once(root: Path) -> None:
    assert sum(SORTING in d.text for d in documents([root])) == 1


def test_paragraphs_that_differ_only_in_names_of_code_appear_once(tmp_path: Path) -> None:
    text = "The first argument to the {} constructor must be a dict or an instance of it."
    for number, name in enumerate(("graph.Bar_Plot", "graph.ErrorX", "axis2d")):
        (tmp_path / f"module_{number}.py").write_text(f'"""{text.format(name)}"""')
    (tmp_path / "other.py").write_text(f'"""{text.format("plain")}"""')
    assert len(list(documents([tmp_path]))) == 2


def test_packages_and_kinds_narrow_the_reading(root: Path) -> None:
    chosen = list(documents([root], packages=["beta"], kinds=["docstring"]))
    assert [(d.module, d.name, d.text) for d in chosen] == [("beta", "first", SORTING)]


def test_code_types_and_licences_are_left_out(root: Path) -> None:
    text = " ".join(d.text for d in documents([root], packages=["alpha"]))
    for junk in (">>>", "[1, 2, 3]", "Parameters", "----", "int, optional", "Redistribution"):
        assert junk not in text
    assert "The number of steps after which the solver gives up" in text


def test_test_folders_and_files_that_do_not_parse_are_skipped(root: Path) -> None:
    modules = {d.module for d in documents([root])}
    assert not {"alpha.tests.test_solver", "broken"} & modules


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            "See :class:`~pkg.Thing` for the ``name`` of the thing that is made.",
            "See pkg.Thing for the name of the thing that is made.",
        ),
        (
            ":param x: The value that is to be written to the file.",
            "The value that is to be written to the file.",
        ),
        (
            "size (int): The size of the array that is to be made.",
            "The size of the array that is to be made.",
        ),
        ("x = [1, 2]; y = x[0] + f(3) * 7; z = {'a': 1}", ""),
        ("axis : int, optional", ""),
    ],
)
def test_markup_is_taken_off(raw: str, expected: str) -> None:
    assert clean(raw) == expected
