"""Trains the demo CLIP on emoji pictures and writes its checkpoint: float16 safetensors, Hugging Face layout.

    python demo/train.py [--steps 4000] [--to demo/checkpoint]

The image tower is trained at 56 pixels with patches of 8, and its patch convolution is then stretched to 224 pixels
with patches of 32: each weight repeated 4x4 and divided by 16, which is the same function of a picture four times as
large. Three losses: every caption against every picture of the batch that fits it, both ways; every picture and
caption against one learnt prototype per emoji, thrown away afterwards. Rows of the token table that no caption can use
stay exactly zero, so that the file compresses.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from captions import Captions
from emoji import HELD_OUT, prepare

HERE = Path(__file__).parent
SIDE, PATCH, STRETCH = 56, 8, 4  # pixels trained on; times STRETCH in the checkpoint
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
NOTICE = """\
This is the demo model: a small CLIP trained on emoji art, so that everything can be shown where no model hub is in \
reach. It is not OpenAI's CLIP: it knows emoji and little else, and its vectors do not mix with those of any other \
model.
"""
PREPROCESSING = {  # as every OpenAI checkpoint says it
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": SIDE * STRETCH},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": SIDE * STRETCH, "width": SIDE * STRETCH},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
TOKENIZER = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": 77,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
EMOJI_PER_STEP, VIEWS, CAPTIONS_PER_VIEW = 128, 2, 2
ROWS, END, LONGEST = 49408, 49407, 24  # token table, <|endoftext|>, ids of a caption in training


def config(side: int, patch: int) -> CLIPConfig:
    text = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 3}
    text |= {"bos_token_id": END - 1, "eos_token_id": END, "pad_token_id": END}
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 6}
    vision |= {"image_size": side, "patch_size": patch}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)


def clip_tokenizer(data: Path, to: Path) -> Tokenizer:
    """CLIP's tokenizer, from the merges that the PyPI package open-clip-torch carries; saved in `to`."""
    if not list(data.glob("open_clip_torch-*.whl")):
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(data), "open-clip-torch==3.3.0"],
            check=True,
        )
    with zipfile.ZipFile(next(data.glob("open_clip_torch-*.whl"))) as wheel:
        text = gzip.decompress(wheel.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode()
    merges = text.split("\n")[1 : ROWS - 512 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    tokens = (
        letters
        + [c + "</w>" for c in letters]
        + [m.replace(" ", "") for m in merges]
        + ["<|startoftext|>", "<|endoftext|>"]
    )
    (to / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, separators=(",", ":")))
    (to / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (to / "tokenizer_config.json").write_text(json.dumps(TOKENIZER, indent=1) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(to)
    assert len(tokenizer) == ROWS
    return tokenizer.backend_tokenizer


class Pictures:
    """The pictures as tensors: plain ones to measure on, changed ones to train on."""

    def __init__(self, pictures: np.ndarray, emoji: list[dict], of: list[tuple[int, str]]):
        self.rgba = torch.from_numpy(pictures).permute(0, 3, 1, 2)  # [n, 4, 80, 80] uint8, premultiplied
        self.may_flip = torch.tensor(
            [emoji[i]["group"] != "symbols" and not {"left", "right"} & set(emoji[i]["label"].split()) for i, _ in of]
        )

    def plain(self, ks: list[int]) -> torch.Tensor:
        """On white, resized: [n, 3, 56, 56] float32, normalised."""
        x = self.rgba[ks].float() / 255
        x = x[:, :3] + 1 - x[:, 3:]
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return (x.clamp(0, 1) - MEAN) / STD

    def changed(self, ks: list[int]) -> torch.Tensor:
        """Turned, scaled, moved, mirrored, recoloured, on a random ground: [n, 3, 56, 56] float32, normalised."""
        n, x = len(ks), self.rgba[ks].float() / 255

        def rand(*shape):
            return torch.rand(n, *shape)

        angle, scale = (rand() - 0.5) * math.radians(30), 1 / (0.72 + 0.4 * rand())
        mirror = torch.where((rand() < 0.3) & self.may_flip[ks], -1.0, 1.0) * (0.9 + 0.2 * rand())
        move = (rand(2) - 0.5) * 0.2
        c, s = angle.cos() * scale, angle.sin() * scale
        affine = torch.stack(
            [torch.stack([c * mirror, -s, move[:, 0]], 1), torch.stack([s * mirror, c, move[:, 1]], 1)], 1
        )
        grid = F.affine_grid(affine, [n, 4, SIDE, SIDE], align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", align_corners=False)
        alpha, rgb = x[:, 3:], x[:, :3] / x[:, 3:].clamp_min(1e-3)
        grey = rgb.mean(1, keepdim=True)
        rgb = (grey + (rgb - grey) * (0.7 + 0.6 * rand(1, 1, 1))) * (0.8 + 0.4 * rand(1, 1, 1))
        rgb = (rgb - 0.5) * (0.8 + 0.4 * rand(1, 1, 1)) + 0.5 + (rand(3, 1, 1) - 0.5) * 0.1
        kind = rand(1, 1, 1)
        light, any_colour = 0.75 + 0.25 * rand(3, 1, 1), rand(3, 1, 1)
        ground = torch.where(kind < 0.45, torch.ones(n, 3, 1, 1), torch.where(kind < 0.9, light, any_colour))
        x = rgb.clamp(0, 1) * alpha + ground * (1 - alpha)
        x = x + 0.015 * torch.randn(n, 1, 1, 1).abs() * torch.randn_like(x)
        if random.random() < 0.25:
            x = F.avg_pool2d(x, 3, 1, 1)
        return (x.clamp(0, 1) - MEAN) / STD


class DemoClip(nn.Module):
    """A CLIPModel whose token table holds only the rows in use, and one row of zeros for all the others."""

    def __init__(self, used: list[int]):
        super().__init__()
        self.clip = CLIPModel(config(SIDE, PATCH))
        text = self.clip.text_model
        self.used, width = torch.tensor(used), text.config.hidden_size
        text.embeddings.token_embedding = nn.Embedding(len(used) + 1, width, padding_idx=len(used))
        self.row = torch.full((ROWS,), len(used))
        self.row[self.used] = torch.arange(len(used))
        text.eos_token_id = int(self.row[END])
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                layers = 6 if "vision" in name else 3
                gain = (2 * layers) ** -0.5 if "out_proj" in name or "fc2" in name else 0.7
                p.normal_(0, p.shape[-1] ** -0.5 * gain if ".layers." in name else 0.05)
        for projection in (self.clip.visual_projection, self.clip.text_projection):
            projection.weight.normal_(0, projection.in_features**-0.5)
        table = self.clip.text_model.embeddings.token_embedding.weight
        table.normal_(0, 0.3)
        table[-1] = 0

    @torch.no_grad()
    def start_patches(self, pixels: torch.Tensor) -> None:
        """Patch filters that whiten the patches of `pixels`, and 2-d sine positions: it would find neither in time."""
        embeddings = self.clip.vision_model.embeddings
        filters = embeddings.patch_embedding.weight
        width, side = filters.shape[0], SIDE // PATCH
        patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
        variance, directions = torch.linalg.eigh(torch.cov(patches.T))
        whiten = (directions / (variance + 0.05 * variance.mean()).sqrt()).T.flip(0)[:width]
        mix = torch.linalg.qr(torch.randn(width, width)).Q
        filters.copy_((0.25 * mix @ whiten).view_as(filters))
        frequencies = 30 ** (-torch.arange(width // 4) / (width // 4))
        y, x = (
            p.reshape(-1, 1) * frequencies for p in torch.meshgrid(*[torch.arange(side).float()] * 2, indexing="ij")
        )
        embeddings.position_embedding.weight.zero_()
        embeddings.position_embedding.weight[1:] = 0.25 * torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], 1)

    def images(self, pixels: torch.Tensor, keep: float = 1.0) -> torch.Tensor:
        """Unit embeddings [n, 512] of pixels; with `keep` under 1 only that share of the patches is looked at."""
        tower = self.clip.vision_model
        x = tower.embeddings(pixels)
        if keep < 1:
            n, patches = x.shape[0], x.shape[1] - 1
            kept = torch.rand(n, patches).argsort(1)[:, : round(patches * keep)] + 1
            kept = torch.cat([torch.zeros(n, 1, dtype=torch.long), kept], 1)
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
        x = tower.encoder(inputs_embeds=tower.pre_layrnorm(x)).last_hidden_state
        return F.normalize(self.clip.visual_projection(tower.post_layernorm(x[:, 0])), dim=-1)

    def texts(self, ids: list[list[int]]) -> torch.Tensor:
        """Unit embeddings [n, 512] of lists of token ids; those of like length go together, to pad little."""
        by_length = torch.tensor([len(i) for i in ids]).argsort()
        pooled = []
        for some in by_length.chunk(6):
            longest = len(ids[some[-1]])
            rows = self.row[torch.tensor([ids[k] + [END] * (longest - len(ids[k])) for k in some])]
            pooled.append(self.clip.text_model(input_ids=rows).pooler_output)
        return F.normalize(self.clip.text_projection(torch.cat(pooled)[by_length.argsort()]), dim=-1)

    def stretched(self) -> CLIPModel:
        """The checkpoint's model: full token table, 224 pixels, patches of 32."""
        weights = {k: v.clone() for k, v in self.clip.state_dict().items()}
        table, filters = (
            "text_model.embeddings.token_embedding.weight",
            "vision_model.embeddings.patch_embedding.weight",
        )
        full = torch.zeros(ROWS, weights[table].shape[1])
        full[self.used] = weights[table][:-1]
        weights[table] = full
        weights[filters] = weights[filters].repeat_interleave(STRETCH, 2).repeat_interleave(STRETCH, 3) / STRETCH**2
        model = CLIPModel(config(SIDE * STRETCH, PATCH * STRETCH))
        model.load_state_dict(weights)
        return model


def save(model: DemoClip, to: Path) -> None:
    model.stretched().half().save_pretrained(to)
    saved = json.loads((to / "config.json").read_text())
    saved["dtype"] = "float32"  # what to compute in; the file is float16 only to be small
    (to / "config.json").write_text(json.dumps(saved, indent=1) + "\n")
    (to / "NOTICE.txt").write_text(NOTICE)
    (to / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING, indent=1) + "\n")


def add_noise(ids: list[int], unused: list[int]) -> list[int]:
    """A word or two that the model does not know, now and then, so that unknown words in a query disturb it less."""
    if random.random() < 0.15:
        for _ in range(random.choice([1, 1, 2])):
            ids = [*ids[: (at := random.randrange(1, len(ids)))], random.choice(unused), *ids[at:]]
    return ids if len(ids) <= LONGEST else [*ids[: LONGEST - 1], END]


def fit_loss(logits: torch.Tensor, fits: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each row's softmax against all columns that fit it, evenly."""
    count = fits.sum(1)
    loss = -(logits.log_softmax(1) * fits).sum(1) / count.clamp_min(1)
    return loss[count > 0].mean()


def recall(similarities: torch.Tensor, right: torch.Tensor) -> list[float]:
    """Percent of rows whose right column is among the first 1, 5, 10."""
    rank = (similarities > similarities.gather(1, right[:, None])).sum(1)
    return [round(100 * (rank < k).float().mean().item(), 1) for k in (1, 5, 10)]


def optimizers(model: DemoClip, prototypes: nn.Parameter) -> list[torch.optim.Optimizer]:
    matrices, decayed, free = [], [], [prototypes]
    for name, p in model.named_parameters():
        (free if p.ndim < 2 or "embedding" in name else matrices if ".layers." in name else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": free, "weight_decay": 0.0}]
    return [
        torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98)),
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]


def rate(progress: float) -> float:
    """Share of the full learning rate: a short rise, then a cosine down to 2 %."""
    return min(1, (progress + 0.002) / 0.06) * (0.5 * (1 + math.cos(math.pi * progress)) * 0.98 + 0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--to", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    args.to.mkdir(parents=True, exist_ok=True)

    if not (args.data / "emoji.json").exists():
        prepare(args.data)
    stored = json.loads((args.data / "emoji.json").read_text())
    emoji, of = stored["emoji"], [tuple(p) for p in stored["pictures"]]
    arrays = np.load(args.data / "pictures.npy")
    captions, pictures = Captions(emoji, arrays, of), Pictures(arrays, emoji, of)
    tokenizer = clip_tokenizer(args.data, args.to)
    labels = [e.ids for e in tokenizer.encode_batch([e["label"] for e in emoji])]
    used = sorted({i for e in tokenizer.encode_batch(sorted(captions.vocabulary())) for i in e.ids})
    unused = sorted(set(range(ROWS)) - set(used))
    fits = torch.from_numpy(captions.fits)

    held_out = [k for k, (_, style) in enumerate(of) if style == HELD_OUT]
    shown = torch.tensor([of[k][0] for k in held_out])
    by_emoji: dict[int, list[int]] = {}
    for k, (i, style) in enumerate(of):
        if style != HELD_OUT:
            by_emoji.setdefault(i, []).append(k)
    # what is true of an emoji: what holds for at least half of the pictures trained on
    true_of = torch.stack([fits[by_emoji[i]].float().mean(0) >= 0.5 for i in range(len(emoji))])  # [emoji, attributes]

    model = DemoClip(used)
    model.start_patches(pictures.plain(random.sample([k for ks in by_emoji.values() for k in ks], 1500)))
    prototypes = nn.Parameter(torch.randn(len(emoji), 512) * 0.05)
    optims = optimizers(model, prototypes)
    full_rates = [o.param_groups[0]["lr"] for o in optims]
    parameters = sum(p.numel() for p in model.stretched().parameters())
    print(f"{parameters:,} parameters, {len(used):,} of {ROWS:,} token rows trained")

    @torch.no_grad()
    def measure() -> str:
        images = torch.cat([model.images(pictures.plain(held_out[i : i + 256])) for i in range(0, len(held_out), 256)])
        texts = torch.cat([model.texts(labels[i : i + 256]) for i in range(0, len(labels), 256)])
        both = images @ texts.T
        to_image = recall(both.T[shown], torch.arange(len(shown)))
        return f"held-out style, top-1/5/10 %: image to text {recall(both, shown)}, text to image {to_image}"

    begun, queue, mean_loss = time.monotonic(), [], None
    for step in range(args.steps):
        progress = step / args.steps
        for o, full in zip(optims, full_rates):
            for group in o.param_groups:
                group["lr"] = full * rate(progress)
        if len(queue) < EMOJI_PER_STEP:
            queue += random.sample(sorted(by_emoji), len(by_emoji))
        now, queue = dict.fromkeys(queue[:EMOJI_PER_STEP]), queue[EMOJI_PER_STEP:]
        ks = [k for i in now for k in random.sample(by_emoji[i], min(VIEWS, len(by_emoji[i])))]
        texts, needs = zip(*(captions.write(k) for k in ks for _ in range(CAPTIONS_PER_VIEW)))
        ids = [add_noise(e.ids, unused) for e in tokenizer.encode_batch(list(texts))]
        held = fits[ks]
        fit = torch.stack([held[:, n].all(1) for n in needs], 1).float()  # [pictures, captions]
        emoji_fit = torch.stack([true_of[:, n].all(1) for n in needs]).float()  # [captions, emoji]

        image = model.images(pictures.changed(ks), keep=0.5 if progress < 0.85 else 1.0)
        text = model.texts(ids)
        scale = model.clip.logit_scale.clamp(max=math.log(100)).exp()
        logits, centres = scale * image @ text.T, F.normalize(prototypes, dim=-1)
        loss = (fit_loss(logits, fit) + fit_loss(logits.T, fit.T)) / 2
        own = torch.tensor([of[k][0] for k in ks])
        loss += F.cross_entropy(scale * image @ centres.T, own, label_smoothing=0.05) / 2
        loss += fit_loss(scale * text @ centres.T, emoji_fit) / 2
        for o in optims:
            o.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optims:
            o.step()
        mean_loss = loss.item() if mean_loss is None else 0.95 * mean_loss + 0.05 * loss.item()
        if step % 20 == 0:
            left_s = (time.monotonic() - begun) / (step + 1) * (args.steps - step)
            print(f"step {step}/{args.steps}, loss {mean_loss:.3f}, {left_s / 60:.0f} min left", flush=True)
        if step % 300 == 299 or step == args.steps - 1:
            print(measure(), flush=True)
            save(model, args.to)

    size_bytes = sum(f.stat().st_size for f in args.to.iterdir())
    minutes, core_minutes = (time.monotonic() - begun) / 60, time.process_time() / 60
    print(f"{args.to}: {size_bytes / 1e6:.1f} MB, {minutes:.0f} minutes, {core_minutes:.0f} core-minutes")


if __name__ == "__main__":
    main()
