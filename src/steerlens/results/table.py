"""Tables of one schema, null where unfilled, written atomically as Parquet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from steerlens.errors import SteerlensError
from steerlens.results.earlier import in_present_columns
from steerlens.storage.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Column(NamedTuple):
    """A column that is always there."""

    kind: str
    """Its Arrow type."""
    about: str
    """What it holds, in a sentence."""


@dataclass(frozen=True)
class Table:
    """A table of a run's folder: its file and the columns that are always there."""

    file: str
    columns: Mapping[str, Column]
    """The columns in their order. Every column may be null but the `keys`; columns that are not
    here come after these."""
    keys: Sequence[str]
    """The columns that tell rows apart: no two rows have the same in all of them."""
    nullable: Collection[str] = ()
    """Keys that may be null, and that tables of other programs may lack."""
    about: str = ""
    """What a row is, in a sentence or two."""

    @property
    def _counted(self) -> str:
        """The column that says how many rows there are; others may have one value for all."""
        return "feature" if "feature" in self.keys else self.keys[-1]

    def frame(
        self, columns: Sequence[Mapping[str, Any]] | Mapping[str, Any] | pd.DataFrame
    ) -> pd.DataFrame:
        """Return the table from rows or from columns (a DataFrame is one of the latter).

        Every column of `columns` is there, null where unfilled (NaN counts as null). Types are
        pandas' nullable ones; list columns are Arrow's, so that millions of tokens stay compact,
        and give Python lists.
        """
        if isinstance(columns, Sequence) and not columns:
            return self._empty.copy()
        return self._to_pandas(self._arrow(columns))

    @cached_property
    def _empty(self) -> pd.DataFrame:
        """The table without rows: a run has up to ten of them, each with dozens of columns."""
        return self._to_pandas(self._arrow([]))

    def array(self, name: str, values: Any, size: int) -> pa.Array | pa.ChunkedArray:
        """Return `values` as an Arrow array with the type of column `name`; all null if they all
        are.
        """
        return _array(name, self._kind(name), values, size)

    def _kind(self, name: str) -> str | None:
        """Return the Arrow type of a column of ours; None for another's."""
        return self.columns[name].kind if name in self.columns else None

    def write(self, frame: pd.DataFrame, folder: Path, also_by: Sequence[str] = ()) -> Path:
        """Write the file into `folder`, atomically and with the same types every time.

        Args:
            frame: the rows.
            folder: where the file goes.
            also_by: columns that tell rows apart together with the `keys`: the job's in a sweep.

        Raises:
            SteerlensError: two rows have the same `keys`, or the file can't be written.
        """
        import pyarrow.parquet as pq

        path = Path(folder) / self.file
        keys = [*also_by, *self.keys]
        twice = frame.loc[frame.duplicated(keys), keys]
        if len(twice):
            row = ", ".join(f"{name}={value}" for name, value in twice.iloc[0].items())
            raise SteerlensError(f"{self.file} would have several rows of {row}.")
        table = self._arrow(frame)
        with atomic_write(path) as file:
            pq.write_table(table, file, compression="zstd")
        return path

    def read(self, folder: Path) -> pd.DataFrame:
        """Return the table of a run's folder; refuses a folder without one and a file that isn't
        one.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = Path(folder) / self.file
        if not path.is_file():
            raise SteerlensError(f"there is no {self.file} in {folder}.")
        try:
            with path.open("rb") as file:
                table = pq.read_table(file)
        except MemoryError:  # an ArrowException, too
            raise
        except (OSError, pa.ArrowException) as error:
            raise SteerlensError(
                f"{path} can't be read: it is truncated or no Parquet file; run the job again."
            ) from error
        kind = self.file.removesuffix(".parquet")
        table = in_present_columns(table)
        lacking = [
            name
            for name in self.keys
            if name not in table.column_names and name not in self.nullable
        ]
        if lacking:
            raise SteerlensError(
                f"{path} is no table of {kind}: it lacks the column {', '.join(lacking)}."
            )
        try:
            return self._to_pandas(self._like_ours(table))
        except MemoryError:
            raise
        except (pa.ArrowException, ValueError) as error:
            raise SteerlensError(f"{path} is no table of {kind}: {error}") from error

    def _arrow(
        self, columns: Sequence[Mapping[str, Any]] | Mapping[str, Any] | pd.DataFrame
    ) -> pa.Table:
        import pyarrow as pa

        if isinstance(columns, Sequence):
            filled = dict.fromkeys(name for row in columns for name in row)
            columns = {name: [row.get(name) for row in columns] for name in filled}
        elif self._counted not in columns:
            raise SteerlensError(f"{self.file} needs the column {self._counted!r}.")
        size = len(columns[self._counted]) if self._counted in columns else 0
        missing = [None] * size
        order = [*self.columns, *(name for name in columns if name not in self.columns)]
        arrays = {str(name): self.array(name, columns.get(name, missing), size) for name in order}
        nulls = {name: array for name, array in arrays.items() if pa.types.is_null(array.type)}
        return pa.table(arrays | {name: array.cast(pa.float64()) for name, array in nulls.items()})

    def _like_ours(self, table: pa.Table) -> pa.Table:
        """Return `table`, perhaps by another version or program, with our columns, order and
        types.
        """
        import pyarrow as pa

        columns: dict[str, Any] = {}
        extra = [name for name in table.column_names if name not in self.columns]
        for name in [*self.columns, *extra]:
            arrow = _type(self._kind(name))
            if name not in table.column_names:
                columns[name] = pa.nulls(len(table), arrow)
            else:
                columns[name] = table[name].cast(arrow) if arrow else table[name]
        return pa.table(columns)

    def _to_pandas(self, table: pa.Table) -> pd.DataFrame:
        import pandas as pd
        import pyarrow as pa

        nullable = {
            pa.string(): pd.StringDtype(),
            pa.int64(): pd.Int64Dtype(),
            pa.float64(): pd.Float64Dtype(),
            pa.bool_(): pd.BooleanDtype(),
        }

        def dtype(arrow: pa.DataType) -> Any:
            return nullable.get(arrow) or (
                pd.ArrowDtype(arrow) if pa.types.is_list(arrow) else None
            )

        frame = table.to_pandas(types_mapper=dtype)
        numbers = [name for name in ("layer", "feature") if name in self.keys]
        return frame.astype(dict.fromkeys(numbers, "int64"))


def _type(name: str | None) -> pa.DataType | None:
    import pyarrow as pa

    if name is None:
        return None
    return {
        "string": pa.string(),
        "int64": pa.int64(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "list<string>": pa.list_(pa.string()),
        "list<int64>": pa.list_(pa.int64()),
        "list<double>": pa.list_(pa.float64()),
    }[name]


def _array(name: str, kind: str | None, values: Any, size: int) -> pa.Array | pa.ChunkedArray:
    import numpy as np
    import pyarrow as pa

    arrow = _type(kind)
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(arrow) if arrow else values

    if isinstance(values, str) or not hasattr(values, "__len__"):
        values = [values] * size  # one value for all rows, as for model and sae
    if len(values) != size:
        raise SteerlensError(f"column {name!r} has {len(values)} entries for {size} features.")
    if isinstance(values, np.ndarray) and values.ndim > 1:
        values = list(values)
    try:
        array = pa.array(values, type=arrow, from_pandas=True)
    except UnicodeEncodeError:  # half of a surrogate pair: no text, but tokenizers have them
        array = pa.array(_encodable(values), type=arrow, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        expected = kind or "one type that Arrow knows"
        raise SteerlensError(f"column {name!r} must hold {expected}: {error}") from error
    return array


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list | tuple) or hasattr(value, "tolist"):
        return [_encodable(item) for item in value]
    return value


def number_or_none(value: Any) -> float | None:
    """Return a number of a row; None for a null, which may be pandas' NA."""
    return float(value) if isinstance(value, int | float) else None


def names(frame: pd.DataFrame, column: str) -> list[str]:
    """Return the different values of a column of names, in order of appearance."""
    return [str(name) for name in frame[column].dropna().drop_duplicates().tolist()]
