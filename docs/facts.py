"""Markdown for the facts that the code knows; cog writes it into the pages of this manual and into README.

    make docs-write     writes it anew
    make docs           fails if a page is stale, and builds the manual

Names and defaults come from the code. The sentences about them stand here; a name without a sentence, or a sentence
without a name, raises ValueError.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent

LIMITS = {
    "datasette_guard": {
        "requests": ("requests in flight at once", "503, `Retry-After: 1`"),
        "queries": ("requests at once that may run SQL", "the others wait"),
        "url_bytes": ("the query string", "414"),
        "fields": ("fields in the query string", "400"),
        "sql_bytes": ("`sql` or a `_where` in the query string", "400"),
        "body_bytes": ("the body of a request", "413"),
        "receiving_bytes": ("the bodies of all requests in flight", "503, `Retry-After: 1`"),
        "value_bytes": ("one value in SQL, an image too", "400 `string or blob too big`"),
        "result_bytes": ("memory of the rows of a query, table pages too", "400"),
        "sqlite_bytes": (
            "all of SQLite's memory; if it is set, SQLite sorts in memory",
            "400, or 503 beside other queries",
        ),
        "sending_bytes": ("all answers that are being sent", "503, `Retry-After: 1`; 400 if one answer is larger"),
        "stalled_s": ("seconds in which a client neither sends nor reads", "the connection is closed"),
    },
    "datasette_clip": {
        "embedding": ("requests at once to endpoints and pages that embed", "503, `Retry-After: 1`"),
        "items": ("texts and images in one request", "400"),
        "inputs": ("texts in one request to `/v1/embeddings`", "400"),
        "prompts": ("labels times templates in one request", "400, from SQL too"),
        "text_bytes": ("one text", "400; from SQL with the sentence in the log"),
        "models_bytes": (
            "files of the open towers of [several models](#several-models)",
            "the towers of the least recently used model are closed",
        ),
    },
}
SQL_FUNCTIONS = {
    "llm_embed(model, text)": "the embedding of a text, as a vector blob",
    "llm_embed(model, image)": "the embedding of an image, given as a BLOB in [a format that is read](formats.md)",
    "llm_embed_cosine(a, b)": "the cosine of two vector blobs, -1 to 1",
    "llm_embed_decode(a)": "a vector blob as a JSON list of numbers",
    "llm_embed_average(a)": "aggregate: the mean of vector blobs; NULLs are ignored",
    "clip_image(text)": "the image bytes in a string of base64url, base64 or hex digits, or in a data URI",
    "clip_similarity(a, b)": "the cosine of any two of texts, images and vector blobs, -1 to 1",
    "clip_similarity(a, b, model)": "the same by another model than the default one",
    "clip_classify(image, labels)": "JSON: the 5 labels that fit an image or a vector blob best, "
    '`[{"label", "probability", "cosine"}...]`',
    "clip_classify(image, labels, k)": "the same, k labels",
    "clip_classify(image, labels, k, model)": "the same by another model than the default one",
    "clip_search(collection, query)": "JSON: the 20 rows of a [collection](search-collections.md) most like a query, "
    '`[{"id", "score", "rowid"}...]`',
    "clip_search(collection, query, k)": "the same, k rows",
    "clip_search(collection, query, k, model)": "the same, the query embedded by another model than the collection's, "
    "whose vectors can be compared with them",
}
URLS = {
    "/-/clip": "[page](pages.md#about): the model, whether it is ready, its fidelity, how to call it",
    "/-/clip.json": "the same as JSON",
    "/-/clip/health": "200 if the model is ready, else 503 and the reason; does not keep the server awake",
    "/-/clip/embed.json": "the embeddings of the texts and images that are sent, by POST or GET",
    "/-/clip/classify.json": "the labels that fit each image best, by POST or GET",
    "/-/clip/v/SHA256/text.FORM": "the embedding of the text `q`, [for caches](#for-caches); FORM is json, npy or f32",
    "/v1/embeddings": "the embeddings of texts in [OpenAI's form](openai.md), by POST",
    "/v1/models": "the models, in OpenAI's form",
    "/v1/models/MODEL": "one of them",
    "/-/clip/classify": "[page](pages.md#classify): choose an image and see which labels fit it best",
    "/-/clip/compare": "[page](pages.md#compare): a heat map of texts and images",
    "/-/clip/search": "[page](pages.md#search): the collections that can be searched",
    "/-/clip/search/DATABASE/COLLECTION": "[page](pages.md#search): search a collection while you type",
    "/-/clip/search/DATABASE/COLLECTION.json": "the rows most like [a query](search-collections.md#as-json)",
    "/-/clip/view/DATABASE/COLLECTION": "[page](pages.md#viewer): the row with the given `id`, large",
    "/-/clip/thumbnail/DATABASE/COLLECTION": "the thumbnail of the row with the given `id`",
    "/-/clip/original/DATABASE/COLLECTION": "[the large picture](#pictures) of the row with the given `id`",
}
ROW_FORMATS = {
    "CSV": "lines of cells, the first line the names of columns, below comments (`# ...`); delimiter {delimiters}, "
    "told from the lines, or any by `--delimiter`",
    "JSON": "a list of objects, one object, or an answer of Datasette in any `_shape` that has names or ids",
    "JSONL": "an object on each line",
}
TEXT_TOWER = "bake.md#a-text-tower-for-vectors-that-exist-already"
CHECKPOINT_FILES = {
    "config.json": "the shapes of both towers; `text_config_dict` and `vision_config_dict` win, with their defaults",
    "tokenizer_config.json": "the named tokens, added tokens, and the limit on length",
    "tokenizer.json": "vocabulary, merges, added tokens and limits; wins over `vocab.json` and `merges.txt`",
    "added_tokens.json": "added tokens, unless `tokenizer_config.json` has `added_tokens_decoder`",
    "special_tokens_map.json": "the same; its named tokens win over those of `tokenizer_config.json`",
    "preprocessor_config.json": "the steps from an image to pixels",
    "processor_config.json": "the same, in `image_processor`, which wins over `preprocessor_config.json`",
    "modules.json": f"sentence-transformers' layout: one module, a CLIP; or three, a [text tower]({TEXT_TOWER})",
    "sentence_bert_config.json": "`max_seq_length` wins over `model_max_length`; only beside `modules.json`",
    "config_sentence_transformers.json": "only beside `modules.json`; a default prompt must be empty",
}
BUILD_ARGUMENTS = {
    "CLIP_MODEL": "an id of the [catalogue](models.md), a hub id, or a folder: `demo/checkpoint`, or yours in "
    "`deploy/checkpoints/`",
    "CLIP_MODELS": "several of them, with spaces, in place of `CLIP_MODEL`: `clip multilingual`",
    "CLIP_REVISION": "a branch, tag or commit of the model, if it is one",
    "CLIP_IMAGES": f"where `CLIP_MODEL` is a [text tower alone]({TEXT_TOWER}): the checkpoint of its images",
    "CLIP_IMAGES_REVISION": "a branch, tag or commit of `CLIP_IMAGES` on the hub",
    "CLIP_PRECISION": "as [the bake](bake.md#precision) has it",
    "LABELS": "[label sets](label-sets.md), with spaces: `imagenet`, `demo/emoji.txt`, files in `deploy/labels/`; "
    "of several models only `clip` gets `imagenet`, and those that are named: `imagenet@datacomp-b32-256`",
    "VERIFY": "`0` skips the comparison with another library, and the download of torch for it",
    "REFERENCE": "that library: `llm-clip`, `sentence-transformers`, `open_clip`, `transformers`, or `own`, which the "
    "model is for",
    "HF_ENDPOINT": "a mirror of the hub",
    "SLEEP_AFTER": "the idle time after which the server [exits](#sleep); empty: never",
    "TORCH": "what pip installs for the comparison",
    "PY": "the Python of the base image",
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def described(names: Iterable[str], sentences: Mapping[str, object], what: str) -> None:
    """Raises ValueError unless there is exactly one sentence for each name."""
    if different := set(names) ^ set(sentences):
        raise ValueError(f"{what}: {', '.join(sorted(different))}: the code and docs/facts.py do not agree")


def limits(package: str) -> str:
    """The limits of datasette_clip or datasette_guard with their defaults."""
    module = __import__(f"{package}.config", fromlist=["Limits"])
    defaults = dataclasses.asdict(module.Limits())
    described(defaults, LIMITS[package], "limits")
    rows = [
        [f"`{name}`", str(default) if default else "0, no limit", *LIMITS[package][name]]
        for name, default in defaults.items()
    ]
    return table(["limit", "default", "of", "answer over it"], rows)


def sql_signatures() -> set[str]:
    """The SQL functions that a connection has more than a plain one, as name/number of arguments."""
    from datasette.app import Datasette
    from datasette.plugins import pm

    def signatures(connection: sqlite3.Connection) -> set[str]:
        return {f"{name}/{count}" for name, count in connection.execute("select name, narg from pragma_function_list")}

    plain, ours = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
    pm.get_plugin("datasette_clip").prepare_connection(conn=ours, database="_memory", datasette=Datasette(memory=True))
    return signatures(ours) - signatures(plain)


def sql_functions() -> str:
    shown = {f"{call.partition('(')[0]}/{call.count(',') + 1}": "" for call in SQL_FUNCTIONS}
    described(sql_signatures(), shown, "SQL functions")
    return table(["function", "returns"], ([f"`{call}`", returns] for call, returns in SQL_FUNCTIONS.items()))


def url_of(pattern: str) -> str:
    """The URL of a route's pattern, with its named groups in capitals."""
    named = re.sub(r"\(\?P<(\w+)>[^)]*\)", lambda match: match[1].upper(), pattern)
    return named.strip("^$").replace("\\", "")


