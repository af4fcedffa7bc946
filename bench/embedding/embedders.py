"""The ways to embed with one checkpoint that peers.py compares, each in a child process that stays up.

    python -m bench.embedding.embedders build NAME FOLDER     writes to FOLDER the files that a peer needs beforehand
    python -m bench.embedding.embedders serve NAME FOLDER     answers requests as bench/harness/child.py has them

FOLDER holds `checkpoint`, in Hugging Face's layout, and the same as `sentence-transformers`, in that library's layout.
A request {"text": TEXT} or {"image": FILE} gets {"ms", "embedding"}; {"ids", "times", "threads"} the times of our text
tower alone, and {"profile": IDS, "times"} where they go. A peer gets a text as a str and an image as the bytes of its
file. It uses as many threads as it takes by itself, opens a tower at the first request if its library allows that, and
pads texts only if its library does.
"""

from __future__ import annotations

import atexit
import base64
import functools
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.harness.child import answer_requests

START_LIMIT_S = 180
Embed = Callable[[Any], NDArray[np.float32]]


@dataclass(frozen=True)
class Peer:
    """One way to embed: `open` returns a function of a text and one of an image, `build` writes the files it reads.

    environment: the folder of its virtual environment; no_text: why it has no function of a text. has_images: False if
    its function of an image is not measured. module: the one that its process runs.
    """

    name: str
    open: Callable[[Path], tuple[Embed | None, Embed]]
    build: Callable[[Path], None] | None = None
    environment: str = ".venv-peers"
    no_text: str = ""
    has_images: bool = True
    module: str = "bench.embedding.embedders"


def picture(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image)).convert("RGB")


def ours(folder: str) -> Callable[[Path], tuple[Embed, Embed]]:
    """As a server embeds. No text is sent twice, because the engine would remember it."""

    def open_(place: Path) -> tuple[Embed, Embed]:
        from llm_clip_onnx.engine import Engine

        engine = Engine(place / folder)
        return lambda text: engine.embed_text([text])[0], lambda image: engine.embed_images([image])[0]

    return open_


def baked(folder: str, precision: str) -> Callable[[Path], None]:
    def build(place: Path) -> None:
        from llm_clip_onnx.bake import bake

        bake(str(place / "checkpoint"), place / folder, precision)

    return build


def sentence_transformers(place: Path) -> tuple[Embed, Embed]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(place / "sentence-transformers"), device="cpu")
    return model.encode, lambda image: model.encode(Image.open(io.BytesIO(image)))


def import_open_clip() -> Any:
    """The module open_clip, also where torchvision cannot be imported."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # PyPI's torchvision misses operators in torch's CPU build; open_clip never uses them
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import open_clip

    return open_clip


def open_clip(place: Path) -> tuple[Embed, Embed]:
    """open_clip's ViT-B-32-quickgelu, its weights in OpenAI's layout."""
    return open_clip_model("ViT-B-32-quickgelu", pretrained=str(place / "openai.pt"), precision="fp32")


def open_clip_model(name: str, **options: Any) -> tuple[Embed, Embed]:
    """A model of open_clip's, by the name and the options of its create_model_and_transforms."""
    open_clip = import_open_clip()
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms(name, **options)
    model.eval()
    tokens = open_clip.get_tokenizer(name)

    def text(text: str) -> NDArray[np.float32]:
        with torch.inference_mode():
            return model.encode_text(tokens([text]))[0].numpy()

    def image(image: bytes) -> NDArray[np.float32]:
        with torch.inference_mode():
            return model.encode_image(preprocess(Image.open(io.BytesIO(image)))[None])[0].numpy()

    return text, image


