"""The documents are true: their code runs, their commands parse, what they name is there."""

from __future__ import annotations

import configparser
import contextlib
import fnmatch
import importlib
import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import click
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from support.commands import run_job
from support.runs import make_recipe
from vlsi_cache.cli import options
from vlsi_cache.cli.main import COMMANDS, cli
from vlsi_cache.data import load_conversations
from vlsi_cache.recipe import Recipe, Section, load_recipe, recipe_from_mapping
from vlsi_cache.report.terminal import _FEW_CAPTION, _MANY_CAPTION

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
RUNNING = DOCS / "running.md"
DATA = DOCS / "data.md"
DEMO = DOCS / "demo.md"
RUNNABLE = (README, DOCS / "python.md")
"""Documents whose Python is run here."""
PLAIN = sorted(
    [
        README,
        ARCHITECTURE,
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "FORMAT.md",
        *DOCS.rglob("*.md"),
    ]
)
"""Documents that keep the limits of plain English."""
MOST_WORDS = 25
"""Nine sentences in ten have no more."""
GLOSSARY = [
    "tap",
    "verbalizer",
    "record",
    "draw",
    "signs",
    "shard",
    "seal",
    "index",
    "part",
    "share",
    "stage",
    "matching",
    "journal",
]
DECISIONS = DOCS / "decisions"
IMAGES = DOCS / "images"
EXAMPLE = ROOT / "examples" / "recipe.yaml"
DEMO_MARKER = "<!-- demo-table -->\n"
SVG = "{http://www.w3.org/2000/svg}"


class Block(NamedTuple):
    """A fenced block."""

    where: str
    language: str
    text: str


def name_of(path: Path) -> str:
    """The document's path in the repository, for people."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[Block]:
    document = path.read_text(encoding="utf-8")
    return [
        Block(f"{name_of(path)}:{document[: found.start()].count(chr(10)) + 1}", *found.groups())
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
                yield name_of(path), shlex.split(span)
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
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recipe of a run with tiny models in place of the named ones."""
    raw = json.loads(make_recipe(tmp_path_factory.mktemp("models"), images=True).model_dump_json())
    raw["output"] = "runs/vlsi"
    return yaml.safe_dump(raw)


