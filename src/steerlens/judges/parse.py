"""`Rating: [[n]]`, read from an answer."""

from __future__ import annotations

import re
from typing import NamedTuple

# Markdown may stand between the word and the brackets (`**Rating:** [[2]]`), other words may not.
RATING = re.compile(r"rating[\s:*_`]{0,8}\[\[([^\[\]]*)\]\]", re.IGNORECASE)
# Judges forget the brackets (689 of the 5,000 fluency ratings that the paper's authors published):
# as a last line of its own it is as clear.
BARE = re.compile(r"(?:final )?rating:\s*([012])", re.IGNORECASE)


class Parsed(NamedTuple):
    """A rating, or why there is none."""

    value: int | None
    why: str = ""


def parse(answer: str) -> Parsed:
    """Return the last rating of `answer`, which the judge was asked to end with.

    Never a guess: it is 0, 1 or 2 in double brackets, or where there are none, the whole last line
    `Rating: n`.
    """
    ratings = RATING.findall(answer)
    if not ratings:
        lines = answer.strip().splitlines()
        bare = BARE.fullmatch(re.sub(r"[*_`\[\]]", "", lines[-1]).strip(" .")) if lines else None
        if bare:
            return Parsed(int(bare[1]))
        return Parsed(None, "no rating in the answer" if lines else "an empty answer")
    last = ratings[-1].strip()
    if last not in ("0", "1", "2"):
        return Parsed(None, f"the rating is {last[:20]!r}, not 0, 1 or 2")
    return Parsed(int(last))
