"""Puts a finished model directory in place, so that a bake killed at any moment leaves none that opens half.

It is written to a fresh folder beside the target, renamed at the end, and given its manifest.json last.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from .. import model_dir
from ..errors import CheckpointError
from ..model_dir import Manifest

MANIFEST_PART = f"{model_dir.MANIFEST}.part"  # the manifest until all files are in place


def check_target(to: Path, force: bool) -> None:
    """Raises CheckpointError if `to` exists and `force` is not given, or if it is no model directory."""
    if not to.exists():
        return
    if not force:
        raise CheckpointError(f"{to} is there already; --force replaces it, --to bakes to another folder")
    known = {*model_dir.FILES, *model_dir.BYTE_PAIRS, *sum(model_dir.TOKENIZER_FILES.values(), ())}
    known |= {model_dir.MANIFEST, model_dir.LABELS, MANIFEST_PART}
    known |= {f"{tower}{end}" for tower in ("text", "image") for end in model_dir.EIGHT_BIT_SUFFIXES}
    if not to.is_dir() or {file.name for file in to.iterdir()} - known:
        raise CheckpointError(f"{to} is there and is no model directory; --force replaces only those")


@contextmanager
def work_folder(to: Path) -> Iterator[Path]:
    """A fresh folder beside `to`, removed at the end. Raises CheckpointError if something cannot be written."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{to.name}.baking-", dir=to.parent))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        where, why = error.filename or to, error.strerror or error
        make_room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise CheckpointError(
            f"{where} cannot be written: {why}; {make_room}choose another folder with --to"
        ) from error


def install(work: Path, to: Path, manifest: Manifest) -> None:
    """Rename `work` to `to`, keep the label sets of `to`, and write the manifest last.

    If that fails, `to` is as it was. If the process is killed in between, the old directory is in `.NAME.before-...`.
    """
    copy_label_sets(to, work)
    work.chmod(0o755)  # mkdtemp makes it private; a server may run as another user
    (work / MANIFEST_PART).write_text(manifest.to_json(), encoding="utf-8")
    before = Path(tempfile.mkdtemp(prefix=f".{to.name}.before-", dir=to.parent)) / to.name if to.exists() else None
    try:
        if before:
            to.rename(before)
        work.rename(to)
        (to / MANIFEST_PART).rename(to / model_dir.MANIFEST)
    except BaseException:
        if to.exists() and (to / MANIFEST_PART).exists():
            to.rename(work)
        if before:
            if before.exists():
                before.rename(to)
            before.parent.rmdir()
        raise
    if before:
        shutil.rmtree(before.parent, ignore_errors=True)


def copy_label_sets(to: Path, work: Path) -> None:
    """Copy the label sets of `to` to `work`. A move would lose them if the bake were killed."""
    if (to / model_dir.LABELS).is_dir():
        shutil.copytree(to / model_dir.LABELS, work / model_dir.LABELS, ignore=shutil.ignore_patterns(".*"))


def utc_now() -> str:
    """The time in UTC, ISO 8601; that of SOURCE_DATE_EPOCH if it is set, for builds that must give the same bytes."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
