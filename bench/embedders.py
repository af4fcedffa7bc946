"""The ways to embed by one checkpoint that bench/peers.py compares, each in a process of its own that stays up.

    python bench/embedders.py build NAME FOLDER     makes in FOLDER what a peer needs before it can open the checkpoint
    python bench/embedders.py serve NAME FOLDER     answers each line of JSON on its input by one on its output

FOLDER holds `checkpoint`, in Hugging Face's layout, and the same as `sentence-transformers`, in that library's layout.
A line {"text": TEXT} or {"image": FILE} is answered by {"ms", "embedding"}, {"ids", "times", "threads"} by the times of
our text tower alone, {"profile": IDS, "times"} by where they go, and a fault by {"error"}. A peer is given a text as a
str and an image as the bytes of its file. It uses as many threads as it does by itself, opens a tower when it is first
asked, where its library lets it, and pads no text that its library does not pad.
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

START_LIMIT_S = 180
Embed = Callable[[Any], NDArray[np.float32]]


@dataclass(frozen=True)
class Peer:
    """One way to embed: `open` gives a function of a text and one of an image, `build` makes what it reads before that.

    environment: the folder of the virtual environment that has it; no_text: why it has no function of a text.
    """

    name: str
    open: Callable[[Path], tuple[Embed | None, Embed]]
    build: Callable[[Path], None] | None = None
    environment: str = ".venv-peers"
    no_text: str = ""


def picture(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image)).convert("RGB")


def ours(folder: str) -> Callable[[Path], tuple[Embed, Embed]]:
    """As served, but for texts asked before: the engine remembers those."""

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


def open_clip(place: Path) -> tuple[Embed, Embed]:
    """open_clip's ViT-B-32-quickgelu, its weights in OpenAI's layout."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # PyPI's beside torch's CPU build looks for operators of its own, which open_clip never uses
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(
        "ViT-B-32-quickgelu", pretrained=str(place / "openai.pt"), precision="fp32"
    )
    model.eval()
    tokens = open_clip.get_tokenizer("ViT-B-32-quickgelu")

    def text(text: str) -> NDArray[np.float32]:
        with torch.inference_mode():
            return model.encode_text(tokens([text]))[0].numpy()

    def image(image: bytes) -> NDArray[np.float32]:
        with torch.inference_mode():
            return model.encode_image(preprocess(Image.open(io.BytesIO(image)))[None])[0].numpy()

    return text, image


def build_openai(place: Path) -> None:
    """openai.pt: the checkpoint's tensors by the names that OpenAI gave them."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(place / "checkpoint" / "model.safetensors")
    torch.save(openai_tensors(tensors, torch.cat, lambda matrix: matrix.T.contiguous()), place / "openai.pt")


OPENAI_NAMES = (  # of a tensor in Hugging Face's layout, what is replaced by what
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
    """A checkpoint's tensors in OpenAI's layout: other names, q, k and v in one, projections transposed.

    Source: convert_clip_original_pytorch_to_hf.py of transformers, the other way round.
    """
    found = {"logit_scale": tensors["logit_scale"]}
    found["text_projection"] = transposed(tensors["text_projection.weight"])
    found["visual.proj"] = transposed(tensors["visual_projection.weight"])
    for name, tensor in tensors.items():
        done = name == "logit_scale" or "_projection" in name or ".k_proj" in name or ".v_proj" in name
        if done or "position_ids" in name:
            continue
        new = functools.reduce(lambda so_far, pair: so_far.replace(*pair), OPENAI_NAMES, name)
        if ".q_proj" in name:
            new = new.replace("self_attn.q_proj.", "attn.in_proj_")
            tensor = join([tensors[name.replace("q_proj", one)] for one in ("q_proj", "k_proj", "v_proj")])
        found[new] = tensor
    return found


def inputs_of(place: Path) -> tuple[Callable[[str], NDArray[np.int64]], Callable[[bytes], NDArray[np.float32]]]:
    """What turns a text into ids [1, t] and an image into pixels [1, 3, 224, 224], by transformers, without torch."""
    from transformers import CLIPImageProcessor, CLIPTokenizerFast

    tokenizer = CLIPTokenizerFast.from_pretrained(place / "checkpoint")
    processor = CLIPImageProcessor.from_pretrained(place / "checkpoint")

    def ids(text: str) -> NDArray[np.int64]:
        return np.asarray(tokenizer(text, truncation=True, max_length=77)["input_ids"], np.int64)[None]

    return ids, lambda image: np.asarray(processor(picture(image), return_tensors="np")["pixel_values"], np.float32)


def build_raw(place: Path) -> None:
    """raw/text.onnx and raw/image.onnx: what torch.onnx.export makes of transformers' CLIPModel, not optimised."""
    if (place / "raw" / "image.onnx").exists():
        return  # for another peer
    import torch
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(place / "checkpoint").eval()

    class Tower(torch.nn.Module):
        def __init__(self, features: Callable):
            super().__init__()
            self.model, self.features = model, features

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            found = self.features(given)
            return getattr(found, "pooler_output", found)

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
    """raw-int8: the raw graphs after onnxruntime's own quantize_dynamic, as it comes."""
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
    """openvino-int8: the raw graphs with weights in 8 bits, by NNCF's compress_weights, as it comes."""
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

    def first(found: Any) -> NDArray[np.float32]:
        return getattr(found, "pooler_output", found)[0].numpy()

    def text(text: str) -> NDArray[np.float32]:
        with torch.inference_mode():
            return first(model.get_text_features(input_ids=torch.from_numpy(ids(text))))

    def image(image: bytes) -> NDArray[np.float32]:
        with torch.inference_mode():
            return first(model.get_image_features(pixel_values=torch.from_numpy(pixels(image))))

    return text, image