def build_openai(place: Path) -> None:
    """Write openai.pt: the checkpoint's tensors in OpenAI's layout."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(place / "checkpoint" / "model.safetensors")
    torch.save(openai_tensors(tensors, torch.cat, lambda matrix: matrix.T.contiguous()), place / "openai.pt")


OPENAI_NAMES = (  # part of a tensor's name in Hugging Face's layout, and in OpenAI's
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("vision_model.encoder.layers", "visual.transformer.resblocks"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)


def openai_tensors(tensors: dict[str, Any], join: Callable[[list], Any], transposed: Callable) -> dict[str, Any]:
    """A checkpoint's tensors in OpenAI's layout: other names, q, k and v joined, projections transposed.

    Source: convert_clip_original_pytorch_to_hf.py of transformers, reversed.
    """
    renamed = {"logit_scale": tensors["logit_scale"]}
    renamed["text_projection"] = transposed(tensors["text_projection.weight"])
    renamed["visual.proj"] = transposed(tensors["visual_projection.weight"])
    for name, tensor in tensors.items():
        done = name == "logit_scale" or "_projection" in name or ".k_proj" in name or ".v_proj" in name
        if done or "position_ids" in name:
            continue
        new = functools.reduce(lambda so_far, pair: so_far.replace(*pair), OPENAI_NAMES, name)
        if ".q_proj" in name:
            new = new.replace("self_attn.q_proj.", "attn.in_proj_")
            tensor = join([tensors[name.replace("q_proj", one)] for one in ("q_proj", "k_proj", "v_proj")])
        renamed[new] = tensor
    return renamed


def inputs_of(place: Path) -> tuple[Callable[[str], NDArray[np.int64]], Callable[[bytes], NDArray[np.float32]]]:
    """transformers without torch: functions from a text to ids [1, t], from an image to pixels [1, 3, 224, 224]."""
    from transformers import CLIPImageProcessor, CLIPTokenizerFast

    tokenizer = CLIPTokenizerFast.from_pretrained(place / "checkpoint")
    processor = CLIPImageProcessor.from_pretrained(place / "checkpoint")

    def ids(text: str) -> NDArray[np.int64]:
        return np.asarray(tokenizer(text, truncation=True, max_length=77)["input_ids"], np.int64)[None]

    return ids, lambda image: np.asarray(processor(picture(image), return_tensors="np")["pixel_values"], np.float32)


def build_raw(place: Path) -> None:
    """Write raw/text.onnx and raw/image.onnx: torch.onnx.export of transformers' CLIPModel, not optimised."""
    if (place / "raw" / "image.onnx").exists():
        return  # another peer uses them too
    import torch
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(place / "checkpoint").eval()

    class Tower(torch.nn.Module):
        def __init__(self, features: Callable):
            super().__init__()
            self.model, self.features = model, features

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            features = self.features(given)
            return getattr(features, "pooler_output", features)

    (place / "raw").mkdir(exist_ok=True)
    exported = functools.partial(torch.onnx.export, output_names=["embedding"], dynamo=False, opset_version=17)
    with torch.inference_mode():
        ids = torch.tensor([[49406, 320, 1125, 539, 320, 2368, 49407]])
        features = Tower(lambda given: model.get_text_features(input_ids=given))
        axes = {"ids": {0: "n", 1: "t"}, "embedding": {0: "n"}}
        exported(features, (ids,), place / "raw" / "text.onnx", input_names=["ids"], dynamic_axes=axes)
        features = Tower(lambda given: model.get_image_features(pixel_values=given))
        axes = {"pixels": {0: "n"}, "embedding": {0: "n"}}
        pixels = torch.zeros(1, 3, 224, 224)
        exported(features, (pixels,), place / "raw" / "image.onnx", input_names=["pixels"], dynamic_axes=axes)


