"""The command line: it starts quickly, its help is complete, and the wheel holds all of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete, get_completion_class
from click.testing import CliRunner

from vlsi_cache import schemas
from vlsi_cache.cli.main import COMMANDS, cli
from vlsi_cache.recipe import CacheSection

ROOT = Path(__file__).parents[2]
_OTHER_STAGES = ("verbalization", "finetuning")


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_command_has_help_for_itself_and_all_its_options(command: str | None) -> None:
    result = CliRunner().invoke(cli, [*([command] if command else []), "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage:")
    if command:
        for parameter in cli.get_command(None, command).params:  # type: ignore[arg-type, union-attr]
            if parameter.param_type_name == "option":
                assert parameter.help, parameter.opts  # type: ignore[attr-defined]


def test_no_command_of_the_list_is_cut_off() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output
    listed = shown.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert "..." not in "".join(listed)


def test_the_help_of_a_dump_says_the_record_that_its_flags_make() -> None:
    words = " ".join(CliRunner().invoke(cli, ["dump-teacher", "--help"]).output.split())
    alone = CacheSection(), CacheSection(m=1).k, CacheSection(k=1).m, CacheSection(k=1).drawn_from
    default, k, m, drawn_from = alone
    assert CacheSection(k=1, m=1).drawn_from == drawn_from
    without = "is given without --drawn-from whole]"
    assert f"kept. [default: {default.k}, or {k} if -m {without}" in words
    assert f"drawn. [default: {default.m}, or {m} if -k {without}" in words
    assert f"[default: {default.drawn_from}, or {drawn_from} if -k or -m is given]" in words


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "from vlsi_cache.cli.main import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'zarr'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", stdout=subprocess.DEVNULL)


def test_inspecting_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from vlsi_cache.report import summarize_cache\n"
        "from vlsi_cache.store import open_cache\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_no_module_named_cli_or_schemas_is_installed() -> None:
    code = (
        "import importlib.util, vlsi_cache.cli.main, vlsi_cache.schemas\n"
        "assert importlib.util.find_spec('cli') is None\n"
        "assert importlib.util.find_spec('schemas') is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_packages_listed_for_the_wheel_are_those_on_disk() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "vlsi_cache").rglob("__init__.py")
    }
    assert listed == on_disk | {"vlsi_cache.cli", "vlsi_cache.schemas"}


def test_a_wheel_installs_the_same_command(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    target = tmp_path / "installed"
    source = tmp_path / "source"
    source.mkdir()
    for name in ("vlsi_cache", "cli", "schemas", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-build-isolation", "--target", target, source],
        check=True,
    )
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} == {
        "bin",
        "vlsi_cache",
    }
    built = {path.relative_to(target / "vlsi_cache") for path in target.rglob("*.py")}
    expected = {
        path.relative_to(ROOT / "vlsi_cache") for path in (ROOT / "vlsi_cache").rglob("*.py")
    }
    for name in ("cli", "schemas"):
        expected |= {path.relative_to(ROOT) for path in (ROOT / name).rglob("*.py")}
    assert built == expected
    assert (target / "vlsi_cache" / "py.typed").is_file()
    assert (target / "vlsi_cache" / "schemas" / "recipe.json").is_file()
    templates = Path("report", "page", "templates")
    for path in (ROOT / "vlsi_cache" / templates).iterdir():
        assert (target / "vlsi_cache" / templates / path.name).is_file()
    code = "from vlsi_cache.cli.main import main; main()"
    shown = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        check=True,
        cwd="/",
        env={"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert shown.stdout.startswith("vlsi-cache, version ")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("pus", {"push"}), ("train-student --follow-", {"--follow-timeout"}), ("", {*COMMANDS})],
)
def test_the_shell_completes_commands_and_options(typed: str, expected: set[str]) -> None:
    *words, incomplete = typed.split(" ")
    completion = ShellComplete(cli, {}, "vlsi-cache", "_VLSI_CACHE_COMPLETE")
    found = {item.value for item in completion.get_completions(words, incomplete)}
    assert found == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("train-student --stages inter", {"interaction"}),
        ("train-student --stages interaction,", {f"interaction,{name}" for name in _OTHER_STAGES}),
        ("train-student --on-error s", {"stop", "skip"}),
        ("train-student --dtype ", {"auto", "float32", "bfloat16", "float16"}),
        ("dump-teacher --dtype b", {"bfloat16"}),
        ("dump-teacher --device-map ", {"auto", "balanced", "balanced_low_0", "sequential"}),
        ("dump-teacher --drawn-from ", {"rest", "whole"}),
        ("dump-teacher --device c", {"cpu", "cuda"}),
        ("dump-teacher --on-error ", {"stop", "skip"}),
        ("check --on-error sk", {"skip"}),
        ("evaluate --dtype f", {"float32", "float16"}),
        ("check --set interaction.lora.r", {"interaction.lora.rank="}),
        ("check --set data.on_error=", {"data.on_error=stop", "data.on_error=skip"}),
        ("check --set held_out.keep=b", {"held_out.keep=best"}),
        ("check --set cache.nothing=", set()),
        ("dump-teacher --batch-size ", {""}),
    ],
)
def test_the_shell_completes_the_words_of_a_flag(typed: str, expected: set[str]) -> None:
    *words, incomplete = typed.split(" ")
    completion = ShellComplete(cli, {}, "vlsi-cache", "_VLSI_CACHE_COMPLETE")
    found = completion.get_completions(words, incomplete)
    assert {item.type for item in found} <= {"plain"}
    assert {item.value for item in found} == expected - {""}


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ("check", "file"),
        ("check --data", "file"),
        ("evaluate --data", "file"),
        ("check --recipe", "file"),
        ("check --teacher", "dir"),
        ("plan --student", "dir"),
        ("evaluate", "dir"),
        ("evaluate --verbalizers", "dir"),
        ("dump-teacher --output", "dir"),
        ("dump-teacher --cache", "dir"),
        ("train-student -o", "dir"),
        ("inspect", "dir"),
        ("inspect --compare", "dir"),
        ("inspect --html", "file"),
        ("verify", "dir"),
        ("merge", "dir"),
        ("merge out one", "dir"),
        ("export-exits", "dir"),
        ("push", "dir"),
        ("demo --out", "dir"),
    ],
)
def test_the_shell_completes_paths(typed: str, kind: str) -> None:
    completion = ShellComplete(cli, {}, "vlsi-cache", "_VLSI_CACHE_COMPLETE")
    (found,) = completion.get_completions(typed.split(" "), "runs/o")
    assert (found.type, found.value) == (kind, "runs/o")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("check --set data.on_error = ", "stop skip"),  # the cursor is behind the equals sign
        ("check --set data.on_error = st", "stop"),
        ("check --set interaction.lora.r", "interaction.lora.rank="),
        ("check --set = data.on_error = sk", "skip"),
        ("check --set = interaction.lora.r", "interaction.lora.rank="),
        ("check --set cache.k = 8 --set held_out.keep = b", "best"),
        ("check --set cache.k = 8 --on-error s", "stop skip"),
        ("train-student --dtype = b", "bfloat16"),
        ("train-student --dtype = ", "auto float32 bfloat16 float16"),
        ("train-student --stages = interaction,f", "interaction,finetuning"),
    ],
)
def test_bash_completes_words_that_it_splits(
    typed: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["vlsi-cache", *typed.split()]
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    completion = get_completion_class("bash")(cli, {}, "vlsi-cache", "_VLSI_CACHE_COMPLETE")
    assert completion.complete().split() == [f"plain,{word}" for word in expected.split()]


def test_the_installed_command_prints_the_lines_that_a_shell_reads() -> None:
    command = Path(sys.executable).with_name("vlsi-cache")
    for shell in ("bash", "zsh", "fish"):
        shown = subprocess.run(
            [command],
            env={"_VLSI_CACHE_COMPLETE": f"{shell}_source", "PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
            text=True,
        )
        assert f"_VLSI_CACHE_COMPLETE={shell}_complete" in shown.stdout
        # after KEY= bash would end the word
        assert ("[[ $value == *= ]] && compopt -o nospace" in shown.stdout) == (shell == "bash")


def test_schemas_on_disk_are_those_of_the_models() -> None:
    rendered = schemas.rendered()
    on_disk = {
        path.name: path.read_text(encoding="utf-8") for path in schemas.FOLDER.glob("*.json")
    }
    assert on_disk.keys() == rendered.keys()
    for name, text in rendered.items():
        assert on_disk[name] == text, f"{name}: run make schemas"
        assert json.loads(text)["type"] == "object"