def urls() -> str:
    from datasette_clip import register_routes
    from datasette_clip.paths import STATIC

    routes = (url_of(pattern) for pattern, _ in register_routes())
    described((url for url in routes if not url.startswith(STATIC)), URLS, "URLs")
    return table(["URL", "answers"], ([f"`{url}`", answers] for url, answers in URLS.items()))


def help(command: str) -> str:
    """The --help text of `llm clip COMMAND`."""
    import clip_collections
    import llm_clip_onnx

    found: click.Command = click.Group("llm")
    llm_clip_onnx.register_commands(cli=found)
    clip_collections.register_commands(cli=found)
    for name in ["clip", *command.split()]:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    context = click.Context(found, info_name=f"llm clip {command}", terminal_width=80, max_content_width=80)
    return f"```\n{found.get_help(context)}\n```\n"


def models() -> str:
    """The catalogue, with the cells that `llm clip models` prints, and what its columns mean."""
    from llm_clip_onnx.catalogue import CATALOGUE, published_lines

    rows = [entry.cells() for entry in CATALOGUE]
    cells = ([f"`{row['id']}`", *[*row.values()][1:]] for row in rows)
    return table(rows[0], cells) + "\n" + "".join(f"- {line}\n" for line in published_lines())


def machines() -> str:
    """The smallest machine for a server of each model of the catalogue, for texts and with images too."""
    from llm_clip_onnx.catalogue import CATALOGUE
    from llm_clip_onnx.measured import figures, machine

    rows = []
    for id in (entry.id for entry in CATALOGUE):
        found = figures().get(id)
        mb = (found.text_mb, found.peak_mb) if found else ()
        rows.append([f"`{id}`", *(f"{peak:.0f} MB: {machine(peak)}" for peak in mb), *[""] * (2 - len(mb))])
    return table(["model", "texts", "texts and images"], rows) + siglip_price()


