"""Fetches a checkpoint from the Hugging Face hub by huggingface_hub: only the files that a bake needs.

HF_ENDPOINT, HF_TOKEN and HF_HOME mean what they mean everywhere. A fetched file stays in the hub's cache. A broken
download goes on where it stopped, but only within a run, because huggingface_hub 2.4 keeps no part of a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import CheckpointError, cited, shortened
from ..model_dir import sha256_of
from . import layout
from .families import in_transformers, is_open_clip, open_clip, text_tower
from .keys import CONFIG, MODULES


def fetch(source: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of the fetched files, and their commit. Sizes, and the sha256 of weights, are checked.

    Raises CheckpointError for no network, no such repository or revision, no permission, a damaged file, a full disk,
    and, before its weights are fetched, for a checkpoint that is no CLIP.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download

    def get(path: str) -> Path:
        if path not in files:
            raise CheckpointError(f"{source}: the hub has no {shortened(path)} in it; {layout.LAYOUTS}")
        with as_checkpoint_error(source, revision):
            fetched = Path(hf_hub_download(source, path, revision=info.sha))
        check_complete(fetched, files[path], source)
        return fetched

    with as_checkpoint_error(source, revision):
        # Without a timeout model_info waits forever for a hub that does not answer.
        timeout_s = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().model_info(source, revision=revision, files_metadata=True, timeout=timeout_s)
    files = {file.rfilename: file for file in info.siblings or ()}
    root = get(next((name for name in (MODULES, CONFIG, open_clip.CONFIG) if name in files), CONFIG)).parent
    with layout.as_checkpoint_error(source):
        if open_clip.CONFIG in files and MODULES not in files:
            get(open_clip.CONFIG)
        if text_tower.has_several_modules(root, source):
            paths = text_tower.needed_files(root, set(files), get, source)
        elif is_open_clip(root, source):
            paths = open_clip.needed_files(set(files), root / open_clip.CONFIG, source)
        else:
            folder = PurePosixPath(layout.clip_folder(root, source))
            config = get(str(folder / CONFIG))
            in_transformers(root, source).read_config(config, source)
            paths = layout.needed_files(set(files), folder, get, source)
        for path in paths:
            get(path)
    return root, info.sha


def check_complete(fetched: Path, file, source: str) -> None:
    """Raises CheckpointError if a fetched file has another size or sha256 than the hub says.

    The file is then deleted from the cache, so that the next run does not find it again.
    """
    size = fetched.stat().st_size
    if file.size is not None and size != file.size:
        found, expected = f"{size:,} bytes", f"{file.size:,}"
    elif file.lfs and (sha256 := sha256_of(fetched)) != file.lfs.sha256:
        found, expected = f"sha256 {sha256[:12]}...", f"{file.lfs.sha256[:12]}..."
    else:
        return
    for path in (fetched.resolve(), fetched):  # the cache links to where it keeps the bytes
        path.unlink(missing_ok=True)
    raise CheckpointError(
        f"{source}: {shortened(file.rfilename)} arrived damaged, {found} where the hub says {expected}; try again"
    )


@contextmanager
def as_checkpoint_error(source: str, revision: str | None) -> Iterator[None]:
    """Turn the exceptions that huggingface_hub 2.4 was seen to raise into a CheckpointError."""
    from huggingface_hub.errors import HTTPError  # httpx2's, or in huggingface_hub 1 httpx's: not all are wrapped

    try:
        yield
    except (HTTPError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{source}: {reason(error, revision)}") from error


def reason(error: BaseException, revision: str | None) -> str:
    """Why huggingface_hub failed, and what to do about it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # its own message says only that the file is not in the cache
    match error:
        case errors.HFValidationError():
            return "neither a folder that is there nor a hub id such as owner/name"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or give a folder"
        case errors.GatedRepoError():
            return "the hub asks for permission to read it; accept its terms there and set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"the hub has no revision {cited(revision)} of it; expected a branch, a tag or a commit"
        case errors.RepositoryNotFoundError():
            return "the hub has no such model, or shows it only to some; check the id, or set HF_TOKEN"
        case errors.HfHubHTTPError(response=response):
            what_to_do = "check HF_TOKEN" if response.status_code in (401, 403) else "try again later"
            message = first_line(error.server_message or response.reason_phrase)
            return f"the hub answered {response.status_code}, {message}; {what_to_do}"
        case errors.HTTPError():
            return f"the connection to {constants.ENDPOINT} failed, {first_line(error)}; try again, or give a folder"
        case OSError(errno=int(), strerror=why):
            cache = constants.HF_HUB_CACHE
            return f"the hub's cache {cache} cannot be written, {why}; make room, or set HF_HOME to another folder"
        case ValueError() | KeyError() | TypeError():
            return f"what answers at {constants.ENDPOINT} is no hub; check HF_ENDPOINT"
    return f"fetching it failed, {first_line(error)}; try again"


def first_line(message: object) -> str:
    return shortened(str(message).strip().split("\n")[0]) or type(message).__name__
