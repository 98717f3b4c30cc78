"""Students and caches on a hub of this machine: pushed by the command, and read from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from huggingface_hub import DatasetCard, ModelCard, constants
from huggingface_hub.utils import validate_repo_id

from support.caches import make_cache, make_manifest
from support.hub import Hub, hub_server
from vlsi_cache.cli.main import cli
from vlsi_cache.errors import CacheError, ModelError, StageError
from vlsi_cache.recipe import recipe_from_mapping
from vlsi_cache.sharing import StudentFacts, plan_upload, student_card
from vlsi_cache.sharing.cards import size_category
from vlsi_cache.sharing.selecting import select_cache_files
from vlsi_cache.store import create_cache, open_cache
from vlsi_cache.student.card import student_name

# the client hands its bytes to its HTTP library in a way that the library calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

MANIFEST = make_manifest(num_samples=12, samples_per_shard=2)
REPOSITORY = "me/record"
ADDRESS = f"hf://datasets/{REPOSITORY}"
READ = """
import json, sys
from vlsi_cache.store import open_cache
cache = open_cache(sys.argv[1])
record = cache[5]
print(json.dumps([cache.path, cache.digest, len(cache), record.sample_id]))
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, which this process's client talks to as well: it reads its environment at import."""
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        template = hub.url + template.removeprefix(constants._HF_DEFAULT_ENDPOINT)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name, value in hub.environment.items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache")
    make_cache(path, MANIFEST)
    return path


