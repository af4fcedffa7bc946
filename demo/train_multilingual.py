"""Trains the demo's multilingual text tower on the demo model; writes its checkpoint in sentence-transformers' layout.

    python demo/train_multilingual.py [--steps 1000] [--to demo/multilingual]

It is a small DistilBERT with mean pooling and a Dense layer, as sentence-transformers/clip-ViT-B-32-multilingual-v1 is
over OpenAI's ViT-B/32: its texts are searched among vectors of the demo model, none of which is made again. It learns
emojibase's names and keywords of emoji, in 28 languages and varieties: a name has to come near the demo model's own
vectors of that emoji, of its English name and of its pictures; a keyword near those of the emoji that have it. The
style twemoji is never shown, and of each language one name in twelve is never read: both test what was learnt.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import CLIPModel, CLIPTokenizer, DistilBertConfig, DistilBertModel

from emoji import HELD_OUT, prepare, read_json
from languages import Names
from train import MEAN, STD, recall

HERE = Path(__file__).parent
VOCABULARY, POSITIONS, WIDTH, LAYERS, HIDDEN, HEADS = 16_000, 128, 128, 2, 256, 4
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # in the order of their ids
BATCH, SCALE = 256, 30.0  # texts a step; what cosines are multiplied by in the loss
FULL_RATE = 4e-3
KEPT = "demo_vectors.npz"  # in the folder of data
NOTICE = """\
This is the demo's multilingual text tower: a small DistilBERT trained on emojibase's names of emoji in 28 languages \
and varieties, over the demo model's pictures. It is not clip-ViT-B-32-multilingual-v1: it knows what emoji are called \
and little else. Its vectors mix with those of the demo model and of no other.
"""
MODULES = [
    {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for n, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")))
]
POOLING = {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
POOLING |= {"pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
DENSE = {"in_features": WIDTH, "out_features": 512, "bias": False}
DENSE |= {"activation_function": "torch.nn.modules.linear.Identity"}
TOKENIZER = {
    "tokenizer_class": "DistilBertTokenizer",
    "do_lower_case": True,
    "strip_accents": False,
    "tokenize_chinese_chars": True,
    "model_max_length": POSITIONS,
    **{f"{name}_token": token for name, token in zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL)},
}


def make_tokenizer(texts: list[str]) -> Tokenizer:
    """A WordPiece tokenizer trained on the texts, put together as transformers' BertTokenizer is."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    ends = [(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    return tokenizer


class Student(nn.Module):
    """DistilBERT, the mean over the tokens, Dense."""

    def __init__(self, vocabulary: int):
        super().__init__()
        config = DistilBertConfig(
            vocab_size=vocabulary, max_position_embeddings=POSITIONS, n_layers=LAYERS, n_heads=HEADS, dim=WIDTH,
            hidden_dim=HIDDEN, dropout=0.0, attention_dropout=0.0,
        )  # fmt: skip
        self.bert = DistilBertModel(config)
        self.dense = nn.Linear(WIDTH, DENSE["out_features"], bias=False)

    def forward(self, ids: list[list[int]]) -> torch.Tensor:
        """Unit embeddings [n, 512] of lists of token ids; those of like length go together, to pad little."""
        by_length = torch.tensor([len(i) for i in ids]).argsort()
        pooled = []
        for some in by_length.chunk(4):
            rows = nn.utils.rnn.pad_sequence([torch.tensor(ids[k]) for k in some], batch_first=True)
            mask = (rows != 0).float()
            states = self.bert(input_ids=rows, attention_mask=mask).last_hidden_state
            pooled.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return F.normalize(self.dense(torch.cat(pooled)[by_length.argsort()]), dim=-1)


class Teacher:
    """The demo model's vectors: of each emoji its name and its pictures in one, and the pictures never shown.

    They are kept in `data`, because they take longer than anything else before the first step.
    """

    def __init__(self, data: Path, checkpoint: Path):
        stored = read_json(data / "emoji.json")
        self.emoji, of = stored["emoji"], [tuple(p) for p in stored["pictures"]]
        if not (data / KEPT).exists():
            keep_vectors(data, checkpoint, [e["label"] for e in self.emoji])
        kept = np.load(data / KEPT)
        images, text = torch.from_numpy(kept["images"]), torch.from_numpy(kept["texts"])
        shown = [k for k, (_, style) in enumerate(of) if style != HELD_OUT]
        image = torch.zeros(len(text), 512).index_add(0, torch.tensor([of[k][0] for k in shown]), images[shown])
        self.both = F.normalize(F.normalize(text, dim=-1) + F.normalize(image, dim=-1), dim=-1)
        held_out = [k for k, (_, style) in enumerate(of) if style == HELD_OUT]
        self.unseen, self.unseen_of = images[held_out], torch.tensor([of[k][0] for k in held_out])