def build_raw_int8(place: Path) -> None:
    """Write raw-int8: the raw graphs after onnxruntime's quantize_dynamic with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    build_raw(place)
    (place / "raw-int8").mkdir()
    for tower in ("text.onnx", "image.onnx"):
        quantize_dynamic(place / "raw" / tower, place / "raw-int8" / tower)


def onnxruntime(folder: str) -> Callable[[Path], tuple[Embed, Embed]]:
    def open_(place: Path) -> tuple[Embed, Embed]:
        import onnxruntime as ort

        ids, pixels = inputs_of(place)
        providers = ["CPUExecutionProvider"]
        tower = functools.cache(lambda name: ort.InferenceSession(str(place / folder / name), providers=providers))
        return (
            lambda text: tower("text.onnx").run(None, {"ids": ids(text)})[0][0],
            lambda image: tower("image.onnx").run(None, {"pixels": pixels(image)})[0][0],
        )

    return open_


def build_openvino_int8(place: Path) -> None:
    """Write openvino-int8: the raw graphs after NNCF's compress_weights with its defaults: weights in 8 bits."""
    import nncf
    import openvino

    build_raw(place)
    for tower in ("text", "image"):
        model = openvino.Core().read_model(place / "raw" / f"{tower}.onnx")
        openvino.save_model(nncf.compress_weights(model), place / "openvino-int8" / f"{tower}.xml")


def openvino(files: str, config: dict[str, str] | None = None) -> Callable[[Path], tuple[Embed, Embed]]:
    def open_(place: Path) -> tuple[Embed, Embed]:
        import openvino as ov

        ids, pixels = inputs_of(place)
        core = ov.Core()

        @functools.cache
        def tower(name: str) -> Callable:
            hints = {"PERFORMANCE_HINT": "LATENCY"} | (config or {})
            return core.compile_model(place / files.format(name), "CPU", hints)

        return (
            lambda text: np.array(tower("text")([ids(text)])[0][0]),
            lambda image: np.array(tower("image")([pixels(image)])[0][0]),
        )

    return open_


def torch_int8(place: Path) -> tuple[Embed, Embed]:
    """transformers' CLIPModel after torch's quantize_dynamic of its linear layers."""
    import torch
    from torch.ao.quantization import quantize_dynamic
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(place / "checkpoint").eval()
    model = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    ids, pixels = inputs_of(place)

    def first(features: Any) -> NDArray[np.float32]:
        return getattr(features, "pooler_output", features)[0].numpy()

    def text(text: str) -> NDArray[np.float32]:
        with torch.inference_mode():
            return first(model.get_text_features(input_ids=torch.from_numpy(ids(text))))

    def image(image: bytes) -> NDArray[np.float32]:
        with torch.inference_mode():
            return first(model.get_image_features(pixel_values=torch.from_numpy(pixels(image))))

    return text, image


def build_fastembed(place: Path) -> None:
    """Write fastembed/text and fastembed/image: the raw graphs with fastembed's names of inputs, and other files."""
    import onnx
    from transformers import CLIPImageProcessor, CLIPTokenizerFast

    build_raw(place)
    for tower, old, new in (("text", "ids", "input_ids"), ("image", "pixels", "pixel_values")):
        folder = place / "fastembed" / tower
        folder.mkdir(parents=True)
        CLIPTokenizerFast.from_pretrained(place / "checkpoint").save_pretrained(folder)
        (folder / "config.json").write_bytes((place / "checkpoint" / "config.json").read_bytes())
        CLIPImageProcessor.from_pretrained(place / "checkpoint").save_pretrained(folder)  # with all its defaults
        preprocess = json.loads((folder / "preprocessor_config.json").read_text())
        preprocess["image_processor_type"] = "CLIPImageProcessor"
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocess))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 77}))
        model = onnx.load(place / "raw" / f"{tower}.onnx")
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
        model.graph.input[0].name = new
        onnx.save(model, folder / "model.onnx")


