"""NLTK's webtext: forum posts, reviews, advertisements and a film script, as a corpus of words."""

from __future__ import annotations

from collections.abc import Iterator

from steerlens.errors import SteerlensError


def webtext() -> Iterator[str]:
    """Return its lines that aren't empty: each is a piece of its own. Nothing is downloaded."""
    try:
        from nltk.corpus import webtext as reader

        files = reader.fileids()
    except ImportError as error:
        raise SteerlensError("webtext needs NLTK; install it with: pip install nltk") from error
    except LookupError as error:
        raise SteerlensError(
            "NLTK's webtext isn't on this machine; fetch it with: python -m nltk.downloader webtext"
        ) from error
    return (line for file in files for line in str(reader.raw(file)).splitlines() if line.strip())