@torch.no_grad()
def keep_vectors(data: Path, checkpoint: Path, labels: list[str]) -> None:
    """Write the demo model's unit vectors of all labels and pictures to `data`."""
    clip, tokenizer = CLIPModel.from_pretrained(checkpoint).eval(), CLIPTokenizer.from_pretrained(checkpoint)
    texts = torch.zeros(len(labels), 512)
    for template in ("{}", "{} emoji", "a photo of a {}."):
        given = tokenizer([template.format(label) for label in labels], padding=True, return_tensors="pt")
        texts += F.normalize(clip.get_text_features(**given).pooler_output, dim=-1)
    pictures, images = np.load(data / "pictures.npy", mmap_mode="r"), []
    for k in range(0, len(pictures), 64):
        rgba = torch.from_numpy(np.array(pictures[k : k + 64])).permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(rgba[:, :3] + 1 - rgba[:, 3:], size=(224, 224), mode="bilinear", align_corners=False)
        images.append(F.normalize(clip.get_image_features(pixel_values=(x - MEAN) / STD).pooler_output, dim=-1))
    np.savez(data / KEPT, texts=texts.numpy(), images=torch.cat(images).numpy())


def loss_of(student: torch.Tensor, teacher: Teacher, fits: torch.Tensor) -> torch.Tensor:
    """Cross entropy with the emoji that fit, evenly, and the way to the mean of their vectors."""
    target = fits / fits.sum(1, keepdim=True)
    entropy = -(target * (SCALE * student @ teacher.both.T).log_softmax(1)).sum(1).mean()
    near = F.normalize(target @ teacher.both, dim=-1)
    return entropy + 2 * (1 - (student * near).sum(1).mean())


def save(student: Student, tokenizer: Tokenizer, to: Path) -> None:
    """Write the checkpoint, float16."""
    for folder in (to, to / "1_Pooling", to / "2_Dense"):
        folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in student.bert.state_dict().items()}
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    save_file({"linear.weight": student.dense.weight.detach().half()}, to / "2_Dense/model.safetensors")
    config = student.bert.config.to_dict() | {"architectures": ["DistilBertModel"], "dtype": "float32"}
    files = {
        "modules.json": MODULES, "config.json": config, "tokenizer_config.json": TOKENIZER,
        "sentence_bert_config.json": {"max_seq_length": POSITIONS, "do_lower_case": False},
        "1_Pooling/config.json": POOLING, "2_Dense/config.json": DENSE,
    }  # fmt: skip
    for name, content in files.items():
        (to / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    tokenizer.save(str(to / "tokenizer.json"), pretty=False)
    (to / "NOTICE.txt").write_text(NOTICE)


def rate(progress: float) -> float:
    """Share of the full learning rate: a short rise, then a cosine down to 2 %."""
    return min(1, (progress + 0.002) / 0.05) * (0.5 * (1 + math.cos(math.pi * progress)) * 0.98 + 0.02)


@torch.no_grad()
def measure(student: Student, tokenizer: Tokenizer, teacher: Teacher, names: Names) -> str:
    """Recall of the held-out names among the pictures of the style that is never shown, for some languages."""
    told = []
    for language in ("de", "fr", "hi", "ja", "ru", "th"):
        asked = {name: i for name, i in names.held_out[language].items() if i in teacher.unseen_of}
        similarities = student([e.ids for e in tokenizer.encode_batch([*asked])]) @ teacher.unseen.T
        right = torch.tensor([(teacher.unseen_of == i).nonzero()[0, 0] for i in asked.values()])
        told.append(f"{language} {recall(similarities, right)[:2]}")
    return f"held-out names, top-1/5 %: {', '.join(told)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--to", type=Path, default=HERE / "multilingual")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    if not (args.data / "emoji.json").exists():
        prepare(args.data)
    teacher = Teacher(args.data, HERE / "checkpoint")
    names = Names(args.data, [e["codepoints"] for e in teacher.emoji])
    tokenizer = make_tokenizer(names.texts())
    student = Student(tokenizer.get_vocab_size())
    held_out = sum(map(len, names.held_out.values()))
    print(f"{len(names.names):,} names, {len(names.keywords):,} keywords, {held_out:,} names held out", flush=True)
    print(f"{sum(p.numel() for p in student.parameters()):,} parameters", flush=True)

    optimizer = torch.optim.AdamW(student.parameters(), lr=FULL_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    begun = time.monotonic()
    for step in range(args.steps):
        optimizer.param_groups[0]["lr"] = FULL_RATE * rate(step / args.steps)
        texts, fitting = names.some(BATCH)
        fits = torch.zeros(BATCH, len(teacher.emoji))
        for row, some in enumerate(fitting):
            fits[row, some] = 1
        loss = loss_of(student([e.ids[:POSITIONS] for e in tokenizer.encode_batch(texts)]), teacher, fits)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            left_s = (time.monotonic() - begun) / (step + 1) * (args.steps - step)
            print(f"step {step}/{args.steps}, loss {loss.item():.3f}, {left_s / 60:.1f} min left", flush=True)
        if step % 300 == 299 or step == args.steps - 1:
            print(measure(student, tokenizer, teacher, names), flush=True)
            save(student, tokenizer, args.to)
    size_bytes = sum(f.stat().st_size for f in args.to.rglob("*") if f.is_file())
    minutes, core_minutes = (time.monotonic() - begun) / 60, time.process_time() / 60
    print(f"{args.to}: {size_bytes / 1e6:.1f} MB, {minutes:.0f} minutes, {core_minutes:.0f} core-minutes")


if __name__ == "__main__":
    main()
