"""One set out of several: mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from maskmine.pipelines.cli.app import JsonOption, app, err, print_json, print_line
from maskmine.pipelines.settings.licences import LicencePolicy
from maskmine.schemas.wording import counted
from maskmine.tuning.console import plain_progress

if TYPE_CHECKING:
    from maskmine.pipelines.mix.mix import Mixed


@app.command()
def mix(
    sets: Annotated[
        list[str], typer.Argument(metavar="DIR:WEIGHT…", help="Finished runs or mixes, as in runs/a:0.7 runs/b:0.3.")
    ],
    target: Annotated[str, typer.Option("--out", metavar="DIR", help="The folder to write, here or on a store.")],
    samples: Annotated[int | None, typer.Option(help="Pairs of the mix; else as many as the weights allow.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other images.")] = 0,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Keep images that several sets have, in all of them.")
    ] = False,
    bits: Annotated[int, typer.Option(min=0, max=16, help="Bits of 64 in which copies may differ.")] = 6,
    shard_size: Annotated[int, typer.Option(min=1, help="Pairs in a shard.")] = 10_000,
    licence_policy: Annotated[
        LicencePolicy, typer.Option(help="commercial: refuse what is not known to allow it.")
    ] = "any",
    threads: Annotated[int, typer.Option(min=1, max=64, help="Images and pairs read at the same time.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Mix finished sets by weights into one, or continue after any interruption; copies of images are left out."""
    from maskmine.pipelines.mix.choice import parse_mixing
    from maskmine.pipelines.mix.mix import mix_sets
    from maskmine.pipelines.mix.sources import parse_weights
    from maskmine.pipelines.run_folder.claim import writing_alone

    given = parse_weights(sets)
    mixing = parse_mixing(
        samples=samples, seed=seed, copy_bits=None if keep_duplicates else bits, samples_per_shard=shard_size
    )
    with plain_progress(console=err) as progress, writing_alone(target):

        def begin(what: str, count: int) -> Callable[[int], None]:
            task = progress.add_task(what, total=count, state="")
            return lambda more: progress.advance(task, more)

        mixed = mix_sets(given, mixing, out=target, policy=licence_policy, threads=threads, begin=begin)
    _print_mixed(mixed, target, as_json=as_json)


def _print_mixed(mixed: Mixed, target: str, *, as_json: bool) -> None:
    totals = mixed.manifest.totals
    for note in mixed.notes:
        err.print(note)
    if as_json:
        sets = [entry.model_dump(mode="json", exclude={"models", "sources"}) for entry in mixed.manifest.mixed_from]
        print_json({"out": target, "totals": totals.model_dump(mode="json"), "mixed_from": sets})
        return
    if mixed.was_complete:
        print_line(f"{target} is complete; nothing to do")
        return
    print_line(
        f"{target}: {counted(totals.samples, 'pair')} of {counted(totals.images, 'image')} in "
        f"{counted(len(mixed.manifest.shards), 'shard')}, {decimal(totals.size_bytes)}"
    )
    for entry in mixed.manifest.mixed_from:
        print_line(f"  {entry.samples / totals.samples:.1%} {entry.folder}: {counted(entry.samples, 'pair')}")
