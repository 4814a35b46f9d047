"""Markdown as a reader sees it."""

from __future__ import annotations

import re
from html import unescape

from markdown_it import MarkdownIt


def plain(text: str) -> str:
    """Markdown without backslashes before punctuation, and with the signs of its entities."""
    return unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text))


def rendered(text: str) -> str:
    """The words of Markdown as GitHub's kind of it shows them; tags that it has opened, too."""
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    return unescape(re.sub(r"</?(?:p|table|thead|tbody|tr|th|td)>|\n", "", html))
