"""Tables and settings of runs of earlier versions, in the names of this one.

All that reads a run's folder goes through `Table.read` and `folder.read_settings`, which ask here;
so nothing else knows an earlier name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steerlens.config.schema import EARLIER_UNITS

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = {"shown": "word_share", "shown_unsteered": "word_share_unsteered"}
"""Names of columns today, by their earlier ones."""


def in_present_columns(table: pa.Table) -> pa.Table:
    """Give a table of an earlier version the columns of this one; others stay as they are.

    Features that were steered together once stood in `control`, as "+57+208".
    """
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute  # whose functions are made when it is imported
    names = table.column_names
    if not set(COLUMNS.values()) & set(names):
        table = table.rename_columns([COLUMNS.get(name, name) for name in names])
    if "control" not in names or "together" in names:
        return table
    control = table["control"].cast(pa.string())
    is_group = pc.fill_null(pc.starts_with(control, "+"), False)
    null = pa.scalar(None, pa.string())
    together = pc.if_else(is_group, pc.utf8_slice_codeunits(control, 1), null)
    index = names.index("control")
    table = table.set_column(index, "control", pc.if_else(is_group, null, control))
    return table.add_column(index + 1, "together", together)


def in_present_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Give the settings of a run, by group, the values that they have today."""
    steer = settings.get("steer")
    if isinstance(steer, dict) and steer.get("unit") in EARLIER_UNITS:
        settings = {**settings, "steer": {**steer, "unit": EARLIER_UNITS[steer["unit"]]}}
    return settings
