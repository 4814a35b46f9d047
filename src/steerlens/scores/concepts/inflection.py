"""English words in their regular forms, from a few rules of our own.

The rules only have to reach the forms that a vocabulary may hold: a form that no one writes finds
no token and does no harm. Irregular forms (`mice`, `ran`) aren't known; name them beside the word.
"""

from __future__ import annotations

import re

_STOP_WORDS = (
    "a an and any are as at be been but by can could did do does for from had has have he her his "
    "how i if in into is it its me my no nor not of on or our she should so some such than that "
    "the their them then there these they this those to was we were what when where which who whom "
    "whose why will with would you your"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())

_PUNCTUATION = ".,;:!?'\"()"

SHORTEST_SINGULAR = 4
"""Letters that an s must leave: `news` isn't the plural of `new`, nor `lens` of `len`."""


def content_words(phrase: str) -> list[str]:
    """Return the words of `phrase` in lower case, without stop words unless there is nothing
    else.
    """
    words = [word.strip(_PUNCTUATION) or word for word in phrase.lower().split()]
    return [word for word in words if word not in STOP_WORDS] or words


def forms(word: str) -> frozenset[str]:
    """Return `word` in lower case, its plural, -ed, -ing and -er, and the same of its singular."""
    word = word.lower()
    return frozenset(form for stem in (word, *_singulars(word)) for form in _inflected(stem))


def _singulars(word: str) -> list[str]:
    if not re.search(r"[^sui]s$", word):
        return []
    stems = [word[:-1]]
    if word.endswith("ies"):
        stems.append(word[:-3] + "y")
    elif re.search(r"(ch|sh|s|x|z|o)es$", word):
        stems.append(word[:-2])
    return [stem for stem in stems if len(stem) >= SHORTEST_SINGULAR]


def _inflected(stem: str) -> set[str]:
    if not stem.isalpha():
        return {stem}
    forms = {stem}
    if re.search(r"(s|x|z|ch|sh)$", stem):
        forms.add(stem + "es")
    elif re.search(r"[^aeiou]y$", stem):
        forms.add(stem[:-1] + "ies")
    else:
        forms.add(stem + "s")
        if re.search(r"[^aeiou]o$", stem):
            forms.add(stem + "es")
    if stem.endswith("e"):
        forms |= {stem + "d", stem + "r"}
        forms.add(stem + "ing" if re.search(r"[eoy]e$", stem) else stem[:-1] + "ing")
    elif re.search(r"[^aeiou]y$", stem):
        forms |= {stem + "ing", stem[:-1] + "ied", stem[:-1] + "ier"}
    else:
        # stop, stopped; visit, visited; label, labelled or labeled.
        doubles = re.search(r"[^aeiou][aeiou][^aeiouwxy]$", stem)
        one_syllable = len(re.findall(r"[aeiouy]+", stem)) == 1
        roots = [stem] * (not (doubles and one_syllable)) + [stem + stem[-1]] * bool(doubles)
        forms |= {root + ending for root in roots for ending in ("ed", "ing", "er")}
    return forms
