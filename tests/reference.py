"""CLIP's forward pass in plain numpy, to be read beside model.py of openai/CLIP: same classes, same order, same names.

Behind it DistilBERT's, to be read beside modeling_distilbert.py of transformers, with a checkpoint's own names.

The oracle of the tests: it imports nothing of ours and computes in float64. `openai_names` renames a Hugging Face
checkpoint's tensors to OpenAI's, joining q, k and v into in_proj as there. SigLIP is below, of the same blocks; it is to
be read beside modeling_siglip.py of transformers, and vit.py and two_towers.py of google-research/big_vision.
"""

import math

import numpy as np


def openai_names(hf):
    """Tensors by their names in openai/CLIP, float64, from those of a Hugging Face checkpoint."""
    sd = {
        "token_embedding.weight": hf["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": hf["text_model.embeddings.position_embedding.weight"],
        "text_projection": hf["text_projection.weight"].T,
        "ln_final.weight": hf["text_model.final_layer_norm.weight"],
        "ln_final.bias": hf["text_model.final_layer_norm.bias"],
        "visual.class_embedding": hf["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": hf["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": hf["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": hf["visual_projection.weight"].T,
    }
    for ours, theirs in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
    ):
        sd |= {f"{ours}.{end}": hf[f"{theirs}.{end}"] for end in ("weight", "bias")}
    return float64(sd | blocks(hf))


def blocks(hf):
    """The transformers of both towers by OpenAI's names, from those of a Hugging Face checkpoint of CLIP or SigLIP."""
    sd = {}
    for ours, theirs in (("transformer", "text_model.encoder"), ("visual.transformer", "vision_model.encoder")):
        n = 0
        while f"{theirs}.layers.{n}.layer_norm1.weight" in hf:
            block, layer = f"{ours}.resblocks.{n}", f"{theirs}.layers.{n}"
            for end in ("weight", "bias"):
                sd[f"{block}.attn.in_proj_{end}"] = np.concatenate(
                    [hf[f"{layer}.self_attn.{p}_proj.{end}"] for p in "qkv"]
                )
                for a, b in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    sd[f"{block}.{a}.{end}"] = hf[f"{layer}.{b}.{end}"]
            n += 1
    return sd


def float64(sd):
    return {name: np.asarray(tensor, np.float64) for name, tensor in sd.items()}


def layer_norm(x, sd, name, eps=1e-5):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * sd[f"{name}.weight"] + sd[f"{name}.bias"]


def quick_gelu(x):
    return x * (1 / (1 + np.exp(-1.702 * x)))


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh(x):
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(x, sd, name, heads, attn_mask, query=None):
    """nn.MultiheadAttention on one sequence [t, width], of itself or of a query [q, width]."""
    width = x.shape[1]
    matrices, biases = np.split(sd[f"{name}.in_proj_weight"], 3), np.split(sd[f"{name}.in_proj_bias"], 3)
    inputs = (x if query is None else query, x, x)
    q, k, v = (rows @ matrix.T + bias for rows, matrix, bias in zip(inputs, matrices, biases))
    out = np.empty_like(q)
    for h in range(heads):
        part = slice(h * width // heads, (h + 1) * width // heads)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width // heads) + attn_mask  # [q, t]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
    return out @ sd[f"{name}.out_proj.weight"].T + sd[f"{name}.out_proj.bias"]


def transformer(x, sd, name, heads, act, attn_mask, eps=1e-5):
    n = 0
    while f"{name}.resblocks.{n}.ln_1.weight" in sd:
        block = f"{name}.resblocks.{n}"
        x = x + attention(layer_norm(x, sd, f"{block}.ln_1", eps), sd, f"{block}.attn", heads, attn_mask)
        normed = layer_norm(x, sd, f"{block}.ln_2", eps)
        hidden = act(normed @ sd[f"{block}.mlp.c_fc.weight"].T + sd[f"{block}.mlp.c_fc.bias"])
        x = x + hidden @ sd[f"{block}.mlp.c_proj.weight"].T + sd[f"{block}.mlp.c_proj.bias"]
        n += 1
    return x


def encode_text(sd, ids, heads, act=quick_gelu):
    """The embedding [embed_dim] of one text's ids, padded with zeros to the context length as openai/CLIP does."""
    context_length = len(sd["positional_embedding"])
    text = np.zeros(context_length, np.int64)
    text[: len(ids)] = ids
    x = sd["token_embedding.weight"][text] + sd["positional_embedding"]  # [77, width]
    mask = np.triu(np.full((context_length, context_length), -np.inf), 1)
    x = transformer(x, sd, "transformer", heads, act, mask)
    x = layer_norm(x, sd, "ln_final")
    return x[text.argmax()] @ sd["text_projection"]  # the end of the text has the highest id


def encode_image(sd, pixels, heads, act=quick_gelu):
    """The embedding [embed_dim] of one image's pixels [3, side, side]."""
    filters = sd["visual.conv1.weight"]  # [width, 3, patch, patch]
    patch, grid = filters.shape[-1], pixels.shape[-1] // filters.shape[-1]
    x = [sd["visual.class_embedding"]]
    for row in range(grid):
        for column in range(grid):
            window = pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            x.append((filters * window).sum((1, 2, 3)))
    x = np.stack(x) + sd["visual.positional_embedding"]  # [1 + grid ** 2, width]
    x = layer_norm(x, sd, "visual.ln_pre")
    x = transformer(x, sd, "visual.transformer", heads, act, 0.0)
    return layer_norm(x[0], sd, "visual.ln_post") @ sd["visual.proj"]


# SigLIP


def siglip_names(hf):
    """Tensors by OpenAI's names where CLIP has them, else by transformers' own, float64."""
    return float64(dict(hf) | blocks(hf))


def siglip_text(sd, ids, heads, act=gelu_tanh, eps=1e-6):
    """The embedding [embed_dim] of one text's ids, padded already: attention sees the padding, and the last is read."""
    assert len(ids) == len(sd["text_model.embeddings.position_embedding.weight"])
    x = sd["text_model.embeddings.token_embedding.weight"][ids]
    x = x + sd["text_model.embeddings.position_embedding.weight"]
    x = transformer(x, sd, "transformer", heads, act, 0.0, eps)
    x = layer_norm(x, sd, "text_model.final_layer_norm", eps)
    return x[-1] @ sd["text_model.head.weight"].T + sd["text_model.head.bias"]


def siglip_image(sd, pixels, heads, act=gelu_tanh, eps=1e-6):
    """The embedding [embed_dim] of one image's pixels [3, side, side]: of all patches, pooled by a learned probe."""
    filters = sd["vision_model.embeddings.patch_embedding.weight"]  # [width, 3, patch, patch]
    patch, grid = filters.shape[-1], pixels.shape[-1] // filters.shape[-1]
    x = []
    for row in range(grid):
        for column in range(grid):
            window = pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            x.append((filters * window).sum((1, 2, 3)) + sd["vision_model.embeddings.patch_embedding.bias"])
    x = np.stack(x) + sd["vision_model.embeddings.position_embedding.weight"]  # [grid ** 2, width]
    x = transformer(x, sd, "visual.transformer", heads, act, 0.0, eps)
    x = layer_norm(x, sd, "vision_model.post_layernorm", eps)
    return map_head(x, sd, "vision_model.head", heads, act, eps)


def map_head(x, sd, name, heads, act, eps):
    """MAPHead, multihead attention pooling: x [t, width] to [width]."""
    probe = sd[f"{name}.probe"][0]  # [1, width]
    x = attention(x, sd, f"{name}.attention", heads, 0.0, query=probe)
    hidden = act(
        layer_norm(x, sd, f"{name}.layernorm", eps) @ sd[f"{name}.mlp.fc1.weight"].T + sd[f"{name}.mlp.fc1.bias"]
    )
    return (x + hidden @ sd[f"{name}.mlp.fc2.weight"].T + sd[f"{name}.mlp.fc2.bias"])[0]


# DistilBERT


def embed_distilbert(sd, dense, ids, heads, act=gelu):
    """The embedding of one text's ids by DistilBertModel, the mean over its tokens, and the Dense matrix `dense`.

    sd: the checkpoint's tensors. Pooling divides by the number of tokens, of which none is padding here.
    """
    sd = {name: np.asarray(tensor, np.float64) for name, tensor in sd.items()}

    def lin(x, name):
        return x @ sd[f"{name}.weight"].T + sd[f"{name}.bias"]

    x = sd["embeddings.word_embeddings.weight"][ids] + sd["embeddings.position_embeddings.weight"][: len(ids)]
    x = layer_norm(x, sd, "embeddings.LayerNorm", 1e-12)
    n = 0
    while f"transformer.layer.{n}.sa_layer_norm.weight" in sd:
        block = f"transformer.layer.{n}"
        q, k, v = (lin(x, f"{block}.attention.{part}_lin") for part in "qkv")
        width = x.shape[1] // heads
        contexts = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = q[:, part] / math.sqrt(width) @ k[:, part].T
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            contexts.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        sa_output = lin(np.concatenate(contexts, -1), f"{block}.attention.out_lin")
        sa_output = layer_norm(sa_output + x, sd, f"{block}.sa_layer_norm", 1e-12)
        ffn_output = lin(act(lin(sa_output, f"{block}.ffn.lin1")), f"{block}.ffn.lin2")
        x = layer_norm(ffn_output + sa_output, sd, f"{block}.output_layer_norm", 1e-12)
        n += 1
    return np.asarray(dense, np.float64) @ x.mean(0)