@pytest.fixture(scope="module", params=RUNNABLE, ids=name_of)
def documented_run(
    request: pytest.FixtureRequest, recipe: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder in which a document's Python has run, block after block."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        for block in blocks(request.param, "python"):
            exec(compile(block.text, block.where, "exec"), names)
    return folder


@pytest.fixture(scope="module")
def printed_run(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which README's commands have run, and all that they printed."""
    folder = tmp_path_factory.mktemp("printed")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    printed = ""
    for block in blocks(README, "console"):
        for line in block.text.splitlines():
            if line.startswith("$ "):
                command = ["-m", "vlsi_cache.cli", *shlex.split(line[2:])[1:]]
                printed += run_job(*command, cwd=folder, check=True, together=True).stdout
    return folder, printed


def test_python_in_the_documents_runs(documented_run: Path) -> None:
    assert (documented_run / "runs" / "vlsi" / "student" / "model.safetensors").is_file()


def test_python_in_other_documents_is_run_elsewhere() -> None:
    # FORMAT.md's by tests/store/test_format_document.py
    with_code = {path for path in DOCUMENTS if blocks(path, "python")}
    assert with_code == {*RUNNABLE, ROOT / "FORMAT.md"}


def test_what_the_readme_shows_is_what_the_commands_print(
    printed_run: tuple[Path, str],
) -> None:
    printed = words_without_figures(printed_run[1])
    shown = [
        line
        for block in blocks(README, "console")
        for line in block.text.splitlines()
        if not line.startswith("$ ")
    ]
    assert len(shown) > 8
    for line in shown:
        assert words_without_figures(line) <= printed, line


def words_without_figures(text: str) -> set[str]:
    """The words of printed lines, without numbers, bars and the numbers in names."""
    return {
        re.sub(r"[\d━╸╺]+", "", word) for word in re.sub(r"[\d.,:]+[\de.+-]*", " ", text).split()
    }


def test_what_a_run_writes_is_what_the_document_lists(printed_run: tuple[Path, str]) -> None:
    listed = {span for span in spans(RUNNING) if re.fullmatch(r"runs/vlsi/[\w-]+", span)}
    folder = printed_run[0] / "runs" / "vlsi"
    written = {f"runs/vlsi/{path.name}" for path in folder.glob("[!.]*")}
    assert listed == written


@pytest.mark.parametrize("words", lines_of("vlsi-cache"))
def test_every_command_line_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path | None, overrides: list[str]) -> Recipe:
        load_recipe(ROOT / path if path and (ROOT / path).is_file() else None, overrides)
        raise RecipeRead

    monkeypatch.setattr(options, "load_recipe", read)
    name, *arguments = words
    if name in ("--help", "--version"):
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
    assert programs <= {
        *("vlsi-cache", "make", "pip", "python", "ruff", "git", "cd"),
        *("lm_eval", "lmms-eval"),  # other harnesses, which measure a student too
    }


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


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            assert (path.parent / name).exists(), target
            assert not anchor or anchor in anchors(path.parent / name), target


def anchors(path: Path) -> set[str]:
    """The names by which a document's headings are linked."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_document_is_reached_from_the_readme() -> None:
    reached, new = set[Path](), [README]
    while new:
        path = new.pop()
        reached.add(path)
        links = re.findall(r"\]\(([^)#]+\.md)", prose(path))
        new += {(path.parent / link).resolve() for link in links} - reached
    assert set(DOCUMENTS) <= reached


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_files_and_modules_that_are_named_are_there(path: Path) -> None:
    folders = "vlsi_cache|cli|schemas|tests|examples|benchmarks|docs"
    for span in spans(path):
        if re.fullmatch(rf"(?:{folders})/[\w./-]*", span):
            assert (ROOT / span).exists(), span
        if re.fullmatch(r"vlsi_cache(\.\w+)+", span):
            resolve(span)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_documents_that_are_named_are_there(path: Path) -> None:
    for name in re.findall(r"\b([A-Z]{3,}\.md)\b", path.read_text(encoding="utf-8")):
        assert any((folder / name).is_file() for folder in (ROOT, path.parent)), name


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


def shown_report() -> Block:
    """The report that the documents quote, with its command."""
    (shown,) = [block for block in console_blocks(" inspect ") if "entropy" in block.text]
    return shown


def test_the_report_that_is_shown_has_the_form_of_a_real_one(
    printed_run: tuple[Path, str],
) -> None:
    real = run("inspect", printed_run[0] / "runs" / "vlsi" / "cache")
    assert words_of(stripped(shown_report().text.partition("\n")[2])) == words_of(real)


def words_of_picture(picture: str) -> list[str]:
    """The words that a picture shows, line after line."""
    texts = ElementTree.fromstring(picture).iter(f"{SVG}text")
    return " ".join(text.text or "" for text in texts).split()


def test_the_picture_of_a_report_says_what_the_quoted_one_says() -> None:
    picture = (IMAGES / "inspect.svg").read_text(encoding="utf-8")
    assert words_of_picture(picture) == shown_report().text.split()


def test_the_picture_of_a_report_is_what_its_script_draws() -> None:
    script = runpy.run_path(str(IMAGES / "make_inspect.py"))
    drawn = words_of_picture(script["draw"]())
    assert drawn == words_of_picture(script["PICTURE"].read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.svg")), ids=name_of)
def test_every_picture_is_shown_and_describes_itself(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    described = [root.findtext(f"{SVG}{name}") for name in ("title", "desc")]
    assert all(described), "people who cannot see it read its title and its description"
    shown = "".join(page.read_text(encoding="utf-8") for page in (README, *DOCS.glob("*.md")))
    assert f"images/{path.name})" in shown


def test_the_sample_that_is_shown_has_the_form_of_a_real_one(
    printed_run: tuple[Path, str],
) -> None:
    (shown,) = console_blocks("--sample")
    real = run("inspect", printed_run[0] / "runs" / "vlsi" / "cache", "--sample", "s0")
    lines = shown.text.splitlines()
    assert lines[0].endswith(lines[1].removeprefix("sample "))
    assert lines[2].split()[0] == real.splitlines()[1].split()[0] == "response"
    # the one shown has many taps, the real one few
    assert " ".join(_MANY_CAPTION.split()) in " ".join(shown.text.split())
    assert " ".join(_FEW_CAPTION.split()) in " ".join(real.split())


def test_the_plan_that_is_shown_has_the_form_of_a_real_one(recipe: str, tmp_path: Path) -> None:
    (shown,) = console_blocks(" plan ")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe, encoding="utf-8")
    line, _, output = shown.text.partition("\n")
    real = run("plan", path, *shlex.split(line)[4:])
    counts, stages, *_ = stripped(output).split("\n\n")
    for text in (counts, stages.partition("…")[0]):
        labels = [words.split("  ")[0].partition(", GB")[0] for words in text.splitlines()]
        assert all(any(label in row for row in real.splitlines()) for label in labels), labels
    heading = stages.splitlines()[0].partition("GB")[2].split()
    assert heading == ["weights", "added", "training", "working", "in", "all", "time"]
    assert " ".join(heading) in " ".join(real.split())


def test_the_demos_table_follows_its_marker() -> None:
    document = DEMO.read_text(encoding="utf-8")
    assert document.count(DEMO_MARKER) == 1
    _, _, rest = document.partition(DEMO_MARKER)
    found = re.match(r"```\w*\n(.*?)^```$", rest, re.DOTALL | re.MULTILINE)
    assert found is not None
    for row in ("no look at the image", "teacher", "student, fine-tuned", "student, distilled"):
        assert row in found.group(1)


def rows_of(path: Path) -> list[str]:
    return [row for block in blocks(path, "jsonl") for row in block.text.splitlines()]


@pytest.mark.parametrize(
    ("document", "images"), [(README, [1]), (DATA, [1, 0, 1, 2, 1, 0, 0, 0, 0])]
)
def test_data_in_the_documents_is_read(document: Path, images: list[int], tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(rows_of(document)), encoding="utf-8")
    conversations = load_conversations(path)
    for conversation in conversations:
        for image in conversation.images:
            assert image.path is not None
            Image.new("RGB", (8, 8)).save(image.path)
    conversations.validate()
    assert [len(conversation.images) for conversation in conversations] == images


def test_data_stands_in_no_other_document() -> None:
    assert {path for path in DOCUMENTS if rows_of(path)} == {README, DATA}


def section(path: Path, start: str, stop: str) -> str:
    """The prose from one heading to the next."""
    document = prose(path)
    return document[document.index(start) : document.index(stop)]


def test_the_architecture_opens_with_its_words() -> None:
    assert ARCHITECTURE.read_text(encoding="utf-8").startswith("# Architecture\n\n## Words\n")
    table = section(ARCHITECTURE, "## Words", "## Folders")
    rows = re.findall(r"^\| ([a-z]+) \| (.+) \|$", table, re.MULTILINE)
    assert [word for word, _ in rows if word != "word"] == GLOSSARY
    assert all(meaning.endswith(".") for word, meaning in rows if word != "word")


def test_the_floors_are_those_that_are_checked() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / ".importlinter")
    layers = config["importlinter:contract:floors"]["layers"].replace(":", "\n").split()
    floors = section(ARCHITECTURE, "## Floors", "## The way")
    assert re.findall(r"^\| `(\w+)` \|", floors.split("Some packages")[0], re.MULTILINE) == layers


@pytest.mark.parametrize(
    "path", sorted({*DECISIONS.glob("*.md")} - {DECISIONS / "README.md"}), ids=name_of
)
def test_a_decision_has_its_context_and_its_cost(path: Path) -> None:
    document = path.read_text(encoding="utf-8")
    title, *parts = re.split(r"^## (\w+)\n", document, flags=re.MULTILINE)
    assert parts[::2] == ["Context", "Decision", "Cost"]
    assert all(part.strip() for part in parts[1::2])
    assert 15 <= len(document.splitlines()) <= 40
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    assert f"| [{path.stem}]({path.name}) | {title.strip().removeprefix('# ')} |" in index


def sentences(path: Path) -> list[str]:
    """The document's sentences; tables and headings have none."""
    lines = prose(path).splitlines()
    text = " ".join(line for line in lines if not line.lstrip().startswith(("|", "#", "<!--")))
    return [found for found in re.split(r"(?<=[.!?:])\s+", text) if len(found.split()) > 2]


@pytest.mark.parametrize("path", PLAIN, ids=name_of)
def test_sentences_are_short_and_semicolons_rare(path: Path) -> None:
    found = sentences(path)
    most = 3 if path == README else 10
    assert 100 * sum(sentence.count(";") for sentence in found) <= most * len(found)
    long = [sentence for sentence in found if len(sentence.split()) > MOST_WORDS]
    assert 10 * len(long) <= len(found), "\n".join(long)


def test_the_readme_is_read_in_minutes() -> None:
    assert 120 <= len(README.read_text(encoding="utf-8").splitlines()) <= 160


def test_the_changelog_knows_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def _leaves(section: Section, path: str = "") -> Iterator[tuple[str, object]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def test_every_default_names_where_it_comes_from() -> None:
    """The most precise row of a key counts, and shows its default."""
    rows: dict[str, tuple[list[str], str]] = {}
    for line in (DOCS / "defaults.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("| `"):
            continue
        keys, defaults, source = (cell.strip() for cell in line.strip("|").split(" | "))
        assert source, line
        for key in re.findall(r"`([^`]+)`", keys):
            rows[key] = (list(re.findall(r"`([^`]+)`", defaults)), keys)
    used = set()
    for path, value in _leaves(Recipe()):
        matching = [key for key in rows if fnmatch.fnmatchcase(path, key)]
        assert matching, f"docs/defaults.md does not name {path}"
        key = max(matching, key=lambda found: len(found.replace("*", "")))
        used.add(key)
        shown, keys = rows[key]
        if shown:
            together = re.findall(r"`([^`]+)`", keys)
            text = shown[together.index(key) if len(shown) > 1 else 0]
            expected = value if isinstance(value, str | Path) else json.dumps(value)
            assert text == str(expected), path
    assert used == set(rows), "a row of no key"
