"""Measures embedding beside the libraries people would pick instead, on one checkpoint, and the bound of the memory.

    python -m bench.embedding.peers [--checkpoint FOLDER] [--only TEXT ...] [--rounds 10] [--starts 3] [--to FILE]

The peers are in embedders.py. Each has a process of its own that stays up and takes turns with the others; before the
turns each is started `--starts` times. A figure is the median over all requests. The time of an embedding counts from
the text, or the bytes of a 640x480 JPEG, to its numbers, as seen in the peer's process; no text is sent twice.
The first two of each turn do not count, because the other peers had the caches before. Every peer runs with the threads
it takes by itself. CPU seconds are those of all its processes, memory is VmHWM of the largest. A peer that cannot run
stays in the table with its error. Cosines are to sentence-transformers, the lowest over all that were checked.

The bound: for each text the text tower must read all its weights once, and one row an id of the tables of tokens and
positions. The least time for that is measured by reading a large array. --only takes parts of peers' names. Not
measured: many clients.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from numpy.typing import NDArray

from bench.embedding.embedders import OURS, PEERS, Peer, text_graph
from bench.harness import ROOT
from bench.harness.child import Child, child
from bench.harness.command import Results, main, say, source_line
from bench.harness.inputs import COLOURS, IMAGES, THINGS, smooth_jpegs
from bench.harness.models import RANDOM, lay_out, worst_cosine, write_random
from bench.harness.turns import Titles, turns
from llm_clip_onnx import model_dir
from llm_clip_onnx.tokenizer import open_tokenizer, tokenize

PLACES = "today|outside|at home|at work|at night|in spring|in summer|in winter|on grass|on sand|on a wall|by the sea"
TEXTS = [" ".join(words) for words in itertools.product(COLOURS, THINGS, PLACES.split("|"))]  # 768, of 5 to 7 ids
np.random.default_rng(0).shuffle(TEXTS)
FIRST, CHECKED = TEXTS[0], TEXTS[1:11]
WARM, TEXTS_A_TURN, IMAGES_A_TURN = 2, 10, 4
BUILD_LIMIT_S = 900
REFERENCE = "sentence-transformers"
LEAST_COSINE = 0.98
LENGTHS = (2, 4, 7, 16, 32, 77)  # ids, <|startoftext|> and <|endoftext|> included
SHOWN_LENGTHS = (2, 16, 77)  # in the table, beside 7

COLUMNS: Titles = {
    "text_ms": ("text, ms", 1),
    "image_ms": ("image, ms", 1),
    "start_s": ("start, s", 2),
    "start_cpu_s": ("of CPU, s", 2),
    "text_peak_mb": ("texts, MB", 0),
    "peak_mb": ("and images", 0),
    "text_cosine": ("cosine", 4),
    "image_cosine": ("of images", 4),
}


@dataclass
class Running:
    """A peer's running process."""

    peer: Peer
    child: Child

    def processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.child.process.pid)
        return [one for one in (first, *first.children(recursive=True)) if one.status() != psutil.STATUS_ZOMBIE]

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:4]) for process in self.processes())

    def peak_mb(self) -> float:
        """Peak resident memory of its largest process, in 10^6 bytes."""
        status = [Path(f"/proc/{process.pid}/status").read_text() for process in self.processes()]
        return max(int(text.split("VmHWM:")[1].split()[0]) for text in status) * 1024 / 1e6


def python_of(peer: Peer) -> str:
    """The Python of the peer's environment, or this one if that was not made."""
    own = ROOT / peer.environment / "bin" / "python"
    return str(own) if peer.environment and own.exists() else sys.executable


def command(peer: Peer, act: str, place: Path) -> list[str]:
    return [python_of(peer), "-m", peer.module, act, peer.name, str(place)]


def build(peer: Peer, place: Path) -> None:
    """Write the files that a peer reads. Raises RuntimeError with the last line of its output."""
    output = {"capture_output": True, "text": True}
    done = subprocess.run(command(peer, "build", place), cwd=ROOT, timeout=BUILD_LIMIT_S, **output)
    if done.returncode:
        raise RuntimeError(f"{(done.stderr.strip().splitlines() or ['no output'])[-1]}")


@contextmanager
def started(peer: Peer, place: Path) -> Iterator[Running]:
    """A peer's process, ended on the way out together with all that it started."""
    descendants: list[psutil.Process] = []
    try:
        with child(command(peer, "serve", place), place / f"{peer.name}.log") as process:
            running = Running(peer, process)
            try:
                yield running
            finally:
                descendants += running.processes()[1:] if process.process.poll() is None else []
    finally:
        for descendant in descendants:
            if descendant.is_running():
                descendant.terminate()
        for descendant in psutil.wait_procs(descendants, 10)[1]:
            descendant.kill()


