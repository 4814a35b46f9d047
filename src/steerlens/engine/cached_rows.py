"""Look up what is finished, compute what is missing, keep it at once, and put both together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from steerlens.storage.store import Store

GROUP = "group"
"""The column that says which of several keys a row belongs to."""

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

    def of_group(missing: pd.DataFrame) -> Iterator[pa.Table]:
        for table in compute(missing.drop(columns=GROUP)):
            yield table.append_column(GROUP, pa.array([0] * len(table)))

    return cached_groups(store, [(key, rows)], by, of_group, progress)[0]


def cached_groups(
    store: Store | None,
    groups: Sequence[tuple[Mapping[str, Any], pd.DataFrame]],
    by: Sequence[str],
    compute: Callable[[pd.DataFrame], Iterable[pa.Table]],
    progress: Callable[[int], None] = lambda n_stored: None,
) -> list[pa.Table]:
    """Give the rows of several keys their columns, computing together what any of them lacks.

    Args:
        store: where finished rows are kept, each group's under its own key; None = nowhere.
        groups: keys, each with its rows, at least one; all rows have the same columns.
        by: the columns of `rows` that tell those of a group apart.
        compute: called with the rows of all groups that are missing, if any, whose column `GROUP`
            says where they belong. Yields tables as in `cached_rows`, with that column.
        progress: called with the number of rows that were found.

    Returns:
        For each group what `cached_rows` gives.
    """
    import pandas as pd
    import pyarrow as pa

    by = list(by)
    tables: list[list[pa.Table]] = []
    missing: list[pd.DataFrame] = []
    for number, (key, rows) in enumerate(groups):
        stored = store.read(key, by) if store else None
        tables.append([] if stored is None else [stored])
        unfinished = rows.assign(**{GROUP: number})
        if stored is not None:
            ids = stored.select(by).to_pandas()
            finished = rows[by].merge(ids, on=by, how="left", indicator="source")
            unfinished = unfinished.loc[(finished["source"] == "left_only").to_numpy()]
        missing.append(unfinished)
    n_missing = sum(map(len, missing))
    progress(sum(len(rows) for _, rows in groups) - n_missing)
    for table in compute(pd.concat(missing)) if n_missing else ():
        group_of_row = table[GROUP].to_numpy()
        for number in dict.fromkeys(group_of_row.tolist()):
            part = table.filter(pa.array(group_of_row == number)).drop_columns(GROUP)
            tables[number].append(part)
            if store:
                store.add(groups[number][0], part, by)
    return [
        _in_order(pa.concat_tables(parts, promote_options="default"), rows.filter(items=by))
        for parts, (_, rows) in zip(tables, groups, strict=True)
    ]


def _in_order(table: pa.Table, rows: pd.DataFrame) -> pa.Table:
    """Return the row of `table` that each row of `rows` asks for, by all of its columns."""
    import pyarrow as pa

    by = list(rows)
    row_index = table.select(by).to_pandas()
    row_index = row_index.assign(index=range(len(row_index))).drop_duplicates(by)
    return table.take(pa.array(rows.merge(row_index, on=by, how="left")["index"]))


def cached_json(
    store: Store | None, key: Mapping[str, Any], name: str, compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Give what JSON can hold, computed unless the store has it.

    Args:
        store: where it is kept, as a file of `key`; None = nowhere.
        key: all that it depends on.
        name: of the file.
        compute: called if it isn't there.
    """
    return cached_values(
        [name],
        lambda name: store.load_json(key, name) if store else None,
        lambda _missing: [(name, compute())],
        lambda name, content: store.keep_json(key, name, content) if store else None,
    )[name]


def cached_values(
    names: Iterable[Name],
    find: Callable[[Name], Value | None],
    compute: Callable[[list[Name]], Iterable[tuple[Name, Value]]],
    save: Callable[[Name, Value], None],
) -> dict[Name, Value]:
    """Give every name its value, of which some may have been computed before.

    Args:
        names: what is asked for.
        find: looks up the value of a name; None = it isn't there.
        compute: called with the names that are missing, if any; each value is kept as it comes.
        save: keeps a value for the next run.

    Returns:
        The values by name, in the order of `names`.
    """
    names = list(names)
    values = {name: value for name in names if (value := find(name)) is not None}
    missing = [name for name in names if name not in values]
    for name, value in compute(missing) if missing else ():
        save(name, value)
        values[name] = value
    return {name: values[name] for name in names}