def build_fastembed(place: Path) -> None:
    """fastembed/text and fastembed/image: the raw graphs, their inputs named as it does, and the files it reads."""
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
    """faster-clip, its cache filled beforehand."""
    os.environ["FASTER_CLIP_CACHE"] = str(place / "faster-clip")
    from faster_clip import ClipModel

    model = ClipModel()
    return None, lambda image: np.array(model.encode_image([image])[0], np.float32)


def build_faster_clip(place: Path) -> None:
    folder = place / "faster-clip" / "sentence-transformers__clip-ViT-B-32" / "0_CLIPModel"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").symlink_to((place / "checkpoint" / "model.safetensors").resolve())


def clip_cpp(place: Path) -> tuple[Embed, Embed]:
    """clip.cpp by its package, which reads GGUF and brings nothing that writes it: given the checkpoint as it is."""
    from clip_cpp import Clip

    model = Clip(str(place / "checkpoint" / "model.safetensors"))

    def image(image: bytes) -> NDArray[np.float32]:
        (place / "clip.cpp.jpg").write_bytes(image)
        return np.array(model.load_preprocess_encode_image(str(place / "clip.cpp.jpg")), np.float32)

    return lambda text: np.array(model.encode_text(model.tokenize(text)), np.float32), image


def build_infinity(place: Path) -> None:
    """infinity: the checkpoint, with a config.json that leaves less to defaults, or it is not taken for CLIP's."""
    folder = place / "infinity"
    folder.mkdir()
    for file in (place / "checkpoint").iterdir():
        (folder / file.name).symlink_to(file.resolve())
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] = {"model_type": "clip_vision_model"} | config["vision_config"]
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))


def infinity(place: Path) -> tuple[Embed, Embed]:
    """infinity-emb's server, asked over HTTP; it ends with this process."""
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
        except ConnectionError:  # while others had their turns the server closed it
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


OURS = "ours"  # the folder of the model directory as it is baked where nothing is said
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


def tower_times(place: Path, ids: list[int], times: int, threads: int) -> dict[str, Any]:
    """Milliseconds of our text tower alone for one row of ids, on so many threads; as it is served that is one."""
    tower, given = text_tower(place, threads), {"ids": np.array([ids], np.int64)}
    return {"times_ms": [timed(lambda _: tower.run(["embedding"], given)[0][0], None)[0] for _ in range(times)]}


def text_graph(model: Path) -> Path:
    """The graph of the text tower that a server of the model directory opens on this processor."""
    from llm_clip_onnx.engine import Engine

    return model / Engine(model).tower_files("text")[0]


@functools.cache
def text_tower(place: Path, threads: int) -> Any:
    from llm_clip_onnx import towers

    return towers.open_tower(text_graph(place / OURS), threads=threads)


def tower_profile(place: Path, ids: list[int], times: int) -> dict[str, float]:
    """Milliseconds that the operators of each kind take in one run of our text tower, by onnxruntime's profiler."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.enable_cpu_mem_arena = 1, False
    options.enable_profiling, options.profile_file_prefix = True, str(place / "profile")
    tower = ort.InferenceSession(str(text_graph(place / OURS)), options, ["CPUExecutionProvider"])
    for _ in range(times):
        tower.run(["embedding"], {"ids": np.array([ids], np.int64)})
    events = json.loads(Path(tower.end_profiling()).read_text())
    found: dict[str, float] = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            found[kind] = found.get(kind, 0) + event["dur"] / 1000 / times
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def timed(embed: Embed, item: Any) -> tuple[float, NDArray[np.float32]]:
    """Milliseconds of one embedding, and the embedding."""
    begun_s = time.perf_counter()
    embedding = embed(item)
    return 1000 * (time.perf_counter() - begun_s), embedding


def serve(peer: Peer, place: Path) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    opened: tuple[Embed | None, Embed] | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "profile" in asked:
                answer = {"profile_ms": tower_profile(place, asked["profile"], asked["times"])}
            elif "ids" in asked:
                answer = tower_times(place, asked["ids"], asked["times"], asked["threads"])
            else:
                opened = opened or peer.open(place)
                embed, given = opened[0], asked.get("text")
                if "image" in asked:
                    embed, given = opened[1], Path(asked["image"]).read_bytes()
                ms, embedding = timed(embed, given)
                answer = {"ms": ms, "embedding": np.asarray(embedding, np.float32).tolist()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


def main() -> None:
    act, name, folder = sys.argv[1:]
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["TMPDIR"] = folder  # torch leaves a folder there
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if act == "build":
        PEERS[name].build(Path(folder))
    else:
        serve(PEERS[name], Path(folder))


if __name__ == "__main__":
    main()
