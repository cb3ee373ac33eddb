"""Putting a set on the Hugging Face hub: push."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from maskmine.pipelines.cli.app import JsonOption, app, err, print_json, print_line
from maskmine.schemas.errors import InputError
from maskmine.schemas.wording import counted
from maskmine.tuning.console import plain_progress

if TYPE_CHECKING:
    from maskmine.pipelines.push.push import Pushed


@app.command()
def push(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A finished run, or a finished export.")],
    address: Annotated[str, typer.Argument(metavar="URL", help="hf://datasets/ORG/NAME; made where it is not there.")],
    form: Annotated[
        str | None, typer.Option("--as", metavar="FORMAT", help="Of a run: hf, or another form of `maskmine export`.")
    ] = None,
    export_to: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where a run's set is made first; else DIR.push beside it.")
    ] = None,
    licence_policy: Annotated[
        str, typer.Option(metavar="any|commercial", help="commercial: refuse what is not known to allow it.")
    ] = "any",
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    revision: Annotated[str | None, typer.Option(metavar="BRANCH", help="Another branch than main.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of another set.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commits.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go; asks no hub.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a set on the Hugging Face hub, or continue after any interruption; sends what is not there yet."""
    from maskmine.pipelines.push.address import parse_address
    from maskmine.pipelines.push.push import Push, push_set

    if licence_policy not in ("any", "commercial"):
        raise InputError(f"--licence-policy: input should be 'any' or 'commercial', not {licence_policy!r}")
    asked = Push(
        source=folder,
        address=parse_address(address, branch=revision),
        form=form,
        export_to=export_to,
        policy="commercial" if licence_policy == "commercial" else "any",
        private=private,
        replace=replace,
        message=message,
    )
    with plain_progress(console=err) as progress:

        def begin(samples: int) -> Callable[[int], None]:
            task = progress.add_task("making the set", total=samples, state="")
            return lambda more: progress.advance(task, more)

        pushed = push_set(asked, dry_run=dry_run, begin=begin, say=err.print)
    _print_pushed(pushed, str(asked.address), as_json=as_json)


def _print_pushed(pushed: Pushed, address: str, *, as_json: bool) -> None:
    if as_json:
        names = {"files": pushed.files, "removed": pushed.removed, "not_commercial": pushed.not_commercial}
        print_json({"address": address, "url": pushed.url, "commit": pushed.commit, **names})
        return
    total = f"{counted(len(pushed.files), 'file')}, {decimal(sum(pushed.files.values()))}"
    if pushed.commit is None:
        for name, size_bytes in pushed.files.items():
            print_line(f"{decimal(size_bytes):>10}  {name}")
        print_line(f"{address}: {total} would go; nothing was sent")
        return
    print_line(f"{pushed.url}: {total}, commit {pushed.commit}")