def first_item(peer: Peer, images: list[str]) -> dict[str, str]:
    return {"image": images[0]} if peer.no_text else {"text": FIRST}


@contextmanager
def started_anew(peer: Peer, place: Path, images: list[str], figures: dict[str, list]) -> Iterator[Running]:
    """A peer that has answered once. The seconds and CPU seconds until then are added to its figures."""
    begun_s = time.perf_counter()
    with started(peer, place) as running:
        running.child.ask(**first_item(peer, images))
        figures.setdefault("start_s", []).append(time.perf_counter() - begun_s)
        figures.setdefault("start_cpu_s", []).append(running.cpu_s())
        yield running


def embeddings(running: Running, items: list[dict[str, str]]) -> NDArray[np.float32]:
    return np.array([running.child.ask(**item)["embedding"] for item in items], np.float32)


class Measuring:
    """The figures of each peer so far, each a list of measurements, or the reason why there are none.

    reference: the peer to which cosines are. One whose cosine is below LEAST_COSINE embeds something else: it fails.
    """

    def __init__(self, place: Path, images: list[str], reference: Peer = PEERS[REFERENCE]):
        self.place, self.images, self.reference = place, images, reference
        self.peers: dict[str, Peer] = {}
        self.figures: dict[str, dict[str, list]] = {}
        self.why: dict[str, str] = {}

    def attempt(self, peer: Peer, act: Callable[[], Any]) -> Any:
        """What `act` returns. If it raises, None, and the peer's reason is noted."""
        try:
            return act()
        except Exception as error:  # the other peers are measured all the same
            words = " ".join(str(error).split()).replace(f"{self.place}/", "").replace(f"{ROOT}/", "")
            self.why[peer.name] = words[:300] or type(error).__name__
            say(f"{peer.name}: {self.why[peer.name]}")
            return None

    def start(self, peers: list[Peer], starts: int, stack: ExitStack) -> list[Running]:
        """Build all peers, start each `starts` times, and return those that run after the last start."""
        for peer in peers:
            self.figures[peer.name], self.peers[peer.name] = {}, peer
            if peer.build:
                say(f"build: {peer.name}")
                self.attempt(peer, lambda peer=peer: build(peer, self.place))
        all_running: list[Running] = []
        for number in range(starts):
            for peer in [peer for peer in peers if peer.name not in self.why]:
                say(f"start {number + 1} of {starts}: {peer.name}")
                start = started_anew(peer, self.place, self.images, self.figures[peer.name])
                if number + 1 == starts:
                    running = self.attempt(peer, lambda start=start: stack.enter_context(start))
                    all_running += [running] if running else []
                else:
                    self.attempt(peer, lambda start=start: run_once(start))
        return all_running

    def ask(self, running: Running, figure: str, items: list[dict[str, str]]) -> None:
        """Send a peer one item after the other, and note the times, without the first WARM."""
        if running.peer.name not in self.why:
            times = self.attempt(running.peer, lambda: [running.child.ask(**item)["ms"] for item in items])
            self.figures[running.peer.name].setdefault(figure, []).extend((times or [])[WARM:])

    def note(self, running: list[Running], figure: str, value_of: Callable[[Running], float]) -> None:
        """Note one figure of each peer."""
        for one in running:
            if one.peer.name not in self.why:
                value = self.attempt(one.peer, lambda one=one: value_of(one))
                if value is not None:
                    self.figures[one.peer.name][figure] = [value]

    def measure(self, running: list[Running], rounds: int) -> None:
        """Texts in turns, then images in turns. Memory is noted after each."""
        of_texts = [one for one in running if not one.peer.no_text]
        checked, images = [{"text": text} for text in CHECKED], [{"image": image} for image in self.images]
        with ExitStack() as stack:
            references = [one for one in running if one.peer.name == self.reference.name]
            reference = references[0] if references else stack.enter_context(started(self.reference, self.place))
            self.measure_against(reference, of_texts, running, checked, images, rounds)

    def measure_against(
        self,
        reference: Running,
        of_texts: list[Running],
        running: list[Running],
        checked: list[dict[str, str]],
        images: list[dict[str, str]],
        rounds: int,
    ) -> None:
        right = embeddings(reference, checked)
        self.note(of_texts, "text_cosine", lambda one: self.checked_cosine(one, checked, right))
        texts = TEXTS[1 + len(CHECKED) :]
        a_turn = WARM + TEXTS_A_TURN
        for number, one in turns(of_texts, rounds):
            say(f"round {number + 1} of {rounds}, texts: {one.peer.name}")
            self.ask(one, "text_ms", [{"text": text} for text in texts[number * a_turn : (number + 1) * a_turn]])
        self.note(of_texts, "text_peak_mb", Running.peak_mb)
        of_images = [one for one in running if one.peer.has_images]
        if not of_images:
            return
        right_of_images = embeddings(reference, images)
        self.note(of_images, "image_cosine", lambda one: self.checked_cosine(one, images, right_of_images))
        a_turn = WARM + IMAGES_A_TURN
        for number, one in turns(of_images, rounds):
            say(f"round {number + 1} of {rounds}, images: {one.peer.name}")
            self.ask(one, "image_ms", [images[(number * a_turn + n) % len(images)] for n in range(a_turn)])
        self.note(of_images, "peak_mb", Running.peak_mb)

    def checked_cosine(self, one: Running, items: list[dict[str, str]], right: NDArray[np.float32]) -> float:
        """The lowest cosine of a peer's embeddings of `items` with `right`. Raises RuntimeError if it is too low."""
        worst = worst_cosine(embeddings(one, items), right)
        if not worst >= LEAST_COSINE:
            self.figures[one.peer.name].clear()  # they are of other embeddings
            raise RuntimeError(f"cosine {worst:.4f} to {self.reference.name}, expected {LEAST_COSINE} or more")
        return worst

    def results(self) -> dict[str, dict[str, Any]]:
        """Peer -> medians of its figures, all measurements of which there are several, and why some are missing."""
        results: dict[str, dict[str, Any]] = {}
        for name, figures in self.figures.items():
            results[name] = {figure: float(np.median(all_)) for figure, all_ in figures.items() if all_}
            results[name]["measured"] = {figure: all_ for figure, all_ in figures.items() if len(all_) > 1}
            why = self.why.get(name) or self.peers[name].no_text
            results[name] |= {"why": why} if why else {}
        return results


