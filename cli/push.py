"""``vlsi-cache push``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlsi_cache.cli.completion import complete_folders
from vlsi_cache.cli.early import validate_folder_there
from vlsi_cache.cli.options import errors_in_one_line
from vlsi_cache.cli.paths import HOME_PATH
from vlsi_cache.cli.terminal import log_to

if TYPE_CHECKING:
    from vlsi_cache.sharing import Upload

__all__ = ["command"]


@click.command("push", short_help="Upload a student or a cache to the hub.")
@errors_in_one_line
@click.argument("path", metavar="PATH", type=HOME_PATH, shell_complete=complete_folders)
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private, if it is new.")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to.  [default: main]")
@click.option("--message", help="Message of the commit.")
@click.option(
    "--publish-paths",
    is_flag=True,
    help="Publish the paths of this machine that a cache's manifest names.",
)
@click.option("--dry-run", is_flag=True, help="Print the files and the card, and upload nothing.")
def command(path: Path, repository: str, *, dry_run: bool, **options: Any) -> None:
    """Upload a student or a cache to the Hugging Face hub, with its card.

    PATH is a finished student's folder, for a model repository, or a complete cache's, for a
    dataset repository. One commit brings all files. Token and address are those of hf auth login,
    HF_TOKEN and HF_ENDPOINT. No other command uploads anything.
    """
    log_to("stderr")
    validate_folder_there(path, "Give the folder of a finished student or of a complete cache")
    from vlsi_cache.sharing import plan_upload, push_to_hub

    if dry_run:
        _show(plan_upload(path, repository), repository)
        return
    commit = push_to_hub(path, repository, **options)
    click.echo(f"commit: {commit}")


def _show(upload: Upload, repository: str) -> None:
    sizes = upload.sizes
    click.echo(f"{upload.kind} repository {repository}: {len(sizes)} files")
    for name, num_bytes in sizes.items():
        click.echo(f"{num_bytes:>15,}  {name}")
    for name in upload.left_behind:
        click.echo(f"{'stays behind':>15}  {name}")
    for name in upload.private_names:
        click.echo(f"{'would be shown':>15}  {name}")
    click.echo(f"{sum(sizes.values()):>15,}  bytes in all\n\n{upload.card}", nl=False)