def siglip_price() -> str:
    """What a text costs by SigLIP 2, beside `clip`; nothing where one of them was not measured."""
    from llm_clip_onnx.measured import figures

    clip, siglip = (figures().get(id) for id in ("clip", "siglip2-b32-256"))
    if not clip or not siglip:
        return ""
    return (
        f"\nA text by `siglip2-b32-256` takes {siglip.text_ms:.1f} ms where one by `clip` takes {clip.text_ms:.1f}, "
        f"and a server for texts {siglip.text_mb:.0f} MB where it takes {clip.text_mb:.0f}.\n"
    )


def row_files() -> str:
    """The files of rows that `llm clip embed` reads, by what their content begins as."""
    from clip_collections.file_format import DELIMITERS, SUFFIXES

    described(SUFFIXES.values(), ROW_FORMATS, "formats of rows")
    suffixes = {kind: ", ".join(f"`{end}`" for end, of in SUFFIXES.items() if of == kind) for kind in ROW_FORMATS}
    delimiters = ", ".join(DELIMITERS.values())
    rows = ([kind, suffixes[kind], told.format(delimiters=delimiters)] for kind, told in ROW_FORMATS.items())
    return table(["format", "usual suffix", "what is read"], rows)


def not_looked_at() -> str:
    """What `llm clip embed` leaves out of a folder."""
    from clip_collections.folder import EXCLUDED, RAW

    patterns = ", ".join(f"`{pattern}`" for pattern in EXCLUDED)
    raw = ", ".join(f"`{suffix}`" for suffix in RAW)
    rows = [
        ["a file that neither begins as an image nor is named as one", "counted by suffix"],
        [f"a raw photo of a camera: {raw}", "counted by suffix"],
        ["a pipe, a socket, a device", "counted"],
        [f"hidden files, thumbnails and trash of other systems: {patterns}", "counted by pattern"],
        ["what `--exclude` names", "counted by pattern"],
        ["a link to a folder", "counted and named, not followed"],
        ["a file or folder that cannot be read, a broken link", "named with the reason; status 1"],
        ["a file that is named or begins as an image and cannot be decoded", "named with the reason; status 1"],
    ]
    return table(["left out of a folder", "how it is said"], rows)


