"""Look up what is finished, compute what is missing, keep it at once, and put both together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from steerlens.storage.store import Store

Name = TypeVar("Name", bound=Hashable)
Value = TypeVar("Value")


def cached_rows(
    store: Store | None,
    key: Mapping[str, Any],
    rows: pd.DataFrame,
    by: Sequence[str],
    compute: Callable[[pd.DataFrame], Iterable[pa.Table]],
    progress: Callable[[int], None] = lambda n_stored: None,
) -> pa.Table:
    """Give every row its columns, of which the store has those that were computed before.

    Args:
        store: where finished rows are kept; None = nowhere.
        key: all that they depend on beside themselves.
        rows: what is asked for, at least one row.
        by: the columns of `rows` that tell them apart.
        compute: called with the rows that are missing, if any. Yields tables of some of them, with
            the columns `by`, in any order; each is kept as it comes, so that a killed run loses
            only what it was about to give.
        progress: called with the number of rows that were found.

    Returns:
        The columns `by` and those that `compute` gives, in the order of `rows`.
    """
    import pyarrow as pa

    by, wanted = list(by), rows[list(by)]
    stored = store.read(key, by) if store else None
    tables = [] if stored is None else [stored]
    missing = rows
    if stored is not None:
        finished = wanted.merge(stored.select(by).to_pandas(), on=by, how="left", indicator="kept")
        missing = rows.loc[(finished["kept"] == "left_only").to_numpy()]
    progress(len(rows) - len(missing))
    for table in compute(missing) if len(missing) else ():
        tables.append(table)
        if store:
            store.add(key, table, by)
    table = pa.concat_tables(tables, promote_options="default")
    row_index = table.select(by).to_pandas()
    row_index = row_index.assign(index=range(len(row_index))).drop_duplicates(by)
    return table.take(pa.array(wanted.merge(row_index, on=by, how="left")["index"]))


def cached_values(
    names: Iterable[Name],
    find: Callable[[Name], Value | None],
    compute: Callable[[list[Name]], Iterable[tuple[Name, Value]]],
    keep: Callable[[Name, Value], None],
) -> dict[Name, Value]:
    """Give every name its value, of which some may have been computed before.

    Args:
        names: what is asked for.
        find: looks up the value of a name; None = it isn't there.
        compute: called with the names that are missing, if any; each value is kept as it comes.
        keep: keeps a value for the next run.

    Returns:
        The values by name, in the order of `names`.
    """
    names = list(names)
    values = {name: value for name in names if (value := find(name)) is not None}
    missing = [name for name in names if name not in values]
    for name, value in compute(missing) if missing else ():
        keep(name, value)
        values[name] = value
    return {name: values[name] for name in names}
