"""``vlsi-cache inspect`` on a cache with images: pages, samples, conversations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from support.runs import make_recipe
from vlsi_cache import dump_teacher
from vlsi_cache.cli.main import cli
from vlsi_cache.recipe import Recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make_recipe(tmp_path_factory.mktemp("inspect"), images=True, num_samples=7)
    dump_teacher(recipe)
    return recipe


def inspect(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["inspect", *map(str, arguments)])
    if result.exit_code == 0:
        assert result.exception is None
    return result


def data_of(run: Recipe) -> Path:
    return Path(str(run.data.path))


def test_a_page_shows_a_handful_of_samples(run: Recipe, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = inspect(run.cache_path, "--html", page, "--data", data_of(run))
    assert result.output.splitlines()[-1] == f"page: {page}"
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == 4
    assert "data:image/jpeg;base64," in text
    assert "What is 1?" in text
    assert "were drawn at random" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_without_the_data_says_how_to_name_it(run: Recipe, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = inspect(run.cache_path, "--html", page, "--sample", "s2", "--sample", "s0")
    assert result.exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert text.index("<bdi>s2</bdi></h3>") < text.index("<bdi>s0</bdi></h3>")
    assert "<code>--data PATH</code> names it" in text
    assert "drawn at random" not in text


def test_a_page_reads_the_data_of_the_recipe(run: Recipe, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"data": {"path": str(data_of(run))}}), encoding="utf-8")
    page = tmp_path / "report.html"
    result = inspect(run.cache_path, "-r", recipe, "--html", page, "--sample", "s1")
    assert result.exit_code == 0, result.output
    assert "What is 2?" in page.read_text(encoding="utf-8")


def test_json_beside_a_page_is_the_summary_that_it_shows(run: Recipe, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    both = inspect(run.cache_path, "--html", page, "--json")
    assert both.stdout == inspect(run.cache_path, "--json").stdout
    text = page.read_text(encoding="utf-8")
    for tap in json.loads(both.stdout)["taps"]:
        assert f"<td>{tap['entropy_nats']:.2f}</td>" in text


def test_one_sample_is_an_object_and_several_are_a_list(run: Recipe) -> None:
    one = json.loads(inspect(run.cache_path, "--sample", "s1", "--json").stdout)
    assert one["sample_id"] == "s1"
    assert not one["only_draws"]
    assert one["conversation"] is None
    for token in one["tokens"]:
        for guess in token["guesses"]:
            assert sum(entry["weight"] for entry in guess["entries"]) < 1 + 1e-5
            likely = [entry["weight"] for entry in guess["entries"] if not entry["drawn"]]
            assert len(likely) == run.cache.k
            assert likely == sorted(likely, reverse=True)
            assert not any(entry["drawn"] for entry in guess["entries"][: run.cache.k])
            drawn = [entry["drawn"] for entry in guess["entries"][run.cache.k :]]
            assert sum(drawn) <= run.cache.m
            assert 0 not in drawn
            by_id = {entry["token_id"]: entry["weight"] for entry in guess["entries"]}
            assert by_id[guess["token_id"]] == pytest.approx(guess["probability"])
    several = inspect(run.cache_path, "--sample", "s1", "--sample", "s0", "--json").stdout
    assert [view["sample_id"] for view in json.loads(several)] == ["s1", "s0"]
    assert json.loads(several)[0] == one
    tables = inspect(run.cache_path, "--sample", "s1", "--sample", "s0").stdout
    assert tables.index("sample s1") < tables.index("sample s0")


def test_a_sample_with_its_conversation_and_picture(run: Recipe) -> None:
    result = inspect(run.cache_path, "--sample", "s0", "--data", data_of(run), "--json")
    user, assistant = json.loads(result.stdout)["conversation"]
    picture, text = user["parts"]
    assert (picture["width"], picture["height"]) == (16, 16)
    assert text == "What is 0?"
    assert assistant == {"role": "assistant", "parts": ["The red one"]}


def test_data_that_is_not_what_was_recorded_is_an_error(run: Recipe, tmp_path: Path) -> None:
    shutil.copytree(data_of(run).parent, tmp_path / "other", ignore=shutil.ignore_patterns("run"))
    other = tmp_path / "other" / data_of(run).name
    page = tmp_path / "report.html"
    Image.new("RGB", (16, 16), "purple").save(other.parent / "0.png")
    result = inspect(run.cache_path, "--html", page, "--data", other, "--sample", "s0")
    assert result.exit_code == 1
    assert "sample 's0': the data is not what the cache records" in result.stderr
    rows = other.read_text(encoding="utf-8").splitlines(keepends=True)
    other.write_text("".join(rows[:3]), encoding="utf-8")
    result = inspect(run.cache_path, "--html", page, "--data", other, "--sample", "s5")
    assert result.exit_code == 1
    assert "expected a sample of index 5; found 3 samples" in result.stderr
    assert not page.exists()


def test_some_samples_have_standard_errors_in_the_table(run: Recipe) -> None:
    table = inspect(run.cache_path, "--max-samples", 3).stdout
    assert "3 samples chosen at random" in table
    assert table.count("±") == 4 * 6 + 1
    summary = json.loads(inspect(run.cache_path, "--max-samples", 3, "--json").stdout)
    assert summary["num_samples_read"] == 3
    assert "±" not in inspect(run.cache_path).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sample", "s0", "--max-samples", "3"], "--max-samples is for the figures"),
        (["--data", "data.jsonl"], "--data is read for --sample and --html alone"),
        (["--max-samples", "1"], "x>=2"),
        (["--html", "."], "is a directory"),
        (["--html", "p.html", *["--sample=s0"] * 51], "at most 50 samples"),
    ],
)
def test_flags_without_an_effect_are_refused(run: Recipe, arguments: list[str], said: str) -> None:
    result = inspect(run.cache_path, *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("no ne", "the page's folder is not there. Make it with mkdir -p '{}'."),
        ("file", "the page's folder is a file. Choose another folder for --html."),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--compare", "nowhere"]])
def test_a_page_without_a_folder_is_refused_before_the_cache_is_read(
    folder: str, said: str, flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / folder)
    result = inspect(tmp_path / "no-cache", "--html", f"{folder}/report.html", *flags)
    assert result.exit_code == 1
    assert result.stderr == f"error: {folder}: {said.format(folder)}\n"
