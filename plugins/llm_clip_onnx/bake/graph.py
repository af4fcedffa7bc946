"""Writes ONNX graphs from named tensors, node by node, with onnxruntime's fused operators: the steps that towers share.

The graphs take any batch and any text length, and run on any processor. Weights lie beside the graph, in a file that
onnxruntime maps. Each linear layer, and the token table, is float32 or 8-bit. A patch convolution and a projection are
small and sensitive, so they stay float32. The towers themselves are in towers/.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..model_dir import SIGN_BIT, SIGNED_SUFFIX, SIGNED_TOWER_SUFFIX, UNSIGNED_SUFFIX
from ..towers import PROBE_LEVEL, PROBE_WIDTH
from .quantize import quantize_columns, quantize_rows
from .smooth import INPUT_SCALE
from .towers import Names, Tensors, TowerConfig

OPSET, IR_VERSION = 17, 8
ALIGNMENT_BYTES = 4096  # a page, so that a tensor can be mapped
PIECE_BYTES = 8_000_000  # copied at once

Reader = Callable[[str], str]
TOKEN_TABLE = "token_table"  # in Names


class Graph:
    """A graph in the making: nodes in memory, weights in a file beside it, 8-bit matrices in a file of their own.

    With 8-bit matrices it is written twice: signed levels are faster, unsigned ones are exact on every processor.
    """

    def __init__(self, graph: Path):
        self._graph = graph
        self._weights, self._levels = graph.with_suffix(".bin"), graph.with_suffix(UNSIGNED_SUFFIX)
        self._streams: dict[Path, BinaryIO] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def node(self, operator: str, *inputs: str, outputs: int | list[str] = 1, domain: str = "", **attributes):
        """Append a node; the name of its output comes back, or the list of names if there are several."""
        name = f"{operator}_{len(self._nodes)}"
        if isinstance(outputs, int):
            outputs = [name] if outputs == 1 else [f"{name}.{k}" for k in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    def fused(self, operator: str, *inputs: str, **attributes):
        """A node of one of onnxruntime's own operators."""
        return self.node(operator, *inputs, domain="com.microsoft", **attributes)

    def constant(self, name: str, array: NDArray) -> str:
        """A small tensor, kept in the graph itself."""
        self._initializers.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name: str, array: NDArray) -> str:
        """A tensor, written to the weights' file in little-endian order."""
        return self._external(name, array, self._weights)

    def levels(self, name: str, array: NDArray[np.uint8]) -> str:
        """Levels or zero points of an 8-bit matrix; the signed graph has them 128 lower, as int8."""
        return self._external(name, array, self._levels)

    def _external(self, name: str, array: NDArray, file: Path) -> str:
        if file not in self._streams:
            self._streams[file] = file.open("wb")
        stream = self._streams[file]
        array = np.ascontiguousarray(array)
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        stream.write(bytes(-stream.tell() % ALIGNMENT_BYTES))
        tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        where = {"location": file.name, "offset": stream.tell(), "length": array.nbytes}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        stream.write(array.data)
        self._initializers.append(tensor)
        return name

    def finish(self, name: str, given: onnx.ValueInfoProto, embed_dim: int) -> None:
        """Write the graph, and the signed one if there are levels. The output is the node named `embedding`."""
        embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", embed_dim])
        graph = helper.make_graph(self._nodes, name, [given], [embedding], self._initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="datasette-clip")
        for stream in self._streams.values():
            stream.close()
        self._graph.write_bytes(model.SerializeToString(deterministic=True))
        if self._levels in self._streams:
            self._write_signed(model)

    def _write_signed(self, model: onnx.ModelProto) -> None:
        signed = self._graph.with_suffix(SIGNED_SUFFIX)
        with self._levels.open("rb") as unsigned, signed.open("wb") as to:
            while piece := unsigned.read(PIECE_BYTES):
                to.write((np.frombuffer(piece, np.uint8) ^ np.uint8(SIGN_BIT)).data)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.value == self._levels.name:
                    entry.value, tensor.data_type = signed.name, TensorProto.INT8
        self._graph.with_suffix(SIGNED_TOWER_SUFFIX).write_bytes(model.SerializeToString(deterministic=True))


