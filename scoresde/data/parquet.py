"""Images in tables: parquet files, folders written by `save_to_disk`, and Hugging Face data sets by name.

All three are the same thing: a column `image` with the bytes of image files, as {bytes, path} or bare, and a column
`label` of numbers (or of words, which are numbered in sorted order), or a column `text` if captions are asked for. The
names of the classes are in the schema, as Hugging Face's libraries write it. Tables are read one column and some rows
at a time: first the labels or texts, then the images. The undecoded images are never in memory all at once.

Parquet and Arrow files are read with pyarrow alone. Paths in a table are not followed: a table does not choose what is
read on this machine. Only a name that begins with `hf:` is given to the `datasets` library, which may then download.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from scoresde._json import parse_json
from scoresde.data.decoding import Item, gather
from scoresde.data.options import OWN, ReadOptions, choose_split, optional_module, reading
from scoresde.data.own_captions import checked, plain
from scoresde.data.stores import Raw, Store
from scoresde.errors import UsageError, require

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels")
TEXT_COLUMNS = ("text", "caption", "captions")
ROWS = 256  # read at a time
SPLIT_FILE = re.compile(r"(.+)-\d{5}-of-\d{5}(-\w+)?\.parquet")  # Hugging Face's names: train-00000-of-00002.parquet


@final
@dataclass(frozen=True)
class Table:
    """A file of rows: its schema, its size, and a function that reads one column, some rows at a time."""

    name: str
    schema: Any  # pyarrow.Schema
    num_rows: int
    batches: Callable[[str], Iterator[Any]]  # of pyarrow.RecordBatch or pyarrow.Table


def read_parquet(paths: list[Path], options: ReadOptions, source: str, store: Store) -> Raw:
    """Reads images in parquet files; if all are named after splits, only those of the chosen split."""
    splits = {path: match[1] for path in paths if (match := SPLIT_FILE.fullmatch(path.name))}
    if len(splits) == len(paths):
        chosen = choose_split(sorted(set(splits.values())), options, source)
        paths = [path for path in paths if splits[path] == chosen]
    parquet = optional_module("pyarrow.parquet", source)

    def batches(path: Path, column: str) -> Iterator[Any]:
        with parquet.ParquetFile(path) as file:  # a data set can have more parts than a process may have open
            yield from file.iter_batches(ROWS, columns=[column], use_threads=False)

    def table(path: Path) -> Table:
        with parquet.ParquetFile(path) as file:
            metadata = file.metadata
            schema = file.schema_arrow
        if not options.from_disk:
            num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
            options.require_room(num_bytes, source)
        return Table(path.name, schema, metadata.num_rows, lambda column: batches(path, column))

    with reading(source, "parquet"):
        return _read_tables([table(path) for path in paths], options, source, store)


def read_saved(path: Path, options: ReadOptions, source: str, store: Store) -> Raw:
    """Reads a folder that `save_to_disk` of `datasets` wrote, of one split or several."""
    arrow = optional_module("pyarrow", source)

    def batches(file: Path) -> Iterator[Any]:
        with arrow.memory_map(str(file)) as memory, arrow.ipc.open_stream(memory) as stream:
            for batch in stream:
                yield from (batch.slice(start, ROWS) for start in range(0, batch.num_rows, ROWS))

    def table(file: Path) -> Table:
        with arrow.memory_map(str(file)) as memory, arrow.ipc.open_stream(memory) as stream:
            schema = stream.schema
        return Table(
            file.name,
            schema,
            sum(batch.num_rows for batch in batches(file)),
            lambda column: (batch.select([column]) for batch in batches(file)),
        )

    with reading(source, "a data set on disk"):
        if (path / "dataset_dict.json").is_file():
            splits = parse_json((path / "dataset_dict.json").read_text())["splits"]
            split = choose_split(sorted(s for s in splits if (path / s / "state.json").is_file()), options, source)
            path = path / split
        files = sorted(path.glob("*.arrow"))
        require(bool(files), f"{source}: holds no .arrow file")
        return _read_tables([table(file) for file in files], options, source, store)


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def hugging_face_table(name: str, options: ReadOptions, source: str) -> tuple[Table, list[Path]]:
    """A data set of the Hugging Face hub, downloaded by `datasets` if it is not in its cache, and its files there."""
    datasets = optional_module("datasets", source)
    try:
        dataset = datasets.load_dataset(name, split=options.split)
    except Exception as error:  # from the network or the hub, or for a name or split that does not exist
        raise UsageError(
            f"{source}: datasets cannot load split {options.split!r} ({type(error).__name__}: {error})"[:500]
        ) from error
    rows = dataset.with_format("arrow")
    schema = dataset.features.arrow_schema
    table = Table(name, schema, len(dataset), lambda column: rows.select_columns([column]).iter(ROWS))
    return table, [Path(file["filename"]) for file in dataset.cache_files] if options.from_disk else []


def hugging_face_stream(name: str, options: ReadOptions, source: str) -> tuple[Table, str] | None:
    """A data set of the Hugging Face hub whose rows are read while they are downloaded, and what it is known by.

    None if the hub does not say how many rows it has: it is then downloaded first.
    """
    datasets = optional_module("datasets", source)
    try:
        builder = datasets.load_dataset_builder(name)
        splits, features = builder.info.splits, builder.info.features
        if not splits or options.split not in splits or not features:
            return None
        stream = datasets.load_dataset(name, split=options.split, streaming=True)
    except Exception as error:  # from the network or the hub, or for a name that does not exist
        raise UsageError(f"{source}: datasets cannot stream it ({type(error).__name__}: {error})"[:500]) from error
    count = splits[options.split].num_examples

    def batches(column: str) -> Iterator[Any]:
        yield from stream.select_columns([column]).with_format("arrow").iter(ROWS)

    return Table(name, features.arrow_schema, count, batches), f"{name} {options.split} {builder.hash} {count}"


def read_hugging_face(table: Table, options: ReadOptions, source: str, store: Store) -> Raw:
    """Reads a data set that `hugging_face_table` found."""
    with reading(source, "a table of images"):
        return _read_tables([table], options, source, store)


def _read_tables(tables: list[Table], options: ReadOptions, source: str, store: Store) -> Raw:
    """Images and labels of tables with the same columns."""
    image, label = _columns(tables[0], source)
    for table in tables[1:]:
        require(
            _columns(table, source) == (image, label), f"{source}: {tables[0].name} and {table.name} differ in columns"
        )
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    if label is not None and options.class_conditional and options.captions != OWN:
        labels, names = _labels(tables, label, source)
    total = sum(table.num_rows for table in tables)
    texts = _texts(tables, source) if options.captions == OWN else None
    values, kept = gather(_items(tables, image), total, options, source, store)
    require(labels is None or len(labels) == total, f"{source}: holds fewer labels than the {total} rows it declares")
    require(texts is None or len(texts) == total, f"{source}: holds fewer captions than the {total} rows it declares")
    captions = None if texts is None else checked([texts[row] for row in kept], source)
    return Raw(values, None if labels is None else labels[kept], names, captions)


def _columns(table: Table, source: str) -> tuple[str, str | None]:
    """The names of the columns of images and of labels."""
    names = table.schema.names
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    require(image is not None, f"{source}: {table.name} has the columns {names[:10]}; need 'image', of bytes")
    assert image is not None
    kind = str(table.schema.field(image).type)
    require(
        kind in ("binary", "large_binary") or re.match(r"struct<.*\bbytes: (large_)?binary\b", kind) is not None,
        f"{source}: {table.name} has {image!r} of type {kind[:100]}; need the bytes of image files",
    )
    return image, next((name for name in LABEL_COLUMNS if name in names), None)


def _items(tables: list[Table], image: str) -> Iterator[Item]:
    for table in tables:
        row = 0
        for batch in table.batches(image):
            batch.validate(full=True)  # Arrow files are mapped as they are: offsets in a damaged one can point anywhere
            for cell in batch.column(0).to_pylist():
                yield f"{table.name}, row {row}", cell["bytes"] if isinstance(cell, dict) else cell
                row += 1


def _labels(tables: list[Table], label: str, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as numbers, and the names of the classes if they are known."""
    cells: list[Any] = []
    for table in tables:
        for batch in table.batches(label):
            batch.validate(full=True)
            cells += batch.column(0).to_pylist()
    missing = cells.count(None)
    require(
        missing == 0,
        f"{source}: {missing} of {len(cells)} rows have no {label!r}; data.class_conditional=False reads no labels",
    )
    if all(isinstance(cell, str) for cell in cells):
        names = tuple(sorted(set(cells)))
        number = {name: i for i, name in enumerate(names)}
        return np.array([number[cell] for cell in cells], np.int64), names
    require(
        all(type(cell) is int for cell in cells), f"{source}: {label!r} holds other things than whole numbers or words"
    )
    return np.array(cells, np.int64), _class_names(tables[0].schema, label)


def _texts(tables: list[Table], source: str) -> list[str]:
    """The caption of each row; of a list of several, the first."""
    column = next((name for name in TEXT_COLUMNS if name in tables[0].schema.names), None)
    if column is None:
        found = tables[0].schema.names[:10]
        raise UsageError(f"{source}: data.captions={OWN!r} needs a column 'text' or 'caption', not {found}")
    texts = []
    for table in tables:
        for batch in table.batches(column):
            batch.validate(full=True)
            for cell in batch.column(0).to_pylist():
                text = (cell[0] if cell else None) if isinstance(cell, list) else cell
                kind = type(text).__name__
                require(text is None or isinstance(text, str), f"{source}: {column!r} holds a {kind}; need text")
                texts.append(plain(text))
    return texts


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The names that Hugging Face's libraries write into a schema; empty if it has none."""
    try:
        names = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (ValueError, LookupError, TypeError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()
