"""The three servers that benches compare, each in an environment of its own, and a running one to query. Linux.

    recipe   datasette + datasette-llm-embed + llm-clip, as people run them
    ours     datasette-clip, serving what it baked from the same checkpoint
    bare     Datasette alone, answering `select 1`: the floor

The Makefile makes .venv-recipe, .venv-ours and .venv-bare with nothing else in them, because Datasette loads every
plugin that is installed. This module starts and checks stacks; the benches say what is measured.
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from bench.harness import ROOT
from bench.harness.command import say
from bench.harness.inputs import IMAGES, TEXTS, write_images
from bench.harness.models import RANDOM, bake, checked_cosine, lay_out, write_random
from listening import free_port, listening
from llm_clip_onnx import model_dir

EMBED_DIM = 512  # of clip-ViT-B-32, the one model that llm-clip opens
MORE_TEXTS = TEXTS[-10:]  # not among the texts that are timed


class Query(NamedTuple):
    """A query for one row with the column x. :q differs from one request to the next."""

    database: str
    sql: str
    characters: int  # length of x: datasette-llm-embed returns errors as values, which have another length


@dataclass(frozen=True)
class Stack:
    """A server: how it is started, what it is queried for, and what shows that it is this stack that answers."""

    name: str  # .venv-NAME is its environment
    plugins: set[str]  # what /-/plugins.json must list
    library: str  # a server that has answered must have mapped it; "" for none
    query: Query
    queries: int  # how many are timed
    arguments: tuple[str, ...] = ("--memory",)
    environment: dict[str, str] = field(default_factory=dict)


EMBED_TEXT = Query("_memory", "select hex(llm_embed('clip', :q)) as x", 2 * 4 * EMBED_DIM)
EMBED_IMAGE = Query("images", "select hex(llm_embed('clip', image)) as x from images where id = :q", 2 * 4 * EMBED_DIM)
SELECT_1 = Query("_memory", "select 1 as x", 1)
RECIPE = Stack(
    name="recipe",
    plugins={"datasette-llm-embed"},
    library="libtorch_cpu",
    query=EMBED_TEXT,
    queries=20,
    # Its first query opens the model, and would fail at Datasette's default of 1000 ms.
    arguments=("--memory", "--setting", "sql_time_limit_ms", "100000"),
)
OURS = Stack(
    name="ours",
    plugins={"datasette-block-robots", "datasette-clip", "datasette-llm-embed", "datasette-scale-to-zero"},
    library="onnxruntime",
    query=EMBED_TEXT,
    queries=200,
    arguments=("--memory", "--metadata", str(ROOT / "metadata.json")),
    environment={"CLIP_MODEL_DIR": "model", "OPENBLAS_THREAD_TIMEOUT": "4"},  # as the Dockerfile has it
)
BARE = Stack(name="bare", plugins=set(), library="", query=SELECT_1, queries=200)
STACKS = {stack.name: stack for stack in (RECIPE, OURS, BARE)}
EMBEDDING = (RECIPE, OURS)


def call_of(stack: Stack, place: Path, *arguments: str) -> dict[str, Any]:
    """The arguments of Popen for `python ARGUMENTS` of a stack in the folder `place`, with no hub to wait for.

    The process sees nothing of the caller's environment but PATH. Raises FileNotFoundError if the stack has none.
    """
    python = ROOT / f".venv-{stack.name}/bin/python"
    if not python.exists():
        raise FileNotFoundError(f"there is no .venv-{stack.name}: make .venv-{stack.name}/ready makes it")
    own = {"HOME": str(place), "LLM_USER_PATH": str(place / "llm"), "HF_HUB_OFFLINE": "1"}
    return {
        "args": [str(python), *arguments],
        "cwd": place,
        "env": {"PATH": os.environ["PATH"]} | own | stack.environment,
    }


@dataclass
class Server:
    """A server of `stack` that has answered once: after cold_wall_s and cold_cpu_s."""

    stack: Stack
    process: psutil.Process
    client: httpx.Client
    cold_wall_s: float = 0
    cold_cpu_s: float = 0

    def ask(self, query: Query, q: str | int) -> str:
        """Column x of the answer. Raises RuntimeError if that is not as long as `query` says."""
        response = self.client.get(f"/{query.database}.json", params={"sql": query.sql, "q": q, "_shape": "array"})
        x = str(response.json()[0]["x"]) if response.is_success else ""
        if len(x) != query.characters:
            answer = f"HTTP {response.status_code}: {response.text[:500]}"
            raise RuntimeError(f"{self.stack.name}: {query.sql} for {q!r} answered {answer}")
        return x

    def times_ms(self, query: Query, qs: Sequence[str | int]) -> list[float]:
        """Milliseconds of one request after the other, as the client sees them."""
        times_s = [time.perf_counter()]
        for q in qs:
            self.ask(query, q)
            times_s.append(time.perf_counter())
        return [(end - start) * 1000 for start, end in itertools.pairwise(times_s)]

    def held_mb(self, query: Query, qs: Sequence[str | int]) -> float:
        """Most memory held after any of these requests (PSS): 10^6 bytes, a page counted once however often mapped."""
        return max(self._kilobytes("smaps_rollup", "Pss") for q in qs if self.ask(query, q)) * 1024 / 1e6

    def peak_mb(self) -> float:
        """Peak resident memory (VmHWM): 10^6 bytes, a page counted as often as it is mapped."""
        return self._kilobytes("status", "VmHWM") * 1024 / 1e6

    def _kilobytes(self, file: str, key: str) -> int:
        return int(re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/{file}").read_text(), re.M)[1])


@contextmanager
def served(stack: Stack, place: Path, files: Sequence[str] = ()) -> Iterator[Server]:
    """A new server of database files in `place` that has answered the stack's query once; ended on the way out.

    Raises RuntimeError with the end of its log if it does not start.
    """
    port = free_port()
    arguments = ("-m", "datasette", "serve", *files, *stack.arguments, "--host", "127.0.0.1", "--port", str(port))
    start_s = time.perf_counter()
    with (
        listening(**call_of(stack, place, *arguments), port=port, log=place / f"{stack.name}.log") as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):
        server = Server(stack, psutil.Process(process.pid), client)
        server.ask(stack.query, TEXTS[0])
        server.cold_wall_s = time.perf_counter() - start_s
        server.cold_cpu_s = sum(server.process.cpu_times()[:4])  # user and system, its own and its children's
        yield server


def embeddings_of(stack: Stack, place: Path) -> NDArray[np.float32]:
    """Start a stack, check that no other one answers, and return its embeddings of MORE_TEXTS and IMAGES: [30, 512].

    `bare` gives [0, 512]. Raises RuntimeError if the server has other plugins or libraries.
    """
    with served(stack, place, ("images.db",)) as server:
        plugins = {plugin["name"] for plugin in server.client.get("/-/plugins.json").json()}
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        libraries = {other.library for other in EMBEDDING if other.library in mapped}
        if plugins != stack.plugins or libraries != {stack.library} - {""}:
            raise RuntimeError(f"{stack.name} answers with plugins {plugins} and libraries {libraries}")
        answers = []
        if stack in EMBEDDING:
            answers += [server.ask(EMBED_TEXT, text) for text in MORE_TEXTS]
            answers += [server.ask(EMBED_IMAGE, number) for number in IMAGES]
        return np.frombuffer(bytes.fromhex("".join(answers)), "<f4").reshape(-1, EMBED_DIM)


def prepare(place: Path, checkpoint: Path | None = None) -> dict[str, Any]:
    """Make everything that the stacks need in the folder `place`, check the stacks, and describe the model.

    Raises RuntimeError if they do not serve one model.
    """
    name = checkpoint.name if checkpoint else RANDOM
    checkpoint = checkpoint or write_random(place / "checkpoint")
    start_s = time.perf_counter()
    bake(checkpoint, place / "model")
    wall_s, used = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    towers = model_dir.read_manifest(place / "model").towers
    lay_out(checkpoint, place)
    write_images(place / "images.db")
    embeddings = {}
    for stack in STACKS.values():
        say(f"check: {stack.name}")
        embeddings[stack.name] = embeddings_of(stack, place)
    return {
        "checkpoint": name,
        "bake_wall_s": wall_s,
        "bake_peak_mb": used.ru_maxrss * 1024 / 1e6,  # the largest child so far: the bake
        "precision": {name: tower.precision for name, tower in towers.items()},
        "worst_cosine": checked_cosine(embeddings["recipe"], embeddings["ours"]),
    }