def linear(g: Graph, eight_bit: Names, name: str, x: str, weight: NDArray, bias: NDArray | None = None) -> str:
    """x @ weight + bias, with weight [in, out]: float32, or 8-bit with one scale and zero point per output column."""
    if name not in eight_bit:
        product = g.node("MatMul", x, g.weight(f"{name}.weight", weight))
        return product if bias is None else g.node("Add", product, g.weight(f"{name}.bias", bias))
    levels, scale, zero_point = quantize_columns(weight)
    inputs = [
        g.levels(f"{name}.weight", levels),
        g.weight(f"{name}.scale", scale),
        g.levels(f"{name}.zero_point", zero_point),
    ]
    inputs += [] if bias is None else [g.weight(f"{name}.bias", bias)]
    return g.fused("DynamicQuantizeMatMul", x, *inputs)


def norm(g: Graph, tensors: Tensors, name: str, x: str, epsilon: float) -> str:
    gain, bias = (
        g.weight(f"{name}.weight", tensors[f"{name}.weight"]),
        g.weight(f"{name}.bias", tensors[f"{name}.bias"]),
    )
    return g.node("LayerNormalization", x, gain, bias, epsilon=epsilon)


def add_norm(g: Graph, tensors: Tensors, name: str, x: str, skip: str, bias: str, epsilon: float) -> tuple[str, str]:
    """The layer norm `name` of x + skip + bias, and that sum."""
    gain, shift = (
        g.weight(f"{name}.weight", tensors[f"{name}.weight"]),
        g.weight(f"{name}.bias", tensors[f"{name}.bias"]),
    )
    outputs = [f"{name}.normed", "", "", f"{name}.sum"]
    g.fused("SkipLayerNormalization", x, skip, gain, shift, bias, outputs=outputs, epsilon=epsilon)
    return outputs[0], outputs[3]


def transformer(
    g: Graph,
    tensors: Tensors,
    prefix: str,
    tower: TowerConfig,
    eight_bit: Names,
    x: str,
    last_norm: str,
    read: Reader,
    *,
    causal: bool,
) -> str:
    """All pre-norm layers and the norm `last_norm` on x [n, t, width]: [n, width]. `read` picks the row that is read.

    Behind the last attention only that row is computed. causal: attention looks only backwards.
    """
    norms = [f"{prefix}.encoder.layers.{n}.layer_norm1" for n in range(tower.layers)] + [last_norm]
    normed = norm(g, tensors, norms[0], x, tower.layer_norm_eps)
    for n in range(tower.layers):
        layer = f"{prefix}.encoder.layers.{n}"
        mixed = attention(g, tensors, layer, tower, eight_bit, normed, causal=causal)
        if n == tower.layers - 1:
            mixed, x = read(mixed), read(x)  # [n, width]
        out = linear(g, eight_bit, f"{layer}.out", mixed, tensors[f"{layer}.self_attn.out_proj.weight"].T)
        out_bias = g.weight(f"{layer}.out.bias", tensors[f"{layer}.self_attn.out_proj.bias"])
        normed, x = add_norm(g, tensors, f"{layer}.layer_norm2", out, x, out_bias, tower.layer_norm_eps)
        out = feed_forward(g, tensors, layer, tower, eight_bit, normed)
        out_bias = g.weight(f"{layer}.fc2.bias", tensors[f"{layer}.mlp.fc2.bias"])
        normed, x = add_norm(g, tensors, norms[n + 1], out, x, out_bias, tower.layer_norm_eps)
    return normed


def attention(
    g: Graph, tensors: Tensors, layer: str, tower: TowerConfig, eight_bit: Names, x: str, *, causal: bool
) -> str:
    """Attention of a layer on x [n, t, width], before its output product; one product gives q, k and v."""
    parts = [f"{layer}.self_attn.{part}_proj" for part in "qkv"]
    joined = np.concatenate([tensors[f"{part}.weight"].T for part in parts], 1)
    bias = g.weight(f"{layer}.qkv.bias", np.concatenate([tensors[f"{part}.bias"] for part in parts]))
    q, k, v = g.node("Split", linear(g, eight_bit, f"{layer}.qkv", x, joined), outputs=3, axis=-1)
    return g.fused("MultiHeadAttention", q, k, v, bias, num_heads=tower.heads, unidirectional=int(causal))


