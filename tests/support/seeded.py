"""Whole seeded runs whose every result is known beforehand; run as a script.

``python -m support.seeded FOLDER`` makes the runs in FOLDER and prints what came of them as JSON:
the golden values, if it is changed on purpose. It sees the library through its public API alone, so
that it outlives any change inside.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

__all__ = ["GOLDEN", "arithmetic", "make_runs"]

GOLDEN: Final = Path(__file__).parents[1] / "seeded" / "golden.json"

_PLAIN: Final = {
    "OMP_NUM_THREADS": "1",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL",
}
"""Kernels that most machines share: with them a run comes out alike on different processors."""

_PACKAGES: Final = (
    *("torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors"),
    *("zarr", "numcodecs", "numpy", "pillow"),
)

_STAYS: Final = {"inner_weight": 0.25}
"""The taps' weight of each, which stays: it was the default when the golden values were made."""
_LENS: Final = {"verbalizer": {"start": "logit_lens"}}
_RUNS: Final[dict[str, dict[str, Any]]] = {
    "text": {
        "images": False,
        "teacher": _LENS,
        "student": _LENS,
        "cache": {"k": 0, "m": 14, "drawn_from": "rest"},
        "interaction": _STAYS,
    },
    "images": {
        "images": True,
        "teacher": _LENS,
        "student": _LENS,
        "cache": {"samples_per_shard": 5, "batch_size": 2, "k": 4, "m": 4, "drawn_from": "rest"},
        "interaction": {"matching": {"granularity": "sample"}, **_STAYS},
    },
    "together": {
        "images": False,
        "num_samples": 8,
        "teacher": _LENS,
        "student": _LENS,
        "interaction": _STAYS,
    },
}
"""``text`` has draws alone, ``images`` likely tokens and draws of the rest, and the other run the
default record, both together."""


def make_runs(folder: Path) -> dict[str, Any]:
    """Make the runs in a process of their own.

    Returns:
        ``arithmetic``, which differs between machines that round differently, and for each run the
        digest of every ``file``, the ``journal`` and the ``weights``' sums.
    """
    done = subprocess.run(
        [sys.executable, "-m", "support.seeded", str(folder)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **_PLAIN},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def arithmetic() -> dict[str, str]:
    """How this machine rounds: versions, and the digest of a plain training without our code."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
    norm, head = nn.RMSNorm(32), nn.Linear(32, 160)
    parameters = [*block.parameters(), *norm.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    picture, patches = torch.randn(4, 3, 16, 16), nn.Conv2d(3, 32, 8, 8)
    for _ in range(3):
        read = norm(nn.functional.silu(block(patches(picture).flatten(2).transpose(1, 2))))
        loss = torch.log_softmax(head(read), -1).exp().square().sum().sqrt()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    trained = b"".join(parameter.detach().numpy().tobytes() for parameter in parameters)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return {
        **{name: version(name) for name in _PACKAGES},
        "training": _digest(trained),
        "compression": _digest(deflate.compress(trained) + deflate.flush()),
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _make(name: str, options: dict[str, Any]) -> dict[str, Any]:
    from safetensors.torch import load_file

    from support.runs import make_recipe
    from vlsi_cache import dump_teacher, train_student

    # a relative folder: the manifest names the teacher by its path
    recipe = make_recipe(Path(name), **options)
    dump_teacher(recipe)
    student = train_student(recipe)
    journal = (recipe.output / "interaction" / "matching.jsonl").read_text(encoding="utf-8")
    weights = load_file(student / "model.safetensors")
    return {
        "files": {path.as_posix(): _digest(_content(path)) for path in _results(recipe.output)},
        "journal": [json.loads(line) for line in journal.splitlines()],
        "weights": {name: float(value.double().abs().sum()) for name, value in weights.items()},
    }


def _results(output: Path) -> Iterator[Path]:
    """Every file that a run leaves, but for logs of when it was made, and cards for people."""
    for path in sorted(output.rglob("*")):
        is_log = "tensorboard" in path.parts or path.name.startswith((".", "metrics"))
        if path.is_file() and not is_log and path.name != "README.md":
            yield path


def _content(path: Path) -> bytes:
    """A file's bytes; of a stage's own record only what the stage was made with."""
    if path.name != "stage.json":
        return path.read_bytes()
    settings = json.loads(path.read_bytes())["settings"]
    return json.dumps(settings, sort_keys=True).encode()


def _main(folder: Path) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    os.chdir(folder)
    found = {"arithmetic": arithmetic()}
    found |= {name: _make(name, options) for name, options in _RUNS.items()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
