"""Answers on disk, each in a file of its own, found again by what was asked and of whom.

The name of the file is the hash of the judge's identity and the whole conversation. A file is
written in one step and never changed, so that any number of threads and processes can share a
folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.judges.chat import Answer, Conversation, count
from steerlens.storage.files import make_folder, read_json, remove_leftovers, write_json
from steerlens.storage.seal import with_digest, without_digest

FOLDER = "judges"


@dataclass(frozen=True)
class AnswerCache:
    """The answers of one judge, under the run's cache."""

    cache_dir: Path
    identity: Mapping[str, Any]

    def check(self) -> None:
        """Refuse a folder that can't be written: what is paid for has to be kept."""
        with _naming_the_setting(self.cache_dir):
            for folder in (make_folder(self.cache_dir / FOLDER)).iterdir():
                remove_leftovers(folder)

    def find(self, conversation: Conversation) -> Answer | None:
        """Return the answer that was kept, or None; a broken file is none."""
        key = self._key(conversation)
        content = read_json(self._file(key))
        content = without_digest(content) if isinstance(content, dict) else None
        if content is None or content.get("asked") != key:
            return None
        try:
            answer = Answer(**content["answer"])
        except (KeyError, TypeError):
            return None
        if not isinstance(answer.text, str):
            return None
        usage = count(answer.input_tokens), count(answer.output_tokens)
        return replace(answer, input_tokens=usage[0], output_tokens=usage[1])

    def keep(self, conversation: Conversation, answer: Answer) -> None:
        """Keep an answer for good.

        Raises:
            SteerlensError: it can't be written.
        """
        key = self._key(conversation)
        file = self._file(key)
        with _naming_the_setting(self.cache_dir):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, with_digest({"asked": key, "answer": asdict(answer)}))

    def _key(self, conversation: Conversation) -> dict[str, Any]:
        return {**self.identity, "messages": [list(turn) for turn in conversation]}

    def _file(self, key: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.cache_dir / FOLDER / digest[:2] / f"{digest[2:40]}.json"


@contextmanager
def _naming_the_setting(folder: Path) -> Iterator[None]:
    """Around a write: its errors name the setting that chooses the folder."""
    try:
        yield
    except (OSError, SteerlensError) as error:
        cause = error.__cause__ or error
        reason = (getattr(cause, "strerror", None) or str(cause)).lower()
        raise SteerlensError(
            f"the judge's answers can't be kept in {folder} ({reason}); choose another place with "
            "paths.cache_dir=DIR."
        ) from error
