"""Where a model's files come from: a folder or the hub, and the base of an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from vlsi_cache.errors import ModelError, VlsiCacheError, first_line
from vlsi_cache.foldercontents import find_folder_contents
from vlsi_cache.limits import raise_limit
from vlsi_cache.models.loading.adapters import find_adapter
from vlsi_cache.models.loading.smallfiles import CONFIG_FILE
from vlsi_cache.recipe import at_home, is_there, validate_model_folder
from vlsi_cache.recipe.modelnames import validate_model_files
from vlsi_cache.recipe.onhub import validate_on_hub

__all__ = [
    "base_of",
    "find_folder",
    "loaded_folder",
    "local_copy",
    "model_errors",
    "no_model",
]


def base_of(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return the model whose weights are read, and its revision: an adapter's base, or itself."""
    adapter = find_adapter(find_folder(name, revision))
    return (name, revision) if adapter is None else (adapter.base, None)


def find_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder of a model, or None for a model on the hub or in the hub's local cache."""
    path = Path(at_home(name))
    if name.strip() and is_there(path) and path.is_dir():
        if revision is not None:
            raise ModelError(
                "a folder has no revisions",
                where=name,
                found=f"revision {revision}",
                mend="Leave the revision out, or give the name on the Hugging Face hub",
            )
        validate_model_files(path)
        return path
    if name.endswith(".gguf"):
        raise _gguf_error(name, path.name)
    validate_model_folder(name)
    if try_to_load_from_cache(name, CONFIG_FILE, revision=revision) is None:
        validate_on_hub(name, revision)
    return None


def loaded_folder(source: str, config: PreTrainedConfig) -> Path | None:
    """The folder that weights were loaded from: the source, or the hub's local copy of it."""
    path = Path(source)
    if path.is_dir():
        return path
    commit = getattr(config, "_commit_hash", None)
    found = try_to_load_from_cache(source, CONFIG_FILE, revision=commit)
    return Path(found).parent if isinstance(found, str) else None


def local_copy(
    name: str, revision: str | None = None, files: Sequence[str] = (CONFIG_FILE,)
) -> Path | None:
    """The folder of a model, or of the copy of it in the hub's local cache. None without a copy.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        files: names of files, any of which shows where the copy lies.
    """
    path = Path(at_home(name))
    if name.strip() and is_there(path) and path.is_dir():
        return path
    for file in files:
        found = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def no_model(folder: Path, name: str) -> ModelError:
    """Return the error that refuses a folder without a configuration."""
    quantised = sorted(path.name for path in folder.glob("*.gguf"))
    if quantised:
        return _gguf_error(name, quantised[0])
    return ModelError(
        "the folder holds no model",
        where=name,
        expected=CONFIG_FILE,
        found=find_folder_contents(folder).words,
        mend="Give the folder that save_pretrained wrote",
    )


@contextmanager
def model_errors(name: str, what: str) -> Iterator[None]:
    """Turn errors of transformers and safetensors on bad folders and names into ``ModelError``."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            what, where=name, found=error, mend="Copy the checkpoint again: it is damaged"
        ) from error
    except VlsiCacheError:
        raise
    except Exception as error:
        raise_limit(error)
        # Anything, because a configuration's fields are used wherever the family's code uses them.
        raise ModelError(what, where=name, found=_problem(error)) from error


def _problem(error: Exception) -> str:
    """The first line of an error, and of what it goes back to if it ends in a colon."""
    line = first_line(error)
    if isinstance(error, KeyError):
        return f"{line}, which transformers does not know"
    cause = error.__cause__
    return f"{line} {cause}" if line.endswith(":") and cause is not None else line


def _gguf_error(name: str, file: str) -> ModelError:
    return ModelError(
        "GGUF files are not read",
        where=name,
        expected="a folder with config.json and safetensors weights",
        found=file,
        mend="Give the model that it was made from. Or rebuild one, with its tokenizer: "
        f"AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file={file!r}).save_pretrained(NEW)",
    )