def _run(hub: Hub, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **hub.environment, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def _command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


def _front_matter(card: str) -> dict[str, Any]:
    _, metadata, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(metadata)
    return found


def test_a_cache_is_pushed_with_its_card_and_read_from_there_in_parts(
    hub: Hub, local: Path
) -> None:
    done = _command("push", local, REPOSITORY, "--private")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("commit: http://127.0.0.1")
    files = hub.files(f"datasets/{REPOSITORY}")
    assert hub.repositories[f"datasets/{REPOSITORY}"].private
    mine = {
        path.relative_to(local).as_posix(): path.read_bytes()
        for path in local.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    assert {name: files[name] for name in mine} == mine
    card = files["README.md"].decode()
    metadata = _front_matter(card)
    assert metadata["viewer"] is False
    assert metadata["size_categories"] == ["n<1K"]
    assert DatasetCard(card).data.to_dict() == metadata
    cache = open_cache(local)
    assert cache.digest is not None
    assert cache.digest in card
    assert f"--cache {ADDRESS}" in card
    verified = _command("verify", ADDRESS, "--json")
    assert verified.exit_code == 0, verified.stderr
    assert json.loads(verified.stdout)["sound"]
    hub.sent_bytes = 0
    read = _run(hub, "-c", READ, ADDRESS)
    assert read.returncode == 0, read.stderr
    path, *rest = json.loads(read.stdout)
    (_, newest) = hub.repositories[f"datasets/{REPOSITORY}"].commits
    assert path == f"hf://datasets/{REPOSITORY}@{newest}"  # later commits change nothing
    assert rest == [cache.digest, 12, cache[5].sample_id]
    shards = sum(len(held) for name, held in files.items() if name.endswith(".zip"))
    assert hub.sent_bytes < shards / 2


@pytest.mark.parametrize(
    ("num_samples", "category"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (999_999, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
        (50_000_000, "10M<n<100M"),
        (10**8, "100M<n<1B"),
        (10**9, "1B<n<10B"),
        (10**11, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_a_size_category_is_one_of_the_hubs(num_samples: int, category: str) -> None:
    assert size_category(num_samples) == category


def test_a_damaged_file_on_the_hub_is_found_by_name(hub: Hub, local: Path) -> None:
    assert _command("push", local, REPOSITORY).exit_code == 0
    repository = hub.repositories[f"datasets/{REPOSITORY}"]
    files = dict(hub.files(f"datasets/{REPOSITORY}"))
    shard = "shards/00003.zarr.zip"
    files[shard] = files[shard][:-40] + bytes(40)
    repository.commit(files)
    verified = _command("verify", ADDRESS, "--json")
    assert verified.exit_code == 1
    damages = json.loads(verified.stdout)["damages"]
    assert {tuple(damage["files"]) for damage in damages} == {(shard,)}
    before = next(reversed([*repository.commits][:-1]))
    assert _command("verify", f"{ADDRESS}@{before}").exit_code == 0


def test_a_second_push_sends_what_is_new_and_deletes_what_is_stale(
    hub: Hub, local: Path, tmp_path: Path
) -> None:
    assert _command("push", local, REPOSITORY).exit_code == 0
    num_sent = len(hub.large)
    smaller = tmp_path / "smaller"
    make_cache(smaller, make_manifest(num_samples=4, samples_per_shard=2))
    assert _command("push", smaller, REPOSITORY).exit_code == 0
    shards = [name for name in hub.files(f"datasets/{REPOSITORY}") if name.endswith(".zip")]
    assert shards == ["shards/00000.zarr.zip", "shards/00001.zarr.zip"]
    assert ".gitattributes" in hub.files(f"datasets/{REPOSITORY}")
    assert len(hub.large) <= num_sent + 2


def test_a_dry_run_prints_files_and_card_and_asks_nobody(hub: Hub, local: Path) -> None:
    done = _command("push", local, REPOSITORY, "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert "dataset repository me/record: " in done.stdout
    assert "  shards/00005.zarr.zip\n" in done.stdout
    assert "viewer: false" in done.stdout
    assert not hub.requests


@pytest.mark.parametrize(
    "name", ["x y", "me/x/y z", "me/x.git", "me/a--b", "-me/x", "https://h/me/x"]
)
def test_a_name_that_the_hub_would_refuse_is_refused_offline(
    name: str, hub: Hub, tmp_path: Path
) -> None:
    for flags in (["--dry-run"], []):
        done = _command("push", tmp_path, *flags, "--", name)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"error: {name}: is not a name of a repository (")
        assert "expected OWNER/NAME" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not hub.requests


def test_what_the_hub_refuses_is_one_line(
    hub: Hub, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = _command("push", local, "no/such/name")
    assert "no/such/name: is not a name of a repository" in named.stderr
    absent = _command("inspect", "hf://datasets/me/absent")
    assert "hf://datasets/me/absent: no such repository can be read" in absent.stderr
    bare = _command("inspect", "hf://record")
    assert "address on the hub cannot be used" in bare.stderr
    with monkeypatch.context() as patched:
        patched.setenv("HF_TOKEN", "hf_wrong")
        denied = _command("push", local, REPOSITORY)
    assert denied.stderr.startswith(f"error: {REPOSITORY}: the hub denies access")
    with monkeypatch.context() as patched:
        patched.setattr(constants, "HF_HUB_OFFLINE", True)
        closed = _command("inspect", ADDRESS)
    assert "the hub cannot be reached" in closed.stderr
    for done in (denied, named, absent, closed, bare):
        assert done.exit_code == 1
        assert done.stderr.count("\n") == 1


def test_nothing_is_written_to_the_hub_file_by_file(hub: Hub, local: Path) -> None:
    assert _command("push", local, REPOSITORY).exit_code == 0
    num_requests = len([method for method, _ in hub.requests if method != "GET"])
    with pytest.raises(CacheError, match="a cache on the hub can be read and not written"):
        create_cache(ADDRESS, MANIFEST)
    assert len([method for method, _ in hub.requests if method != "GET"]) == num_requests


def test_what_cannot_be_shared_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="there is no such folder"):
        plan_upload(tmp_path / "none", REPOSITORY)
    (tmp_path / "student").mkdir()
    with pytest.raises(StageError, match=r"neither a student's folder nor a cache.*Give .*student"):
        plan_upload(tmp_path, REPOSITORY)
    (tmp_path / "student" / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ModelError, match="has no weights"):
        plan_upload(tmp_path / "student", REPOSITORY)
    (tmp_path / "student" / "model.safetensors").touch()
    with pytest.raises(ModelError, match="has no card"):
        plan_upload(tmp_path / "student", REPOSITORY)
    create_cache(tmp_path / "begun", MANIFEST)
    with pytest.raises(CacheError, match="incomplete, and cannot be shared yet"):
        plan_upload(tmp_path / "begun", REPOSITORY)
    done = CliRunner().invoke(cli, ["push", str(tmp_path / "begun"), REPOSITORY, "--dry-run"])
    assert done.exit_code == 1


def test_a_cache_with_paths_in_its_manifest_is_not_published_unasked(
    hub: Hub, tmp_path: Path
) -> None:
    dataset = {**MANIFEST.dataset.model_dump(), "source": "/home/alice/client-x/train.jsonl"}
    make_cache(tmp_path, make_manifest(dataset=dataset))
    named = "dataset.source: /home/alice/client-x/train.jsonl"
    refused = _command("push", tmp_path, REPOSITORY)
    assert refused.exit_code == 1
    assert named in refused.stderr
    assert "--publish-paths" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not hub.requests
    assert named in _command("push", tmp_path, REPOSITORY, "--dry-run").stdout
    assert _command("push", tmp_path, REPOSITORY, "--private").exit_code == 0
    assert _command("push", tmp_path, "me/open", "--publish-paths").exit_code == 0
    there = dict(hub.files("datasets/me/open"))
    public = _command("push", tmp_path, "me/open", "--private")
    assert named in public.stderr  # a repository that is there stays as public as it was
    assert hub.files("datasets/me/open") == there


def test_a_cache_whose_folder_is_a_link_goes_up_whole(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    make_cache(path, MANIFEST)
    assert _command("push", path, REPOSITORY).exit_code == 0
    there = dict(hub.files(f"datasets/{REPOSITORY}"))
    (path / "shards").rename(tmp_path / "other disk")
    (path / "shards").symlink_to(tmp_path / "other disk")
    assert plan_upload(path, REPOSITORY).left_behind == ()
    assert _command("push", path, REPOSITORY).exit_code == 0
    assert hub.files(f"datasets/{REPOSITORY}") == there


def test_a_cache_that_lost_a_file_stays_here(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, MANIFEST)
    (tmp_path / "shards/00003.json").unlink()
    with pytest.raises(CacheError, match=r"00003\.json: .*cannot be shared without it"):
        select_cache_files(tmp_path, cache)
    with pytest.raises(CacheError, match=r"00003\.json: file is missing"):
        plan_upload(tmp_path, REPOSITORY)


def test_only_the_files_of_a_cache_go_up(tmp_path: Path) -> None:
    make_cache(tmp_path, MANIFEST)
    for name in ("notes.txt", "shards/00099.zarr.zip", "processor/old.json", "dump.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", "utf-8")
    upload = plan_upload(tmp_path, REPOSITORY)
    assert {"manifest.json", "index.json", "shards/00005.zarr.zip"} <= upload.files.keys()
    assert {"notes.txt", "shards/00099.zarr.zip", "dump.log", "processor/old.json"} == {
        *upload.left_behind
    }


def _student(folder: Path, *names: str) -> Path:
    for name in ("config.json", "README.md", "model.safetensors", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", "utf-8")
    return folder


def test_a_student_leaves_training_and_other_folders_behind(hub: Hub, tmp_path: Path) -> None:
    kept = ("exits/verbalizers.json", "exits/verbalizers.safetensors", "code/model.py")
    trained = ("checkpoint-5/model.safetensors", "optimizer.pt", "x/states.pth", "optimizer.bin")
    student = _student(tmp_path / "one", *kept, *trained)
    (tmp_path / "secret.txt").write_text("mine", "utf-8")
    (student / "link.txt").symlink_to(tmp_path / "secret.txt")
    (student / "folder").symlink_to(tmp_path)
    (student / "same.json").symlink_to("config.json")
    upload = plan_upload(student, REPOSITORY)
    assert {*upload.files} == {"config.json", "model.safetensors", "same.json", *kept}
    assert {*upload.left_behind} == {*trained, "link.txt", "folder"}
    done = _command("push", student, "me/student")
    assert done.exit_code == 0, done.stderr
    assert "optimizer.pt" in done.stderr
    bare = _student(tmp_path / "two")
    assert _command("push", bare, "me/student").exit_code == 0
    assert not [name for name in hub.files("models/me/student") if name.startswith("exits/")]
    (bare / "model.safetensors").unlink()
    (bare / "model.safetensors").symlink_to(student / "model.safetensors")
    with pytest.raises(ModelError, match="is a link out of the student's folder"):
        plan_upload(bare, REPOSITORY)


def test_a_card_names_the_hub_and_hides_paths(local: Path, tmp_path: Path) -> None:
    recipe = recipe_from_mapping(
        {
            "teacher": {"model": "Qwen/Qwen2-VL-7B-Instruct"},
            "student": {"model": "Qwen/Qwen2-VL-2B-Instruct", "revision": "v1"},
            "data": {"path": [str(tmp_path / "secret" / "rows.jsonl"), "owner/dataset:config"]},
            "cache": {"path": "s3://private-bucket/caches/one", "k": 4, "m": 12},
            "output": str(tmp_path / "secret" / "run"),
            "held_out": {"part": 0.1},
        },
        where="test",
    )
    facts = StudentFacts(
        name="Qwen2-VL-2B-Instruct",
        recipe=recipe,
        sees_images=True,
        data=f"{tmp_path}/secret/rows.jsonl",
        data_fingerprint="f" * 64,
        num_samples=1200,
        cache=open_cache(local),
        figures=[("finetuning", "held-out loss, nats per token", 1.23456)],
    )
    card = student_card(facts)
    metadata = _front_matter(card)
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": "Qwen/Qwen2-VL-2B-Instruct",
        "base_model_relation": "finetune",
        "datasets": ["owner/dataset"],
        "tags": ["vlsi-cache", "distillation"],
    }
    assert "\n# Qwen2-VL-2B-Instruct, distilled from teacher\n" in card
    parsed = ModelCard(card)  # raises for metadata that the hub does not take
    assert parsed.data.to_dict() == metadata
    validate_repo_id(parsed.data.base_model)
    assert "secret" not in card
    assert "private-bucket" not in card
    assert "| began as | Qwen/Qwen2-VL-2B-Instruct at `v1` |" in card
    assert f"| cache | `{open_cache(local).digest}` |" in card
    assert "| data | rows.jsonl, 1,200 samples |" in card
    assert "| finetuning | held-out loss, nats per token | 1.235 |" in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert settings["held_out"] == {"part": 0.1}
    # k is the default's, and would mean another record if it were left out
    record = {name: settings["cache"][name] for name in ("k", "m", "drawn_from")}
    assert record == {"k": 4, "m": 12, "drawn_from": "rest"}
    assert settings["data"]["path"] == ["rows.jsonl", "owner/dataset:config"]


@pytest.mark.parametrize(
    "interaction",
    [
        {},
        {"inner_weight": 1},
        {"inner_weight": 1, "inner_weight_of": "all", "inner_schedule": {"until": 0.5}},
        {"inner_weight_of": "all"},
        {"output": "none", "inner_weight": 1},
        {"inner_target": "output"},
    ],
)
def test_the_recipe_of_a_card_has_the_taps_weight_that_trained(
    interaction: dict[str, Any], local: Path
) -> None:
    recipe = recipe_from_mapping({"interaction": interaction}, where="test")
    facts = StudentFacts(
        name="student",
        recipe=recipe,
        sees_images=False,
        data="rows.jsonl",
        data_fingerprint="f" * 64,
        num_samples=12,
        cache=open_cache(local),
    )
    shown = yaml.safe_load(student_card(facts).split("```yaml\n")[1].split("```")[0]) or {}
    again = recipe_from_mapping({"interaction": shown.get("interaction", {})}, where="card")
    assert again.interaction == recipe.interaction


def test_a_card_names_a_cache_of_the_hub_and_no_base_that_is_a_folder(
    local: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    raw = {
        "student": {"model": str(tmp_path / "base")},
        "data": {"path": [str(tmp_path / "rows.jsonl"), "owner/rows:a", "owner/rows:b"]},
        "cache": {"path": "hf://datasets/me/record@main/top"},
    }
    recipe = recipe_from_mapping(raw, where="test")
    facts = StudentFacts("base", recipe, False, "rows.jsonl", "f" * 64, 1, open_cache(local))
    metadata = ModelCard(student_card(facts)).data.to_dict()
    assert metadata["datasets"] == ["owner/rows", "me/record"]
    assert metadata["pipeline_tag"] == "text-generation"
    assert not {"base_model", "base_model_relation"} & metadata.keys()
    alone = StudentFacts("base", recipe, False, "rows.jsonl", "f" * 64, 1)
    assert "\n# base, fine-tuned\n" in student_card(alone)


def test_a_student_keeps_the_name_of_what_it_began_as(tmp_path: Path) -> None:
    assert student_name("Qwen/Qwen2-VL-2B-Instruct") == "Qwen2-VL-2B-Instruct"
    folder = tmp_path / "student"
    folder.mkdir()
    assert student_name(str(folder)) == "student"
    (folder / "README.md").write_text("---\na: 1\n---\n\n# small, distilled from big\n\n# more\n")
    assert student_name(str(folder)) == "small"
