"""The documents are true: their code runs, their commands parse, what they name is there."""

from __future__ import annotations

import configparser
import contextlib
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from support.runs import make_recipe
from vlsi_cache.cli import options
from vlsi_cache.cli.main import COMMANDS, cli
from vlsi_cache.data import load_conversations
from vlsi_cache.recipe import Recipe, Section, load_recipe, recipe_from_mapping
from vlsi_cache.report.terminal import _FEW_CAPTION, _MANY_CAPTION

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(ROOT.glob("*.md"))
README = ROOT / "README.md"
EXAMPLE = ROOT / "examples" / "recipe.yaml"
DEMO_MARKER = "<!-- demo-table -->\n"


class Block(NamedTuple):
    """A fenced block."""

    where: str
    language: str
    text: str


def blocks(path: Path, *languages: str) -> list[Block]:
    document = path.read_text(encoding="utf-8")
    return [
        Block(f"{path.name}:{document[: found.start()].count(chr(10)) + 1}", *found.groups())
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
        if found.group(1) in languages
    ]


def prose(path: Path) -> str:
    """The document without its fenced blocks."""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(path: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(path))]


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every shell line of the documents, and of the example's comments, as words."""
    for path in DOCUMENTS:
        for block in blocks(path, "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield block.where, shlex.split(line, comments=True)
        for block in blocks(path, "console"):
            for line in block.text.splitlines():
                if line.startswith("$ "):
                    yield block.where, shlex.split(line[2:])
        for span in spans(path):
            if span.startswith(("vlsi-cache ", "make ")):
                yield path.name, shlex.split(span)
    for line in re.findall(r"^# +(vlsi-cache .+)$", EXAMPLE.read_text("utf-8"), re.MULTILINE):
        yield EXAMPLE.name, shlex.split(line)


def lines_of(program: str) -> list[Any]:
    return [
        pytest.param(words[1:], id=f"{where} {shlex.join(words)}")
        for where, words in command_lines()
        if Path(words[0]).name == program
    ]


def run(*arguments: object) -> str:
    """What a command prints at 80 columns, lines stripped of their ends."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        cli, [str(argument) for argument in arguments], prog_name="vlsi-cache", terminal_width=80
    )
    assert result.exit_code == 0, result.output
    return stripped(result.stdout)


def stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


class RecipeRead(Exception):  # noqa: N818 (a way out, not a fault)
    """A command has come as far as its recipe."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where README's run takes place, with tiny models in place of the named ones."""
    folder = tmp_path_factory.mktemp("docs")
    raw = json.loads(make_recipe(folder, images=True).model_dump_json())
    raw["output"] = "runs/vlsi"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def readme_run(folder: Path) -> Path:
    """The folder after README's Python has run in it, block after block."""
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        for block in blocks(README, "python"):
            exec(compile(block.text, block.where, "exec"), names)
    return folder


def test_python_in_the_readme_runs(readme_run: Path) -> None:
    assert (readme_run / "runs" / "vlsi" / "student" / "model.safetensors").is_file()


def test_python_in_other_documents_is_run_by_somebody() -> None:
    # FORMAT.md's by tests/store/test_format_document.py
    with_code = {path.name for path in DOCUMENTS if blocks(path, "python")}
    assert with_code <= {"README.md", "FORMAT.md"}


def test_what_a_run_writes_is_what_the_readme_lists(readme_run: Path) -> None:
    listed = {span for span in spans(README) if re.fullmatch(r"runs/vlsi/[\w-]+", span)}
    written = {f"runs/vlsi/{path.name}" for path in (readme_run / "runs" / "vlsi").iterdir()}
    assert listed == written


@pytest.mark.parametrize("words", lines_of("vlsi-cache"))
def test_every_command_line_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path | None, overrides: list[str]) -> Recipe:
        load_recipe(ROOT / path if path and (ROOT / path).is_file() else None, overrides)
        raise RecipeRead

    monkeypatch.setattr(options, "load_recipe", read)
    name, *arguments = words
    if name == "--help":
        return
    assert name in COMMANDS
    # a command remembers its help option, whose names come from the group's context
    group = cli.make_context("vlsi-cache", list(words))
    command = cli.get_command(group, name)
    assert command is not None
    if not arguments:
        return  # the command's name in passing
    try:
        context = command.make_context(name, list(arguments), parent=group)
    except click.exceptions.Exit:
        return  # --help
    if "recipe_path" in context.params:
        with pytest.raises(RecipeRead):
            command.invoke(context)


