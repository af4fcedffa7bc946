"""Fetches a checkpoint from the Hugging Face hub by huggingface_hub: only the files that a bake needs.

HF_ENDPOINT, HF_TOKEN and HF_HOME mean what they mean everywhere. What was fetched stays in the hub's cache, and a
download that broke off goes on from there.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from ..errors import CheckpointError
from . import checkpoint


def fetch(source: str, revision: str | None) -> tuple[Path, str, dict[str, str]]:
    """Folder of the fetched files, the commit they are from, and the sha256 that the hub says of them, by path.

    Raises CheckpointError with a sentence for no network, no such repository or revision, no leave, a short file or a
    full disk.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def get(path: str) -> Path:
        return Path(hf_hub_download(source, path, revision=commit))

    try:
        info = HfApi().model_info(source, revision=revision, files_metadata=True)
        commit, files = info.sha, {file.rfilename: file for file in info.siblings}
        for path in needed_files(set(files), lambda path: json.loads(get(path).read_text(encoding="utf-8"))):
            fetched, size = get(path), files[path].size
            if size is not None and fetched.stat().st_size != size:
                raise CheckpointError(f"{source}: {path} has {fetched.stat().st_size:,} bytes, the hub says {size:,}: fetch again")
    except HFValidationError as error:
        raise CheckpointError(f"{source!r} is neither a folder that is there nor a hub id such as owner/name") from error
    except GatedRepoError as error:
        raise CheckpointError(f"{source}: the hub asks for leave to read it; accept its terms there and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{source}: the hub has no revision {revision!r} of it") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{source}: the hub has no such model, or HF_TOKEN may not read it") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(f"{source}: the hub cannot be reached ({first_line(error)}); give a folder instead, or try again") from error
    except HfHubHTTPError as error:
        raise CheckpointError(f"{source}: the hub refused: {first_line(error)}") from error
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{source}: fetching failed: {first_line(error)}") from error
    return get_root(get, files), commit, {p: f.lfs.sha256 for p, f in files.items() if f.lfs}


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def get_root(get, files: dict) -> Path:
    """The folder of the snapshot: where a file of the top level lies, or the folder that a deeper one lies in, going up."""
    path = PurePosixPath(next(p for p in (checkpoint.MODULES, checkpoint.CONFIG) if p in files))
    return get(str(path)).parent


def needed_files(names: set[str], read) -> list[str]:
    """The files of a repository that a bake needs. `read` fetches one and reads its JSON."""
    prefix = ""
    if checkpoint.MODULES in names:
        modules = read(checkpoint.MODULES)
        prefix = modules[0].get("path", "") if len(modules) == 1 else ""  # more are refused later, with what they are
    folder = f"{prefix}/" if prefix else ""
    inside = {name[len(folder) :] for name in names if name.startswith(folder)}
    weights = checkpoint.weight_files(inside, lambda: read(folder + checkpoint.SHARDS))
    tokenizer = [n for n in checkpoint.TOKENIZER_FILES[:2] if n in inside]
    wanted = [checkpoint.CONFIG, *checkpoint.PREPROCESS_FILES, *(tokenizer if len(tokenizer) == 2 else checkpoint.TOKENIZER_FILES)]
    wanted += [checkpoint.SHARDS] if len(weights) > 1 else []
    top = [name for name in (checkpoint.MODULES, checkpoint.NOTICE) if name in names]
    return top + [folder + name for name in [*wanted, *weights] if name in inside]
