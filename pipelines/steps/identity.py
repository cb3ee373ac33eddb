"""The identity of a run: what of its settings decides results, and from it the fingerprint of each step.

A fingerprint covers a step's own settings and the fingerprints of what it reads. So a new threshold changes `shards`
alone, new captions everything but `proposals` and `embeddings`, and another CLIP everything but `proposals`. What a
setting names counts by its content alone: by the hash of a
file, of a model's weights, of a list's words.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskmine.mining.captioners.florence2 import Florence2
from maskmine.mining.captioners.kinds import AnyCaptioner
from maskmine.mining.captions import source_name
from maskmine.mining.checks import how_checked
from maskmine.mining.evaluation.corrections import Decisions
from maskmine.mining.evaluation.verdicts import Verdicts, read_verdicts
from maskmine.mining.models.devices import DeviceKind, check_device_name, kind_of
from maskmine.mining.pairs import ClipPairs, Filters
from maskmine.mining.selection import THRESHOLDS
from maskmine.mining.shards import MOST_IN_PART
from maskmine.pipelines.planning.plan import Plan
from maskmine.pipelines.run_folder.caption_cells import CAPTIONING
from maskmine.pipelines.run_folder.region_cells import OLDER
from maskmine.pipelines.settings.fingerprints import deciding, portable, with_known
from maskmine.pipelines.settings.mining import Mining
from maskmine.schemas.errors import InputError
from maskmine.schemas.sample import CHECKED_VERSION, FORMAT_VERSION, WHOLE_VERSION
from maskmine.schemas.settings import fingerprint

# The steps whose fingerprints enter a step's own, in this order; those that they read in turn follow through them. Each
# step stands after those that it reads. `shards` also waits for `selection`, whose cut follows from `pairs` and filters
# that it has too; and `checks` for `pairs`: what it knew of a pair holds for that pair among any others. Where models
# write captions, `nouns` reads a step for each, whose names begin with `captioning-`.
READS: Mapping[str, tuple[str, ...]] = {
    "nouns": (),
    "vocabulary": ("nouns",),
    "proposals": (),
    "embeddings": ("proposals",),
    "levels": ("nouns", "proposals", "embeddings", "vocabulary"),
    "pairs": ("nouns", "proposals", "embeddings", "vocabulary", "levels"),
    "checks": ("proposals",),
    "selection": ("pairs", "checks"),
    "negatives": ("nouns", "proposals", "embeddings", "vocabulary", "levels"),
    "shards": ("pairs", "checks", "negatives"),
}
# Raised when the code of a step changes what it writes; cells of the old code are then stale.
STEP_VERSIONS = {
    "nouns": 2,
    "vocabulary": 2,
    "proposals": 1,
    "embeddings": 1,
    "levels": 1,
    "pairs": 3,
    "checks": 1,
    "selection": 1,
    "negatives": 1,
    "shards": FORMAT_VERSION,
}
_CAPTIONING_VERSION = 1
_OLDER_REGIONS = 2  # the last version of the step `regions`, which was both
_HOW = ("device", "batch_size", "cpu_threads")  # of `regions`: decide the last bits of models
# The settings of `pairs` that `shards` applies: pairs that fall to them are in the cells of `pairs` all the same.
_FILTERS = {*Filters.model_fields, *(f"min_{score}" for score in THRESHOLDS)}


@dataclass(frozen=True)
class Identity:
    """What decides the results of a run, as plain values: `settings` whole as the manifest has them, and by step.

    `text` is the fingerprint of what text embeddings are made by; `fetching` are the limits on images at URLs, which
    count where there are any; `decisions` are those of verdicts on pairs; `captioning` is what decides the captions of
    each captioner, by the name of its step.
    """

    settings: Mapping[str, Any]
    by_step: Mapping[str, Sequence[Any]]
    text: str
    fetching: Sequence[Any] = ()
    decisions: Decisions = field(default_factory=Decisions)
    captioning: Mapping[str, Any] = field(default_factory=dict)


def settle(
    settings: Mining, known: Mapping[str, Any] | None = None, *, here: Callable[[str], DeviceKind] = kind_of
) -> Mining:
    """The settings with whatever they leave to the machine decided: device, precisions, commits of a hub.

    `known` are those of this folder as an earlier run identified them, or of the run whose regions are reused: `auto`
    goes on as it was, so that a set is never made in two ways. `here` tells the kind of a device by its name. Raises
    InputError for a device of an unknown name, which else a worker would find long after the start.
    """
    before = (known or {}).get("regions", {})
    regions = settings.regions
    try:
        check_device_name(regions.device)
    except InputError as error:
        raise InputError(f"regions.{error}") from error
    checked, captioned = (known or {}).get("checks") or {}, _known_captioners(known)
    devices = [one.get("device") for one in (before, checked, *captioned.values())]
    kind = next(filter(None, devices), None) if regions.device == "auto" else None
    kind = kind if kind is not None else here(regions.device)
    settled = regions.settled(kind)
    pinned = _pinned(settled.proposals, before.get("proposals", {}))
    update: dict[str, Any] = {"regions": settled.model_copy(update={"proposals": pinned})}
    if settings.checks is not None:
        verifier = _pinned(settings.checks.verifier.settled(kind), checked.get("verifier", {}))
        update["checks"] = settings.checks.model_copy(update={"verifier": verifier})
    if isinstance(settings.captions, tuple):
        update["captions"] = tuple(
            _pinned(one.settled(kind), captioned.get(source_name(one), {})) if isinstance(one, Florence2) else one
            for one in settings.captions
        )
    return settings.model_copy(update=update)


def _pinned(model: Any, known: Mapping[str, Any]) -> Any:
    """The settings of a model at the commit that an earlier run had of it, where it is not on this machine."""
    named, checkpoint = known.get("checkpoint"), model.contents().get("checkpoint")
    if isinstance(named, Mapping) and named.get("revision") and with_known(checkpoint, named) != checkpoint:
        return model.model_copy(update={"revision": named["revision"]})
    return model


def identify(settings: Mining, known: Mapping[str, Any] | None = None) -> Identity:
    """The identity of a run of these settings, `settle`d. Files that they name are hashed, so this is done once a run.

    Lists that a name stands for count by what is in them, so that an edited list makes its cells stale; verdicts by the
    pairs that they call wrong or correct, whoever gave them. What is not on this machine counts as it did in `known`.
    Raises InputError when a list or verdicts cannot be read.
    """
    settled = settle(settings, known)
    values, pairs = with_known(portable(settled), known), settings.pairs
    if settled.checks is not None:
        values["checks"] = {**values["checks"], **how_checked(settled.regions)}
    captioning = dict(_identified_captioners(settled, values, _known_captioners(known)))
    clip = values["regions"]["clip"]
    of_text = None
    if clip and isinstance(pairs, ClipPairs):  # prompts are of its image side
        of_text = {name: value for name, value in clip.items() if name != "prompts"}
    device = {name: values["regions"][name] for name in ("device", "cpu_threads")} if of_text else None
    text = fingerprint([deciding(of_text), device, deciding(values["vocabulary"])])
    filters = {name: value for name, value in values["pairs"].items() if name in _FILTERS}
    rule = {name: value for name, value in values["pairs"].items() if name not in _FILTERS}
    verdicts = read_verdicts(settings.shards.verdicts) if settings.shards.verdicts is not None else Verdicts(())
    if settings.shards.verdicts is not None:
        name = posixpath.basename(settings.shards.verdicts.rstrip("/"))
        told = {"name": name, "wrong": len(verdicts.wrong), "wrong_sha256": verdicts.digest}
        values["shards"]["verdicts"] = {**told, **verdicts.counts}
    shards = {name: value for name, value in values["shards"].items() if name != "verdicts"}
    if shards["images_per_part"] == "auto":  # the parts count by the plan; so runs of the earlier default stay current
        shards["images_per_part"] = MOST_IN_PART
    decided = [verdicts.digest] if verdicts.decisions else []
    by_step: dict[str, Sequence[Any]] = {
        "nouns": (deciding(values["nouns"]),),
        "vocabulary": (text,),
        "levels": (values["levels"] if isinstance(pairs, ClipPairs) else None,),
        "pairs": (deciding(rule),),
        "selection": (filters, *decided),
        "shards": (filters, shards, *decided, *captioning),
    }
    if settings.checks is not None:
        by_step = {"checks": (deciding(values["checks"]),), **by_step}
    if settings.negatives is not None:
        by_step = {"negatives": (deciding(values["negatives"]),), **by_step}
    fetch = settings.regions.decoding.fetch
    fetching = (fetch.most_megabytes, fetch.redirects, fetch.robots, *([fetch.intranet] if fetch.intranet else []))
    return Identity(values, by_step, text, fetching, verdicts.decisions, captioning)


def _known_captioners(known: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """The captioners of settings that were identified before, by name."""
    stored = (known or {}).get("captions")
    entries = stored if isinstance(stored, list) else []
    return {str(one.get("name") or one.get("kind")): one for one in entries if isinstance(one, Mapping)}


def _identified_captioners(
    settings: Mining, values: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """What decides the captions of each captioner, by its step; `values` then say on what a model runs."""
    entries = settings.captions if isinstance(settings.captions, tuple) else ()
    for number, one in enumerate(entries):
        if not isinstance(one, AnyCaptioner):
            continue
        name = source_name(one)
        if isinstance(one, Florence2):
            values["captions"][number] = with_known(values["captions"][number], known.get(name)) | how_checked(
                settings.regions
            )
        decides = {key: value for key, value in values["captions"][number].items() if key != "name"}
        yield f"{CAPTIONING}{name}", deciding(decides)


def step_fingerprints(plan: Plan, identity: Identity) -> dict[str, str]:
    """The fingerprint of the cells of each step in a run of this plan."""
    of_plan: dict[str, tuple[Any, ...]] = {
        "nouns": (plan.captions_sha256, plan.images_sha256),
        "shards": (plan.captions_sha256, plan.sources_sha256),
    }
    of_regions = region_fingerprints(plan, identity.settings["regions"], fetching=identity.fetching)
    prints = _captioning_fingerprints(plan, identity)
    written = list(prints)
    prints |= {step: of_regions[step] for step in READS if step in of_regions}
    for step in (step for step in READS if step in identity.by_step):
        read = [prints[name] for name in (*(written if step == "nouns" else ()), *READS[step]) if name in prints]
        prints[step] = fingerprint([step, STEP_VERSIONS[step], *of_plan.get(step, ()), *read, *identity.by_step[step]])
    return prints


def format_version(settings: Mining, *, corrected: bool = False) -> int:
    """The format version of the set that these settings make: the least one that has all of its columns.

    `corrected`: whether reviewers replaced the noun or mask of some pair.
    """
    if corrected or settings.negatives is not None:
        return WHOLE_VERSION
    return FORMAT_VERSION if settings.checks is None else CHECKED_VERSION


def _captioning_fingerprints(plan: Plan, identity: Identity) -> dict[str, str]:
    """The fingerprint of the captions of each captioner: of model, prompt and images, and of no other captions."""
    of_plan = (plan.images_sha256, plan.parts, *(identity.fetching if plan.urls else ()))
    return {
        step: fingerprint([CAPTIONING, _CAPTIONING_VERSION, *of_plan, decides])
        for step, decides in identity.captioning.items()
    }


def checks_fingerprint(proposals: str, checks: Mapping[str, Any]) -> str:
    """The fingerprint of the cells of `checks` by these values, of pairs of proposals with that fingerprint."""
    return fingerprint(["checks", STEP_VERSIONS["checks"], proposals, deciding(checks)])


def region_fingerprints(plan: Plan, regions: Mapping[str, Any], *, fetching: Sequence[Any] = ()) -> dict[str, str]:
    """The fingerprints of the cells of `proposals`, of `embeddings` where there is a CLIP, and of the `regions` of
    earlier versions, in a run of this plan whose values of `regions` are those."""
    made = deciding_regions(regions)
    of_plan = (plan.images_sha256, plan.parts, *(fetching if plan.urls else ()))
    proposals = fingerprint(["proposals", STEP_VERSIONS["proposals"], *of_plan, made["proposals"]])
    prints = {"proposals": proposals, OLDER: fingerprint([OLDER, _OLDER_REGIONS, *of_plan, made[OLDER]])}
    if regions["clip"] is not None:
        seen = ["embeddings", STEP_VERSIONS["embeddings"], proposals, made["embeddings"]]
        prints["embeddings"] = fingerprint(seen)
    return prints


def deciding_regions(regions: Mapping[str, Any]) -> dict[str, Any]:
    """What of the values of `regions` decides the cells of `proposals`, those of `embeddings`, and the `regions` of
    earlier versions. Where no model proposes, how models run decides embeddings alone."""
    clip = regions["clip"] and {**regions["clip"], "tokenizer": None}  # it reads no text
    how = {name: regions[name] for name in _HOW}
    proposed = {name: value for name, value in regions.items() if name not in ("clip", "crop", *_HOW)}
    if regions["proposals"]["kind"] != "ground_truth":
        proposed |= how
    seen = {"clip": clip, "crop": regions["crop"], **how}
    return {"proposals": deciding(proposed), "embeddings": deciding(seen), OLDER: deciding({**regions, "clip": clip})}