def crawlers() -> str:
    from datasette_guard.crawlers import REFUSED, TAGS

    others = ", ".join(f"`{tag}`" for tag in TAGS if tag not in REFUSED)
    return f"The default is `{json.dumps(list(REFUSED))}`. The other tags are {others}.\n"


def gates() -> str:
    """What the towers of a bake must reach."""
    from llm_clip_onnx.bake import fidelity, samples

    rows = [
        ["float32 tower with a forward pass in plain numpy, plain and centred", str(fidelity.FLOAT32_MINIMUM)],
        *(
            [f"8-bit {name} tower with the float32 one, centred", str(minimum)]
            for name, minimum in fidelity.INT8_MINIMUM.items()
        ),
    ]
    inputs = f"{len(samples.TEXTS)} texts and {len(samples.made_images())} images made in code"
    others = f"{len(samples.CALIBRATION_TEXTS)} texts and {len(samples.calibration_images())} images"
    return (
        table(["compared", "minimum cosine"], rows)
        + f"\nThe inputs are {inputs}. The rewriting of layers, below, uses {others} of its own.\n"
    )


def formats() -> str:
    """The image formats that are read."""
    from llm_clip_onnx.images.signatures import FORMATS

    rows = [
        [known.name, ", ".join(f"`{suffix}`" for suffix in known.suffixes), f"`{known.extra}`" if known.extra else ""]
        for known in FORMATS.values()
    ]
    return table(["format", "suffixes", "extra"], rows)


def image_limits() -> str:
    """Megapixels of each kind of image on a server and by a command."""
    from llm_clip_onnx.images import heic, limits, tiff

    def megapixels(number: float) -> str:
        return f"{number / 1e6:.1f}".removesuffix(".0")

    def fits(bytes_per_pixel: float, other_bytes: float = 0) -> str:
        return megapixels(min((limits.IMAGE_BYTES - other_bytes) / bytes_per_pixel, limits.SERVER.pixels))

    whole, scaled = limits.FRAME_BYTES, 4 / 8**2
    server = {
        "JPEG, PNG, GIF, BMP": megapixels(limits.SERVER.pixels),
        "JPEG, progressive": f"{megapixels(whole / (3 + scaled))}, at 4:4:4 {megapixels(whole / (6 + scaled))}",
        "PNG with transparency": megapixels(limits.MAX_RGBA_PIXELS),
        "PNG, interlaced": megapixels(limits.INTERLACED_BYTES / 4),
        "BMP, run-length coded": megapixels(limits.MAX_RUN_LENGTH),
        "WebP": f"{megapixels(limits.MAX_PIXELS_BY_FORMAT['WEBP'])}, of at most {megapixels(limits.MAX_WEBP_BYTES)} MB",
        "AVIF": megapixels(limits.MAX_PIXELS_BY_FORMAT["AVIF"]),
        "TIFF in colour, in strips": f"{fits(4, tiff.STRIPS_BYTES)}, less one for each 4 MB of the file",
        "TIFF in grey, in strips": fits(1, tiff.STRIPS_BYTES),
        "HEIC in tiles, as phones write it": f"{fits(heic.TILED)}, of 2 MB {fits(heic.TILED, 2e6)}",
        "HEIC in one piece": fits(heic.WHOLE),
        "HEIC with transparency": fits(heic.ALPHA),
        "HEIC of 10 bits": fits(heic.DEEP),
    }
    command = megapixels(limits.OWN_MACHINE.pixels)
    return table(
        ["megapixels of", "on a server", "by a command"], ([kind, most, command] for kind, most in server.items())
    )


def named() -> str:
    """What is no image and is told by its first bytes, and what to do about it."""
    from llm_clip_onnx.images import signatures

    texts = ("an HTML page", "an SVG drawing", "XML", "JSON", "a data URI", "text", "text in UTF-16")
    names = dict.fromkeys([*signatures.FOUND, *signatures.BRANDS, "an MP4 film", *texts, "binary data"])
    return table(["found", "what to do"], ([name, signatures.ADVICE.get(name, "")] for name in names))