@pytest.mark.parametrize("words", lines_of("make"))
def test_every_make_target_is_one(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, assigned, _ = word.partition("=")
        pattern = rf"^{name}\s*\?=" if assigned else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), word


@pytest.mark.parametrize("words", lines_of("pip"))
def test_every_extra_is_one(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = re.fullmatch(r"([\w-]+)(?:\[(\w+)\])?", words[-1])
    assert found is not None
    assert found.group(1) == project["name"]
    assert found.group(2) in {None, *project["optional-dependencies"]}


@pytest.mark.parametrize("words", lines_of("python"))
def test_every_test_that_is_named_is_there(words: list[str]) -> None:
    named = [word.removeprefix("--ignore=") for word in words if "tests" in word]
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_no_other_program_is_called() -> None:
    programs = {Path(words[0]).name for _, words in command_lines()}
    assert programs <= {"vlsi-cache", "make", "pip", "python", "ruff", "git", "cd"}


@pytest.mark.parametrize(
    "block", [block for path in DOCUMENTS for block in blocks(path, "yaml")], ids=lambda b: b.where
)
def test_recipes_are_sound(block: Block) -> None:
    recipe_from_mapping(yaml.safe_load(block.text), where=block.where)


def test_the_example_holds_every_key_and_the_defaults_it_claims() -> None:
    raw = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    recipe_from_mapping(raw, where=EXAMPLE)
    assert sorted(missing_keys(Recipe(), raw)) == []
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        assert len(line) <= 100, line


def missing_keys(section: Section, raw: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys of a section that the example leaves out, but those it says are the teacher's too."""
    for name in type(section).model_fields:
        path, value = f"{prefix}{name}", getattr(section, name)
        excused = path.startswith("student.verbalization.") or name == "steps"
        if name not in raw:
            if not excused:
                yield path
        elif isinstance(value, Section):
            yield from missing_keys(value, raw[name], f"{path}.")


def test_values_that_the_example_calls_defaults_are() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    path: list[str] = []
    checked = 0
    for line in text.splitlines():
        found = re.match(r"^( *)(\w+):(?: ([^#]+?))?(?: +# (.*))?$", line)
        if found is None:
            continue
        indent, key, value, comment = found.groups()
        path = [*path[: len(indent) // 2], key]
        claimed = claimed_default(value, comment or "")
        if claimed is not None:
            node: Any = Recipe()
            for name in path:
                node = getattr(node, name)
            default = json.loads(json.dumps(node, default=str))
            assert yaml.safe_load(claimed) == default, ".".join(path)
            checked += 1
    assert checked > 20


def claimed_default(value: str | None, comment: str) -> str | None:
    """What a comment says the default is: ``default 0``, or the value itself by ``default;``."""
    other = re.search(r"\bdefault (-?\d[\d.e-]*|true|false|null)(?![\w.])", comment)
    if other is not None:
        return other.group(1)
    return value if comment.startswith("default") else None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_modules_that_are_named_are_there(path: Path) -> None:
    folders = "vlsi_cache|cli|schemas|tests|examples|benchmarks"
    for span in spans(path):
        if re.fullmatch(rf"(?:{folders})/[\w./-]*", span):
            assert (ROOT / span).exists(), span
        if re.fullmatch(r"vlsi_cache(\.\w+)+", span):
            resolve(span)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_that_are_named_are_there(path: Path) -> None:
    for name in re.findall(r"\b([A-Z]+\.md)\b", path.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


def resolve(dotted: str) -> Any:
    """The module, or the attribute of one."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return getattr(importlib.import_module(module), name)


def test_the_readme_lists_the_commands_in_their_own_words() -> None:
    rows = re.findall(r"^\| `vlsi-cache ([\w-]+)` \| (.+?) \|$", prose(README), re.MULTILINE)
    assert [name for name, _ in rows] == list(COMMANDS)
    for name, words in rows:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.help is not None
        assert " ".join(command.help.split("\n\n")[0].split()) == words


def console_blocks(needle: str) -> list[Block]:
    """Blocks whose command holds ``needle``."""
    return [
        block
        for path in DOCUMENTS
        for block in blocks(path, "console")
        if needle in block.text.splitlines()[0]
    ]


@pytest.mark.parametrize("block", console_blocks("--help"), ids=lambda block: block.where)
def test_help_that_is_quoted_is_what_the_command_prints(block: Block) -> None:
    line, _, output = block.text.partition("\n")
    assert stripped(output) == run(*shlex.split(line)[2:])


def words_of(table: str) -> set[str]:
    """The words of a printed table that are not its data: headings and captions."""
    settings, heading = table.split("\n\n")
    names = {line[:16].strip() for line in settings.splitlines()}
    lines = heading.splitlines()
    caption = next(number for number, line in enumerate(lines) if line.startswith("Means"))
    return names | set(" ".join([*lines[:2], *lines[caption:]]).split())


def test_the_report_that_is_shown_has_the_form_of_a_real_one(readme_run: Path) -> None:
    shown = [block for block in console_blocks(" inspect ") if "entropy" in block.text]
    assert len(shown) == 1
    real = run("inspect", readme_run / "runs" / "vlsi" / "cache")
    assert words_of(stripped(shown[0].text.partition("\n")[2])) == words_of(real)


def test_the_sample_that_is_shown_has_the_form_of_a_real_one(readme_run: Path) -> None:
    (shown,) = console_blocks("--sample")
    real = run("inspect", readme_run / "runs" / "vlsi" / "cache", "--sample", "s0")
    lines = shown.text.splitlines()
    assert lines[0].endswith(lines[1].removeprefix("sample "))
    assert lines[2].split()[0] == real.splitlines()[1].split()[0] == "response"
    # the one shown has many taps, the real one few
    assert " ".join(_MANY_CAPTION.split()) in " ".join(shown.text.split())
    assert " ".join(_FEW_CAPTION.split()) in " ".join(real.split())


def test_the_demos_table_follows_its_marker() -> None:
    document = README.read_text(encoding="utf-8")
    assert document.count(DEMO_MARKER) == 1
    _, _, rest = document.partition(DEMO_MARKER)
    found = re.match(r"```\w*\n(.*?)^```$", rest, re.DOTALL | re.MULTILINE)
    assert found is not None
    for row in ("no look at the image", "teacher", "student, fine-tuned", "student, distilled"):
        assert row in found.group(1)


def test_data_in_the_readme_is_read(tmp_path: Path) -> None:
    (block,) = blocks(README, "jsonl")
    path = tmp_path / "train.jsonl"
    path.write_text(block.text, encoding="utf-8")
    conversations = load_conversations(path)
    for conversation in conversations:
        for image in conversation.images:
            assert image.path is not None
            Image.new("RGB", (8, 8)).save(image.path)
    conversations.validate()
    assert [len(conversation.images) for conversation in conversations] == [1, 0, 1, 2]


def test_the_floors_are_those_that_are_checked() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".importlinter")
    layers = config["importlinter:contract:floors"]["layers"].replace(":", "\n").split()
    document = prose(ROOT / "ARCHITECTURE.md")
    section = document[document.index("## Floors") : document.index("## The way")]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == layers


def test_the_changelog_knows_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
