"""Opens a collection: finds the table, the columns and the model of its vectors.

A collection is one that `llm embed-multi` has written, or any table with a column of vector blobs that the
configuration names.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from llm_clip_onnx.errors import ConfigError, InputError, VectorError, cited, shortened

from .condition import expression

Id = str | int
SAMPLE_VECTORS = 100  # a collection has the size of most of its first vectors


@dataclass(frozen=True)
class Collection:
    """A collection by the unquoted names of its table and columns. A column that it does not have is None.

    model: id of the model that made the vectors, None if unknown. condition: SQL that selects the rows of this
    collection, "" for all. image: a column of image bytes. url: a template of an image's URL, with {id} or {column}.
    embed_dim: of most of its first vectors, None if it has none. orient: how its images were read, see
    Engine.embed_images; images that are compared with them are read so too.
    """

    name: str
    model: str | None
    table: str
    key: str
    vector: str
    condition: str = ""
    content: str | None = None
    metadata: str | None = None
    image: str | None = None
    url: str | None = None
    embed_dim: int | None = None
    orient: str | None = None


def quoted(name: str) -> str:
    """The name of a table or a column as quoted SQL."""
    return '"' + name.replace('"', '""') + '"'


def rows(conn: Connection, sql: str, parameters: Any = ()) -> list[tuple]:
    """The rows of a query as tuples, with any row factory of the connection."""
    return cursor_of(conn).execute(sql, parameters).fetchall()


def cursor_of(conn: Connection) -> Any:
    """A cursor whose rows are tuples. The connection's row factory is not used, so it does not count their bytes."""
    cursor = conn.cursor()
    cursor.row_factory = None
    return cursor


def columns_of(conn: Connection, table: str) -> dict[str, int]:
    """The columns of a table and their positions in the primary key, 0 for none; {} if there is no such table.

    Tables are those of the connection's own database, here and everywhere else: one that --crossdb attaches may be
    private where this one is not.
    """
    return dict(rows(conn, "select name, pk from pragma_table_info(?, 'main') order by cid", [table]))


def quoted_key(collection: Collection) -> str:
    """The column of ids as SQL."""
    return "rowid" if collection.key == "rowid" else quoted(collection.key)


def from_clause(collection: Collection, where: str = "", *more: str, hint: str = "") -> str:
    """SQL `from ... where ...` for the collection's rows for which `where` and `more` hold. hint: follows the table."""
    conditions = [condition for condition in (collection.condition, *more, expression(where)) if condition]
    return f"from main.{quoted(collection.table)}{hint}" + (" where " + " and ".join(conditions) if conditions else "")


def is_vector(value: Any, size: int) -> bool:
    """True if a value is a vector blob of `size` bytes."""
    return type(value) in (bytes, memoryview) and len(value) == size


def has_llm_tables(conn: Connection) -> bool:
    """True if a database has the tables that llm makes."""
    return {"id", "name", "model"} <= columns_of(conn, "collections").keys() and {
        "collection_id",
        "id",
        "embedding",
    } <= columns_of(conn, "embeddings").keys()


def llm_collection_names(conn: Connection) -> list[str]:
    """The names of llm's collections, oldest first; [] if a database has none."""
    if not has_llm_tables(conn):
        return []
    sql = "select name from main.collections where typeof(name) = 'text' and name <> '' order by id"
    return [name for (name,) in rows(conn, sql)]


def open_collection(conn: Connection, name: str) -> Collection:
    """The collection of llm's with this name. Raises InputError if there is none."""
    sql = "select id, model from main.collections where name = ?"
    matches = rows(conn, sql, [name]) if has_llm_tables(conn) else []
    if not matches:
        names = llm_collection_names(conn)
        existing = f"there are {', '.join(map(cited, names))}" if names else "there are none"
        raise InputError(f"there is no collection {cited(name)}; {existing}")
    columns = columns_of(conn, "embeddings")
    if not isinstance(matches[0][0], int) or not has_rowids(conn, "embeddings"):
        raise InputError(
            f"collection {cited(name)} is in tables that are not as llm writes them; configure it as a table"
        )
    condition = f"collection_id = {matches[0][0]}"
    return Collection(
        name=name,
        model=matches[0][1],
        table="embeddings",
        key="id",
        vector="embedding",
        condition=condition,
        content="content" if "content" in columns else None,
        metadata="metadata" if "metadata" in columns else None,
        image="content_blob" if "content_blob" in columns else None,
        embed_dim=embed_dim_of(conn, "embeddings", "embedding", condition),
        orient=orient_of(conn, matches[0][0]),
    )


def orient_of(conn: Connection, collection_id: int) -> str | None:
    """How the images of a collection of llm's were read; None, as llm-clip does, if that is not written down."""
    if "orient" not in columns_of(conn, "clip_collection_facts"):
        return None
    facts = rows(conn, "select orient from main.clip_collection_facts where collection_id = ?", [collection_id])
    return "exif" if facts == [("exif",)] else None


