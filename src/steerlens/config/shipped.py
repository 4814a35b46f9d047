"""What ships beside the package, as a distribution of its own: the SAEs of the default model.

Whoever steers another model needs none of it, so it isn't part of the package.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from steerlens.config.entries import PACKAGE
from steerlens.errors import SteerlensError

DISTRIBUTION = "steerlens-smollm2"
MODULE = "steerlens_smollm2"


def shipped_path(name: str) -> Path:
    """Return where `name` lies in the distribution.

    The path doesn't exist if the distribution isn't installed or has no such release, so that a
    configuration composes without it; `missing_release` is the error for whoever needs the path.
    """
    return (_module_folder() or Path(MODULE)) / name


def shipped_name(value: object) -> object:
    """Return a path in the distribution by its name there, which is the same wherever that is
    installed; anything else as it is.
    """
    if not isinstance(value, str) or f"/{MODULE}/" not in value:
        return value
    return f"{MODULE}/{value.rpartition(f'/{MODULE}/')[2]}"


def missing_release(folder: Path) -> SteerlensError | None:
    """Return the error for a release's `folder` that doesn't exist; None for any other folder."""
    if folder != shipped_path(folder.name):
        return None
    module = _module_folder()
    if module is None:
        return SteerlensError(
            f"sae={folder.name} ships in the distribution {DISTRIBUTION}, which isn't installed: "
            f"pip install {_source()}"
        )
    releases = sorted({file.parents[1].name for file in module.glob("*/*/cfg.json")})
    return SteerlensError(
        f"sae={folder.name} isn't in the installed {DISTRIBUTION}, which has "
        f"{' and '.join(releases) or 'no SAEs'}: pip install --upgrade {_source()}"
    )


def _module_folder() -> Path | None:
    # Finding a top-level package doesn't import it.
    spec = find_spec(MODULE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) if folders else None


def _source() -> str:
    """Return what pip installs the distribution from: its folder in a checkout, else its name."""
    in_checkout = PACKAGE.parents[1] / "packages" / "smollm2"
    return str(in_checkout) if (in_checkout / "pyproject.toml").is_file() else DISTRIBUTION