def fastembed(place: Path) -> tuple[Embed, Embed]:
    from fastembed import ImageEmbedding, TextEmbedding

    @functools.cache
    def tower(kind: Callable, name: str) -> Any:
        folder = place / "fastembed" / {"text": "text", "vision": "image"}[name]
        return kind(f"Qdrant/clip-ViT-B-32-{name}", specific_model_path=str(folder))

    return (
        lambda text: next(iter(tower(TextEmbedding, "text").embed([text]))),
        lambda image: next(iter(tower(ImageEmbedding, "vision").embed([Image.open(io.BytesIO(image))]))),
    )


def faster_clip(place: Path) -> tuple[None, Embed]:
    """faster-clip, from a cache that build_faster_clip filled."""
    os.environ["FASTER_CLIP_CACHE"] = str(place / "faster-clip")
    from faster_clip import ClipModel

    model = ClipModel()
    return None, lambda image: np.array(model.encode_image([image])[0], np.float32)


def build_faster_clip(place: Path) -> None:
    folder = place / "faster-clip" / "sentence-transformers__clip-ViT-B-32" / "0_CLIPModel"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to((place / "checkpoint" / "model.safetensors").resolve())


def clip_cpp(place: Path) -> tuple[Embed, Embed]:
    """clip.cpp's package on the checkpoint itself: it reads GGUF, and its package has nothing that writes that."""
    from clip_cpp import Clip

    model = Clip(str(place / "checkpoint" / "model.safetensors"))

    def image(image: bytes) -> NDArray[np.float32]:
        (place / "clip.cpp.jpg").write_bytes(image)
        return np.array(model.load_preprocess_encode_image(str(place / "clip.cpp.jpg")), np.float32)

    return lambda text: np.array(model.encode_text(model.tokenize(text)), np.float32), image


def build_infinity(place: Path) -> None:
    """Write infinity: the checkpoint, naming the vision model in config.json, or it is not read as CLIP."""
    folder = place / "infinity"
    folder.mkdir()
    for file in (place / "checkpoint").iterdir():
        (folder / file.name).symlink_to(file.resolve())
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = {"model_type": "clip_vision_model"} | config["vision_config"]
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))