def run_once(start: Any) -> None:
    with start:
        pass


def weights_bytes(tower: Path) -> tuple[int, int]:
    """Bytes of a text tower's weights that every text needs, and bytes of its tables that each id needs."""
    graph = onnx.load(tower, load_external_data=False).graph
    tables = {node.input[0] for node in graph.node if node.op_type in ("Gather", "Slice")}
    sizes = {}
    for one in graph.initializer:
        item = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(one.data_type)).itemsize
        sizes[one.name] = int(np.prod(one.dims)) * item, int(one.dims[0]) if one.dims else 1
    a_row = sum(size // rows for name, (size, rows) in sizes.items() if name in tables)
    return sum(size for name, (size, _) in sizes.items() if name not in tables), a_row


def gb_per_s(size_bytes: int, threads: int, passes: int = 6) -> float:
    """10^9 bytes a second at which threads read an array: the best pass of NumPy's max and sum of float32."""
    array = np.ones(max(size_bytes // 4, 1024), np.float32)
    parts, best_s = np.array_split(array, threads), float("inf")
    for reading in [np.max, np.sum] * passes:
        readers = [threading.Thread(target=reading, args=(part,)) for part in parts]
        begun_s = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best_s = min(best_s, time.perf_counter() - begun_s)
    return array.nbytes / best_s / 1e9


def bound(running: Running, place: Path, rounds: int, array_bytes: int) -> dict[str, Any]:
    """The text tower's times by number of ids, and the least time of reading its weights once."""
    weights, a_row = weights_bytes(text_graph(place / OURS))
    rows = {length: ids_row(place, length) for length in LENGTHS}
    times: dict[tuple[int, int], list[float]] = {}
    for _ in range(rounds):
        for threads, (length, row) in itertools.product((1, 2), rows.items()):
            times_ms = running.child.ask(ids=row, times=WARM + 5, threads=threads)
            times.setdefault((threads, length), []).extend(times_ms[WARM:])
    tower_ms = {key: float(np.median(all_)) for key, all_ in times.items()}
    memory = {threads: gb_per_s(array_bytes, threads) for threads in (1, 2)}
    cache = {threads: gb_per_s(weights, threads) for threads in (1, 2)}
    least_ms = {threads: (weights + 7 * a_row) / memory[threads] / 1e6 for threads in (1, 2)}
    return {
        "weights_bytes": weights,
        "bytes_per_id": a_row,
        "array_bytes": array_bytes,
        "memory_gb_per_s": memory,
        "weights_sized_gb_per_s": cache,
        "least_ms": least_ms,
        "tower_ms": {str(n): {str(length): tower_ms[n, length] for length in LENGTHS} for n in (1, 2)},
        "ratio": {threads: tower_ms[threads, 7] / least_ms[threads] for threads in (1, 2)},
        "profile_ms": running.child.ask(profile=rows[7], times=50),
    }


def ids_row(place: Path, length: int) -> list[int]:
    """A row of `length` ids, of words as in TEXTS."""
    bpe = open_tokenizer(place / OURS / model_dir.VOCAB, place / OURS / model_dir.MERGES, 77)
    ids = tokenize(bpe, " ".join(COLOURS * 10), 77)
    return [int(n) for n in (*ids[: length - 1], ids[-1])]


def prepare(place: Path, checkpoint: Path | None) -> list[str]:
    """Put the checkpoint and the images into the folder `place`, and return the images' files."""
    (place / "checkpoint").symlink_to((checkpoint or write_random(place / "random")).resolve())
    lay_out(place / "checkpoint", place)
    (place / "clip-ViT-B-32").rename(place / "sentence-transformers")
    files = [place / f"{number}.jpg" for number in IMAGES]
    for file, image in zip(files, smooth_jpegs()):
        file.write_bytes(image)
    return [str(file) for file in files]


def measure(place: Path, options: argparse.Namespace) -> Results:
    if options.rounds * (WARM + TEXTS_A_TURN) > len(TEXTS) - 1 - len(CHECKED):
        sys.exit(f"--rounds {options.rounds}: there are texts for 63")
    results: Results = {"rounds": options.rounds, "starts": options.starts}
    results["checkpoint"] = options.checkpoint.name if options.checkpoint else RANDOM
    peers = [peer for name, peer in PEERS.items() if any(part in name for part in options.only)]
    measuring = Measuring(place, prepare(place, options.checkpoint))
    with ExitStack() as stack:
        running = measuring.start(peers, options.starts, stack)
        measuring.measure(running, options.rounds)
        for one in running:
            if one.peer.name == OURS and OURS not in measuring.why:
                say("the bound")
                results["bound"] = bound(one, place, options.rounds, options.array_mb * 2**20)
                towers = model_dir.read_manifest(place / OURS).towers
                results["precision"] = {name: tower.precision for name, tower in towers.items()}
    return results | {"peers": measuring.results()}


def table(results: Results) -> str:
    """The medians as plain text: a line for each peer; then the bound, and the source."""
    lines = peer_lines(results["peers"])
    lines += ["", *bound_lines(results["bound"])] if "bound" in results else []
    lines += ["", f"{results['rounds']} rounds, {results['starts']} starts of each, {results['checkpoint']}"]
    if "precision" in results:
        lines[-1] += ", ours " + ", ".join(f"{name} {kind}" for name, kind in results["precision"].items())
    lines.append(source_line(results))
    return "\n".join(lines)


def peer_lines(peers: dict[str, dict[str, Any]], title: str = "") -> list[str]:
    """A line of figures for each peer, below one of titles, with the reason where figures are missing."""
    lines = [f"{title:28}" + "".join(f"{title:>11}" for title, _ in COLUMNS.values())]
    for name, figures in peers.items():
        cells = [
            f"{figures[figure]:.{digits}f}" if figure in figures else "" for figure, (_, digits) in COLUMNS.items()
        ]
        lines.append("".join([f"{name:28}", *(f"{cell:>11}" for cell in cells)]).rstrip())
        lines += [f"    {figures['why']}"] if "why" in figures else []
    return lines


def bound_lines(bound: dict[str, Any]) -> list[str]:
    """Times of the text tower beside the least time of reading its weights, on one thread and on two."""
    weights = f"text tower, {bound['weights_bytes'] / 1e6:.1f} MB of weights for each text"
    lines = [f"{weights:50}{'one thread':>11}{'two':>11}"]
    for title, figures, digits in (
        ("reading memory, GB/s", bound["memory_gb_per_s"], 1),
        ("  reading those weights again and again, GB/s", bound["weights_sized_gb_per_s"], 1),
        ("reading those weights from memory once, ms", bound["least_ms"], 2),
        ("text tower, 7 ids, ms", {n: times["7"] for n, times in bound["tower_ms"].items()}, 2),
        ("  times the reading", bound["ratio"], 2),
        *(
            (f"text tower, {n} ids, ms", {k: times[str(n)] for k, times in bound["tower_ms"].items()}, 2)
            for n in SHOWN_LENGTHS
        ),
    ):
        one, two = (figures[n] if n in figures else figures[str(n)] for n in (1, 2))
        lines.append(f"{title:50}{one:>11.{digits}f}{two:>11.{digits}f}")
    profile = bound["profile_ms"]
    largest = ", ".join(f"{kind} {profile[kind]:.2f}" for kind in list(profile)[:3])
    return [*lines, f"  7 ids on one thread, by onnxruntime's profiler, ms: {largest}, all {sum(profile.values()):.2f}"]


if __name__ == "__main__":
    main(__doc__, measure, table, checkpoint=Path, only=("",), rounds=10, starts=3, array_mb=2048)