def feed_forward(g: Graph, tensors: Tensors, layer: str, tower: TowerConfig, eight_bit: Names, x: str) -> str:
    """The two linear layers of a layer with the activation between them, without the bias of the second."""
    bias = tensors[f"{layer}.mlp.fc1.bias"]
    hidden = linear(g, eight_bit, f"{layer}.fc1", x, tensors[f"{layer}.mlp.fc1.weight"].T, bias)
    hidden = activation(g, tower.activation, hidden)
    scale = tensors.get(f"{layer}.mlp.fc2.{INPUT_SCALE}")
    if scale is not None:
        hidden = g.node("Mul", hidden, g.weight(f"{layer}.fc2.{INPUT_SCALE}", scale))
    return linear(g, eight_bit, f"{layer}.fc2", hidden, tensors[f"{layer}.mlp.fc2.weight"].T)


def activation(g: Graph, name: str, x: str) -> str:
    if name == "quick_gelu":
        return g.fused("QuickGelu", x, alpha=1.702)
    return g.fused({"gelu": "Gelu", "gelu_pytorch_tanh": "FastGelu"}[name], x)


def token_rows(g: Graph, table: NDArray, ids: str, eight_bit: Names) -> str:
    """The token table's row of each id: [n, t, width]."""
    if TOKEN_TABLE not in eight_bit:
        return g.node("Gather", g.weight(TOKEN_TABLE, table), ids)
    levels, scale = quantize_rows(table)
    rows = g.node("Cast", g.node("Gather", g.weight(TOKEN_TABLE, levels), ids), to=TensorProto.FLOAT)
    return g.node("Mul", rows, g.node("Gather", g.weight(f"{TOKEN_TABLE}.scale", scale), ids))


def first_positions(g: Graph, table: NDArray) -> str:
    """The first t rows of the table of positions, for ids [n, t]: [t, width]."""
    positions = g.weight("positions", table)
    length = g.node(
        "Slice", g.node("Shape", "ids"), *(g.constant(k, np.array([v])) for k, v in (("one", 1), ("two", 2)))
    )
    return g.node("Slice", positions, g.constant("zero", np.array([0])), length)


def patch_rows(g: Graph, filters: NDArray, bias: NDArray | None = None) -> str:
    """The convolution of `pixels` by filters [width, 3, patch, patch]: [n, patches, width]."""
    width, patch = len(filters), filters.shape[-1]
    weights = [g.weight("patches", filters)] + ([] if bias is None else [g.weight("patches.bias", bias)])
    x = g.node("Conv", "pixels", *weights, strides=[patch] * 2, kernel_shape=[patch] * 2)
    x = g.node("Reshape", x, g.constant("by_patch", np.array([0, width, -1])))
    return g.node("Transpose", x, perm=[0, 2, 1])


def one_row_each(g: Graph, row: str, width: int) -> str:
    """A row of `width` numbers for each image of `pixels`: [n, 1, width]."""
    n = g.node(
        "Slice", g.node("Shape", "pixels"), *(g.constant(k, np.array([v])) for k, v in (("zero", 0), ("one", 1)))
    )
    return g.node("Expand", row, g.node("Concat", n, g.constant("one_row", np.array([1, width])), axis=0))


def ids_input() -> onnx.ValueInfoProto:
    """The input of a text tower: `ids` [n, t] int64."""
    return helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "t"])


def pixels_input(side: int) -> onnx.ValueInfoProto:
    """The input of an image tower: `pixels` [n, 3, side, side] float32."""
    return helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, side, side])


def write_probe(graph: Path) -> None:
    """The graph that towers.multiplies_signed runs: x [n, width] float32 by a matrix of the largest signed level."""
    g = Graph(graph)
    levels = g.constant("levels", np.full((PROBE_WIDTH, PROBE_WIDTH), PROBE_LEVEL, np.int8))
    scale = g.constant("scale", np.ones(PROBE_WIDTH, np.float32))
    zero_point = g.constant("zero_point", np.zeros(PROBE_WIDTH, np.int8))
    g.node("Identity", g.fused("DynamicQuantizeMatMul", "x", levels, scale, zero_point), outputs=["embedding"])
    g.finish("probe", helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", PROBE_WIDTH]), PROBE_WIDTH)