def table_collection(conn: Connection, name: str, settings: Mapping[str, Any]) -> Collection:
    """A collection in any table, by its configuration.

    settings: table and vector; optionally id, image or image_url, content, metadata and model. The default of id is the
    primary key, or rowid. Raises ConfigError naming a setting that is missing, unknown or not in the database.
    """
    owner = f"collection {cited(name)}"
    known = ("table", "vector", "id", "image", "image_url", "content", "metadata", "model")
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(f"{owner} has {cited(key)}; expected {', '.join(known)}")
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{key} of {owner} is {cited(value)}; expected a text that is not empty")
    for key in ("table", "vector"):
        if key not in settings:
            expected = "column of vectors" if key == "vector" else key
            raise ConfigError(f"{owner} has no {cited(key)}; expected the name of its {expected}")
    if "image" in settings and "image_url" in settings:
        raise ConfigError(f"{owner} has image and image_url; expected one of them")
    table = settings["table"]
    columns = columns_of(conn, table)
    if not columns or not rows(conn, "select 1 from main.sqlite_master where type = 'table' and name = ?", [table]):
        raise ConfigError(f"table of {owner} is {cited(table)}; the database has no such table")
    if not has_rowids(conn, table):
        raise ConfigError(f"table of {owner} is {cited(table)}, which is WITHOUT ROWID; expected one with rowids")
    key = settings.get("id") or key_of(columns)
    for setting in ("id", "vector", "image", "content", "metadata"):
        column = settings.get(setting)
        if column is not None and column not in columns and (setting, column) != ("id", "rowid"):
            raise ConfigError(
                f"{setting} of {owner} is {cited(column)}; table {cited(table)} has the columns "
                + ", ".join(map(shortened, columns))
            )
    if "image_url" in settings:
        check_url(settings["image_url"], columns, owner, table)
    return Collection(
        name=name,
        model=settings.get("model"),
        table=table,
        key=key,
        vector=settings["vector"],
        content=settings.get("content"),
        metadata=settings.get("metadata"),
        image=settings.get("image"),
        url=settings.get("image_url"),
        embed_dim=embed_dim_of(conn, table, settings["vector"]),
    )


def has_rowids(conn: Connection, table: str) -> bool:
    """True if there is a table of this name that has rowids: neither a view nor WITHOUT ROWID."""
    sql = "select 1 from pragma_table_list where schema = 'main' and name = ? and type = 'table' and wr = 0"
    return bool(rows(conn, sql, [table]))


def key_of(columns: Mapping[str, int]) -> str:
    """The column that is a table's primary key; rowid if it has none, or one of several columns."""
    keys = [name for name, position in columns.items() if position]
    return keys[0] if len(keys) == 1 else "rowid"


def check_url(url: str, columns: Mapping[str, int], owner: str, table: str) -> None:
    """Raises ConfigError for a URL template without a placeholder, or with one that is not a column."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(url) if name is not None]
    except ValueError as error:
        raise ConfigError(f"image_url of {owner} is {cited(url)}: {shortened(error)}") from error
    if not names:
        raise ConfigError(f"image_url of {owner} is {cited(url)}; expected {{id}} or a {{column}} in it")
    for name in names:
        if name != "id" and name not in columns:
            raise ConfigError(
                f"image_url of {owner} has {{{shortened(name)}}}; expected {{id}} or a column of {cited(table)}: "
                + ", ".join(map(shortened, columns))
            )


def embed_dim_of(conn: Connection, table: str, vector: str, condition: str = "") -> int | None:
    """The dimensions of most of a table's first vectors; None if it has none."""
    where = f"typeof({quoted(vector)}) = 'blob' and length({quoted(vector)}) > 0" + (
        f" and {condition}" if condition else ""
    )
    sizes = rows(
        conn,
        f"select size from (select length({quoted(vector)}) as size from main.{quoted(table)} where {where} "
        f"limit {SAMPLE_VECTORS}) where size % 4 = 0 group by size order by count(*) desc, size limit 1",
    )
    return sizes[0][0] // 4 if sizes else None


def incomparable(name: str, own: str, asked: str) -> str:
    """The sentence about a model that may not embed queries for a collection of another."""
    return (
        f"collection {cited(name)} holds vectors of model {cited(own)}, and {cited(asked)} is asked, whose vectors "
        "cannot be compared with them"
    )


def check_model(collection: Collection, model_id: str, embed_dim: int) -> None:
    """Raises InputError if another model made the vectors, VectorError if they have another size.

    A collection whose model is unknown passes the first check.
    """
    if collection.model is not None and collection.model != model_id:
        raise InputError(
            f"collection {cited(collection.name)} holds vectors of model {cited(collection.model)}, and "
            f"{cited(model_id)} is asked; "
            "both vectors must come from one model"
        )
    if collection.embed_dim is not None and collection.embed_dim != embed_dim:
        raise VectorError(
            f"collection {cited(collection.name)} holds vectors of {collection.embed_dim} dimensions, and "
            f"{embed_dim} are asked; both vectors must come from one model"
        )
