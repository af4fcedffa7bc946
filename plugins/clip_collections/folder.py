"""Lists the images of a folder and counts its other files. It embeds nothing.

The first bytes of a file tell if it is an image. A file with the suffix of an image is listed too, so that a broken
image is reported as an error.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from llm_clip_onnx.errors import InputError, cited, printable
from llm_clip_onnx.images.signatures import FTYP_BYTES, SUFFIXES, format_of

from .entry import Entry, FileState

# Thumbnails, trash and notes of Synology, QNAP, Windows and macOS. Those whose names begin with a dot are hidden files.
EXCLUDED = {
    ".*": "hidden",
    "@eaDir": "@eaDir",
    "@tmp": "@tmp",
    "#recycle": "#recycle",
    "#snapshot": "#snapshot",
    "@Recycle": "@Recycle",
    "@Recently-Snapshot": "@Recently-Snapshot",
    "@__thumb": "@__thumb",
    "$RECYCLE.BIN": "$RECYCLE.BIN",
    "System Volume Information": "System Volume Information",
    "__MACOSX": "__MACOSX",
    "Thumbs.db": "Thumbs.db",
    "desktop.ini": "desktop.ini",
}
# Raw photos of cameras are TIFF files whose first page may be a thumbnail.
RAW = [".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mos", ".nef", ".nrw", ".pef", ".sr2", ".srw"]
RAW_PHOTOS = {("TIFF", suffix) for suffix in RAW}
NAMED = 10  # kinds or names in a sentence; the others are counted


@dataclass
class Contents:
    """The contents of a folder and of the folders in it.

    entries: images, and files and folders that cannot be read with the reason. not_images: numbers by suffix.
    excluded: numbers of files and folders by pattern. unmatched: the patterns of --exclude that none of them matches.
    links: paths of links to folders, which are not followed.
    """

    entries: list[Entry] = field(default_factory=list)
    not_images: Counter[str] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)
    unmatched: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Sentences about what was left out: "12 files not looked at: 7 .tiff, 3 .mp4, 2 without a suffix"."""
        notes = []
        if count := self.not_images.total():
            notes.append(f"{count:,} file{'s' * (count > 1)} not looked at: {kinds(self.not_images)}")
        if count := self.excluded.total():
            notes.append(f"{count:,} excluded: {kinds(self.excluded)}")
        if self.unmatched:
            notes.append(f"nothing matches --exclude {', '.join(map(cited, self.unmatched))}")
        if count := len(self.links):
            names = [*map(printable, self.links[:NAMED]), *([f"{count - NAMED:,} others"] if count > NAMED else [])]
            notes.append(f"{count:,} link{'s' * (count > 1)} to a folder not followed: {', '.join(names)}")
        return notes


def kinds(counts: Counter[str]) -> str:
    """Numbers of each kind, the largest first: "7 .tiff, 3 .mp4"."""
    ordered = counts.most_common()
    shown = [f"{count:,} {printable(kind)}" for kind, count in ordered[:NAMED]]
    others = sum(count for _, count in ordered[NAMED:])
    return ", ".join([*shown, *([f"{others:,} others"] if others else [])])


def read_folder(folder: Path, exclude: Sequence[str] = (), newest_first: bool = False) -> Contents:
    """The contents of a folder; the id of an image is its path in it. Files come before the folders beside them.

    `exclude` are patterns beside those of EXCLUDED; see `excluding`. newest_first: the image modified last is first.
    """
    contents, pending = Contents(unmatched=list(dict.fromkeys(exclude))), [folder]
    patterns = EXCLUDED | {pattern: pattern for pattern in exclude}
    while pending:
        try:
            found = sorted(os.scandir(current := pending.pop()), key=lambda entry: entry.name)
        except OSError as error:
            name = current.relative_to(folder).as_posix()
            contents.entries.append(Entry(name, InputError(f"this folder cannot be read: {error.strerror}")))
            continue
        folders = [inner for file in found if (inner := add(contents, Path(file.path), folder, patterns))]
        pending += reversed(folders)
    if newest_first:
        contents.entries.sort(key=lambda entry: -entry.state.modified_ns if entry.state else 0)
    return contents


def add(contents: Contents, file: Path, folder: Path, patterns: dict[str, str]) -> Path | None:
    """Add a file to the contents of `folder`. A folder is not added but returned."""
    path = file.relative_to(folder).as_posix()
    if (pattern := excluding(path, patterns)) is not None:
        contents.excluded[patterns[pattern]] += 1
        contents.unmatched = [other for other in contents.unmatched if excluding(path, [other]) is None]
        return None
    try:
        status = file.stat()
        mode = status.st_mode
        if stat.S_ISDIR(mode) and file.is_symlink():
            contents.links.append(path)
        elif stat.S_ISDIR(mode):
            return file
        elif not stat.S_ISREG(mode):
            contents.not_images["of another kind (pipe, socket, device)"] += 1
        elif is_image(file):
            state = FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            contents.entries.append(Entry(path, file, None, state))
        else:
            contents.not_images[file.suffix.lower()[:20] or "without a suffix"] += 1
    except OSError as error:
        contents.entries.append(Entry(path, InputError(f"{file} cannot be read: {error.strerror}")))
    return None


def excluding(path: str, patterns: Iterable[str]) -> str | None:
    """The first pattern that a path in the folder, or its last name, matches; None if there is none.

    Patterns are the shell's: `*`, `?` and `[abc]`, where `*` matches slashes too. Small and capital letters are one. A
    slash at either end does not matter. What is in an excluded folder is excluded with it.
    """
    whole, name = path.lower(), path.rpartition("/")[2].lower()
    for pattern in patterns:
        wanted = pattern.lower().removeprefix("./").strip("/")
        if fnmatchcase(name, wanted) or fnmatchcase(whole, wanted):
            return pattern
    return None


def is_image(file: Path) -> bool:
    """True if a file begins as an image or is named as one. Raises OSError."""
    with file.open("rb") as stream:
        begins_as, suffix = format_of(stream.read(FTYP_BYTES)), file.suffix.lower()
    return suffix in SUFFIXES or (begins_as is not None and (begins_as, suffix) not in RAW_PHOTOS)
