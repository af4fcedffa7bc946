"""Fetches a checkpoint from the Hugging Face hub by huggingface_hub: only the files that a bake needs.

HF_ENDPOINT, HF_TOKEN and HF_HOME mean what they mean everywhere. A file that was fetched stays in the hub's cache; one
whose connection broke goes on from there, but only within a run: huggingface_hub keeps no part of a file (2.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import CheckpointError
from ..model_dir import sha256_of
from . import checkpoint


def fetch(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Folder of the fetched files, and their commit. Each is as long as the hub says, and weights have its sha256.

    Raises CheckpointError with a sentence for no network, no such repository or revision, no leave, a damaged file, a
    full disk, or what turns out to be no CLIP before its weights are fetched.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download

    def get(path: str) -> Path:
        if path not in files:
            raise CheckpointError(f"{source}: the hub has no {path} in it; {checkpoint.LAYOUTS}")
        with reasons(source, revision):
            fetched = Path(hf_hub_download(source, path, revision=info.sha))
        check_whole(fetched, files[path], source)
        return fetched

    with reasons(source, revision):
        # Without a timeout model_info waits for ever for a hub that does not answer.
        timeout_s = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().model_info(source, revision=revision, files_metadata=True, timeout=timeout_s)
    files = {file.rfilename: file for file in info.siblings or ()}
    root = get(checkpoint.MODULES if checkpoint.MODULES in files else checkpoint.CONFIG).parent
    with checkpoint.well_formed(source):
        folder = PurePosixPath(checkpoint.clip_folder(root, source))
        checkpoint.read_config(get(str(folder / checkpoint.CONFIG)), source)
        for path in needed_files(set(files), folder, get, source):
            get(path)
    return root, info.sha


def needed_files(names: set[str], folder: PurePosixPath, get: Callable[[str], Path], source: str) -> list[str]:
    """Which of a repository's files called `names` a bake needs, with the CLIP in `folder`. `get` fetches one."""
    there = {path.name for path in map(PurePosixPath, names) if path.parent == folder}
    weights = checkpoint.weight_files(
        there, lambda: checkpoint.read_shards(get(str(folder / checkpoint.SHARDS)), source)
    )
    if weights == [checkpoint.PICKLE]:
        checkpoint.need_torch(source)
    pair, other = checkpoint.TOKENIZER_FILES[:2], checkpoint.TOKENIZER_FILES[2:]
    wanted = [checkpoint.CONFIG, *(pair if there.issuperset(pair) else other)]
    wanted += [name for name in checkpoint.PREPROCESS_FILES if name in there][:1]
    wanted += weights if checkpoint.SAFETENSORS in there else [checkpoint.SHARDS, *weights]
    top = [name for name in (checkpoint.MODULES, checkpoint.NOTICE) if name in names]
    return top + [str(folder / name) for name in wanted if name in there]


def check_whole(fetched: Path, file, source: str) -> None:
    """Raises CheckpointError where a fetched file is not what the hub says of it.

    It is then gone from the cache, where else the next run would find it again.
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
        f"{source}: {file.rfilename} arrived damaged, {found} where the hub says {expected}; try again"
    )


@contextmanager
def reasons(source: str, revision: str | None) -> Iterator[None]:
    """Raises CheckpointError for what huggingface_hub 2.4 was seen to raise."""
    from huggingface_hub.errors import HTTPError  # httpx2's, or in huggingface_hub 1 httpx's: not all are wrapped

    try:
        yield
    except (HTTPError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{source}: {reason(error, revision)}") from error


def reason(error: BaseException, revision: str | None) -> str:
    """Why huggingface_hub failed and what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__  # itself it says only that the cache has not got it either
    match error:
        case errors.HFValidationError():
            return "neither a folder that is there nor a hub id such as owner/name"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or give a folder"
        case errors.GatedRepoError():
            return "the hub asks for leave to read it; accept its terms there and set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"the hub has no revision {revision!r} of it; expected a branch, a tag or a commit"
        case errors.RepositoryNotFoundError():
            return "the hub has no such model, or shows it only to some; check the id, or set HF_TOKEN"
        case errors.HfHubHTTPError(response=response):
            what_to_do = "check HF_TOKEN" if response.status_code in (401, 403) else "try again later"
            said = first_line(error.server_message or response.reason_phrase)
            return f"the hub answered {response.status_code}, {said}; {what_to_do}"
        case errors.HTTPError():
            return f"the connection to {constants.ENDPOINT} failed, {first_line(error)}; try again, or give a folder"
        case OSError(errno=int(), strerror=why):
            cache = constants.HF_HUB_CACHE
            return f"the hub's cache {cache} cannot be written, {why}; make room, or set HF_HOME to another folder"
        case ValueError() | KeyError() | TypeError():
            return f"what answers at {constants.ENDPOINT} is no hub; check HF_ENDPOINT"
    return f"fetching it failed, {first_line(error)}; try again"


def first_line(said: object) -> str:
    return str(said).strip().split("\n")[0] or type(said).__name__
