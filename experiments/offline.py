"""Let the documentation be searched from a disk, without a network; `make docs` does it.

    python -m experiments.offline [site]

A browser starts no worker for a page on a disk. Zensical's pages ask unpkg.com for what takes its
place, iframe-worker; here they take it from `docs/vendor/iframe-worker`, 1.0.4 as it is published.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ASKED = "https://unpkg.com/iframe-worker/shim"
SHIM = "vendor/iframe-worker/index.js"


def localise(site: Path) -> int:
    """Have the pages of `site` load the shim from beside them; returns how many do."""
    if not (site / SHIM).is_file():
        raise SystemExit(f"{site / SHIM} is missing: build the documentation before.")
    n_pages = 0
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if ASKED in text:
            beside = os.path.relpath(site / SHIM, page.parent)
            page.write_text(text.replace(ASKED, Path(beside).as_posix()), encoding="utf-8")
            n_pages += 1
    return n_pages


def main() -> None:
    """Change the pages, and say so."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    n_pages = localise(site)
    if not n_pages:
        raise SystemExit(f"no page of {site} asks for {ASKED}: is this step still needed?")
    print(f"{n_pages} pages are searched without a network")


if __name__ == "__main__":
    main()