def checkpoint_files() -> str:
    """The files of a checkpoint beside its weights, and the keys that are refused."""
    from llm_clip_onnx.bake import keys

    described(keys.FOLLOWED, CHECKPOINT_FILES, "files of a checkpoint")
    rows = [[f"`{file}`", told, refused_keys(keys.REFUSED.get(file, {}))] for file, told in CHECKPOINT_FILES.items()]
    return table(["file", "holds", "refused, unless it has the value in brackets"], rows)


def refused_keys(refused: Mapping[str, tuple]) -> str:
    values = {key: [json.dumps(value) for value in allowed if value is not None] for key, allowed in refused.items()}
    shown = {key: [value for value in found if len(value) < 30] for key, found in values.items()}
    return ", ".join(f"`{key}`" + (f" (`{'`, `'.join(found)}`)" if found else "") for key, found in shown.items())


def other_weights() -> str:
    """The weights that are named and not read."""
    from llm_clip_onnx.bake.layout import OTHER_WEIGHTS

    return table(["weights", "what the refusal says"], ([f"`{name}`", told] for name, told in OTHER_WEIGHTS.items()))


def build_arguments() -> str:
    dockerfile = (ROOT / "Dockerfile").read_text()
    defaults = dict.fromkeys(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE), "")
    defaults |= dict(re.findall(r"^ARG (\w+)=(.*)$", dockerfile, re.MULTILINE))
    described(defaults, BUILD_ARGUMENTS, "build arguments")
    rows = (
        [f"`{name}`", f"`{defaults[name]}`" if defaults[name] else "", told] for name, told in BUILD_ARGUMENTS.items()
    )
    return table(["build argument", "default", "means"], rows)


def metadata() -> str:
    return f"```json\n{(ROOT / 'metadata.json').read_text().strip()}\n```\n"


def results(name: str) -> dict:
    """The kept results of a bench. Raises KeyError if there are none."""
    from bench.harness import tables

    return {name: kept for room in tables.ROOMS for name, kept in tables.results_of(room).items()}[name]


def bench(name: str, figure: str = "") -> str:
    """The table of a bench; of one figure alone, if its first words are given."""
    from bench.harness import tables
    from bench.search import search

    found = results(name)
    if name == "search":
        return f"{search.brief(found)}\n\nMedians of a busy machine: {origin(name)}.\n"
    lines = tables.table_of(name, found).splitlines()
    if figure:
        lines = [lines[0], *(line for line in lines if line.startswith(figure)), "", lines[-1]]
    return "\n".join(["```", *lines, "```\n"])


def origin(bench: str) -> str:
    """Command, date and machine of the results of a bench, for the end of a sentence."""
    found = results(bench)
    machine = found["machine"]
    cpu = f"{machine['cores']} cores, {machine['cpu']} ({machine['cpu_flags']})"
    return f"`{found['command']}`, {found['date'][:10]}, {cpu}"


def scan() -> str:
    found = results("scan")
    ours, theirs = found["medians"]["ours_ms"], found["medians"]["theirs_ms"]
    return (
        f"Over {found['rows']:,} rows it takes {ours:.0f} ms of Datasette's limit of a second; with "
        f"datasette-llm-embed's function it takes {theirs:.0f} ms ({origin('scan')}).\n"
    )


def beside_the_recipe() -> str:
    """Six rows of the recipe's stack beside this project."""
    found, crowd = results("recipe"), results("crowd")
    recipe, ours = (found["medians"][name] for name in ("recipe", "ours"))
    many = {name: crowd["medians"][name]["all_per_s"] for name in ("recipe", "ours")}
    rows = [
        ["the model", "loaded again for every SQL query", "opened once"],
        ["new text over HTTP, ms", f"{recipe['query_p50_ms']:.0f}", f"{ours['query_p50_ms']:.1f}"],
        [f"{crowd['clients']} clients, answers a second", f"{many['recipe']:.1f}", f"{many['ours']:.0f}"],
        ["cold start to the first embedding, s", f"{recipe['cold_wall_s']:.1f}", f"{ours['cold_wall_s']:.2f}"],
        ["peak memory with images, MB", f"{recipe['image_peak_mb']:.0f}", f"{ours['image_peak_mb']:.0f}"],
        ["an error in SQL", "returns its text as if it were a vector", "raises: HTTP 400"],
    ]
    told = (
        f"Medians of {len(found['pairs'])} pairs with {found['checkpoint']}: {origin('recipe')}; clients: "
        f"`{crowd['command']}`."
    )
    return table(["", "the stack today", "datasette-clip"], rows) + f"\n{told}\n"