def infinity(place: Path) -> tuple[Embed, Embed]:
    """infinity-emb's server over HTTP. It ends with this process."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = ["--model-id", str(place / "infinity"), "--served-model-name", "clip", "--engine", "torch"]
    served += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port), "--no-model-warmup"]
    script = str(Path(sys.executable).parent / "infinity_emb")
    environment = os.environ | {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    server = subprocess.Popen([script, "v2", *served], stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)
    atexit.register(server.terminate)

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_LIMIT_S)

    while True:
        try:
            connection.connect()
            break
        except OSError:
            if server.poll() is not None:
                raise RuntimeError(f"infinity_emb ended with {server.returncode}") from None
            time.sleep(0.02)

    def embed(item: str, modality: str) -> NDArray[np.float32]:
        body = json.dumps({"model": "clip", "input": [item], "modality": modality})
        try:
            connection.request("POST", "/embeddings", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
        except ConnectionError:  # the server closed it during the other peers' turns
            connection.close()
            connection.request("POST", "/embeddings", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
        answer = json.load(response)
        if "data" not in answer:
            raise RuntimeError(f"infinity_emb answered {str(answer)[:500]}")
        return np.array(answer["data"][0]["embedding"], np.float32)

    def image(image: bytes) -> NDArray[np.float32]:
        return embed("data:image/jpeg;base64," + base64.b64encode(image).decode(), "image")

    return lambda text: embed(text, "text"), image


OURS = "ours"  # the folder of the model directory that is baked with the defaults
OTHER_TEXTS = "images only: its text tower is another model, a multilingual DistilBERT"
ALL = (
    Peer("ours", ours(OURS), baked(OURS, "auto"), environment=""),
    Peer("ours, float32", ours("ours-float32"), baked("ours-float32", "fp32"), environment=""),
    Peer("sentence-transformers", sentence_transformers),
    Peer("open_clip", open_clip, build_openai, environment=".venv-open-clip"),
    Peer("onnxruntime, raw graph", onnxruntime("raw"), build_raw),
    Peer("onnxruntime, quantize_dynamic", onnxruntime("raw-int8"), build_raw_int8),
    Peer("OpenVINO, raw graph", openvino("raw/{}.onnx"), build_raw),
    Peer("OpenVINO, kept to float32", openvino("raw/{}.onnx", {"INFERENCE_PRECISION_HINT": "f32"}), build_raw),
    Peer("OpenVINO, int8 weights", openvino("openvino-int8/{}.xml"), build_openvino_int8),
    Peer("torch, quantize_dynamic", torch_int8),
    Peer("fastembed", fastembed, build_fastembed),
    Peer("faster-clip", faster_clip, build_faster_clip, no_text=OTHER_TEXTS),
    Peer("clip.cpp", clip_cpp),
    Peer("infinity-emb, HTTP", infinity, build_infinity, environment=".venv-infinity"),
)
PEERS = {peer.name: peer for peer in ALL}


def tower_times(place: Path, ids: list[int], times: int, threads: int) -> list[float]:
    """Milliseconds of our text tower alone for one row of ids, on so many threads. A server uses one."""
    tower, inputs = text_tower(place, threads), {"ids": np.array([ids], np.int64)}
    return [timed(lambda _: tower.run(["embedding"], inputs)[0][0], None)[0] for _ in range(times)]


def text_graph(model: Path) -> Path:
    """The graph of the text tower that a server of the model directory opens on this processor."""
    from llm_clip_onnx.engine import Engine

    return model / Engine(model).tower_files("text")[0]


@functools.cache
def text_tower(place: Path, threads: int) -> Any:
    from llm_clip_onnx import towers

    return towers.open_tower(text_graph(place / OURS), threads=threads)


def tower_profile(place: Path, ids: list[int], times: int) -> dict[str, float]:
    """Kind of operator -> its milliseconds in one run of our text tower, by onnxruntime's profiler, largest first."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.enable_cpu_mem_arena = 1, False
    options.enable_profiling, options.profile_file_prefix = True, str(place / "profile")
    tower = ort.InferenceSession(str(text_graph(place / OURS)), options, ["CPUExecutionProvider"])
    for _ in range(times):
        tower.run(["embedding"], {"ids": np.array([ids], np.int64)})
    events = json.loads(Path(tower.end_profiling()).read_text())
    spent_ms: dict[str, float] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            spent_ms[kind] = spent_ms.get(kind, 0) + event["dur"] / 1000 / times
    return dict(sorted(spent_ms.items(), key=lambda pair: -pair[1]))


def timed(embed: Embed, item: Any) -> tuple[float, NDArray[np.float32]]:
    """Milliseconds of one embedding, and the embedding."""
    begun_s = time.perf_counter()
    embedding = embed(item)
    return 1000 * (time.perf_counter() - begun_s), embedding


def serve(peer: Peer, place: Path) -> None:
    """Answer requests until the input ends."""
    opened = functools.cache(lambda: peer.open(place))

    def handle(times: int = 0, threads: int = 0, **request: Any) -> Any:
        [(kind, item)] = request.items()
        if kind == "profile":
            return tower_profile(place, item, times)
        if kind == "ids":
            return tower_times(place, item, times, threads)
        of_text, of_image = opened()
        ms, embedding = timed(of_text, item) if kind == "text" else timed(of_image, Path(item).read_bytes())
        return {"ms": ms, "embedding": np.asarray(embedding, np.float32).tolist()}

    answer_requests(handle)


def main(peers: dict[str, Peer]) -> None:
    """Build or serve the peer of these that the arguments name."""
    act, name, folder = sys.argv[1:]
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["TMPDIR"] = folder  # torch leaves a folder there
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if act == "build":
        peers[name].build(Path(folder))
    else:
        serve(peers[name], Path(folder))


if __name__ == "__main__":
    main(PEERS)
