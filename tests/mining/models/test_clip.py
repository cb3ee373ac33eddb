"""CLIP through open_clip: a tiny model with random weights takes the same path as a large one."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskmine.mining.models.clip import Clip
from maskmine.mining.models.clip_weights import imagenet_templates
from maskmine.mining.storage.content_hash import weights_sha256
from maskmine.schemas.errors import InputError
from tests.support.models import ARCHITECTURE, WEIGHTS, save_tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_image_side_is_that_of_open_clip(folder: Path) -> None:
    tower = Clip(model=str(folder), batch_size=4).open_image(device="cpu")
    reference = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        expected = reference.encode_image(pixels(6), normalize=True)
    found = tower.embed(pixels(6))
    assert (tower.size_px, tower.dim, tower.mean, tower.std) == (32, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_folder_is_identified_without_open_clip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = Clip(model=str(folder)).contents()
    monkeypatch.setitem(sys.modules, "open_clip", None)  # importing it fails
    assert Clip(model=str(folder)).contents() == contents
    assert contents["model"]["sha256"] is not None


def test_the_text_side_is_that_of_open_clip(folder: Path) -> None:
    texts = ["a photo of a cat.", "dog", "word " * 300]
    reference = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        expected = reference.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts), normalize=True)
    tower = Clip(model=str(folder), batch_size=2).open_text(device="cpu")
    found = tower.embed(texts)
    assert (found.dtype, tower.dim) == (torch.float32, 32)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_embedding_has_the_same_bits_in_any_company(folder: Path) -> None:
    clip = Clip(model=str(folder), batch_size=8)
    tower = clip.open_image(device="cpu")
    together = tower.embed(pixels(21))
    order = torch.randperm(21, generator=torch.Generator().manual_seed(2))
    assert torch.equal(tower.embed(pixels(21)[order]), together[order])
    assert torch.equal(tower.embed(pixels(21)[13:14]), together[13:14])
    text_tower, texts = clip.open_text(device="cpu"), [f"a photo of {number} cats" for number in range(11)]
    assert torch.equal(text_tower.embed(texts[::-1]), text_tower.embed(texts).flip(0))


def test_every_batch_has_the_same_shape(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    real = open_clip.model.VisionTransformer.forward

    def forward(self: Any, batch: Tensor) -> Any:
        shapes.append(tuple(batch.shape))
        return real(self, batch)

    monkeypatch.setattr(open_clip.model.VisionTransformer, "forward", forward)
    Clip(model=str(folder), batch_size=8).open_image(device="cpu").embed(pixels(11))
    assert shapes == [(8, 3, 32, 32)] * 2


def test_only_the_side_in_use_stays_in_memory(folder: Path) -> None:
    def sides() -> int:
        gc.collect()
        return sum(type(thing) is open_clip.model.VisionTransformer for thing in gc.get_objects())

    before = sides()
    text_tower = Clip(model=str(folder)).open_text(device="cpu")
    assert sides() == before
    image_tower = Clip(model=str(folder)).open_image(device="cpu")
    assert sides() == before + 1
    assert text_tower.dim == image_tower.dim


def test_a_model_that_gives_tokens_too_gives_the_same_embedding(folder: Path, tmp_path: Path) -> None:
    vision = {**ARCHITECTURE["vision_cfg"], "output_tokens": True}
    with_tokens = save_tiny_clip(tmp_path, vision_cfg=vision)
    towers = [Clip(model=str(path), batch_size=2).open_image(device="cpu") for path in (with_tokens, folder)]
    assert torch.equal(*[tower.embed(pixels(2)) for tower in towers])


def test_nothing_embeds_to_nothing(folder: Path) -> None:
    clip = Clip(model=str(folder))
    assert clip.open_image(device="cpu").embed(pixels(0)).shape == (0, 32)
    assert clip.open_text(device="cpu").embed([]).shape == (0, 32)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_full_precision(folder: Path, precision: str) -> None:
    half = Clip.model_validate({"model": str(folder), "precision": precision, "batch_size": 2})
    full = Clip(model=str(folder), precision="float32", batch_size=2)
    found, expected = (clip.open_image(device="cpu").embed(pixels(2)) for clip in (half, full))
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    found, expected = (clip.open_text(device="cpu").embed(["cat", "dog"]) for clip in (half, full))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_numbers_that_are_not_finite_are_a_fault_of_the_precision(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["visual.ln_post.weight"] *= float("inf")
    save_file(weights, tmp_path / "infinite.safetensors")
    config = str(folder / "open_clip_config.json")
    tower = Clip(model=config, pretrained=str(tmp_path / "infinite.safetensors")).open_image(device="cpu")
    with pytest.raises(InputError, match=r"clip\.precision: .* not finite"):
        tower.embed(pixels(1))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize("form", ["whole configuration", "architecture alone"])
def test_an_architecture_in_json_takes_weights_from_a_file(
    folder: Path, tmp_path: Path, suffix: str, form: str
) -> None:
    config = folder / "open_clip_config.json"
    if form == "architecture alone":
        config = tmp_path / "tiny.json"
        config.write_text(json.dumps(ARCHITECTURE))
    weights, file = load_file(folder / WEIGHTS), tmp_path / f"weights{suffix}"
    save_file(weights, file) if suffix == ".safetensors" else torch.save({"state_dict": weights}, file)
    clip = Clip(model=str(config), pretrained=str(file), batch_size=4)
    tower = clip.open_image(device="cpu")
    assert torch.equal(
        tower.embed(pixels(3)), Clip(model=str(folder), batch_size=4).open_image(device="cpu").embed(pixels(3))
    )
    assert tower.mean == ((0.5, 0.4, 0.3) if form == "whole configuration" else open_clip.OPENAI_DATASET_MEAN)
    assert clip.open_text(device="cpu").embed(["cat"]).shape == (1, 32)


def test_the_record_tells_which_weights_and_whose_licence(folder: Path, tmp_path: Path, no_network: None) -> None:
    of_folder = Clip(model=str(folder), licence="MIT").record()
    assert (of_folder.role, of_folder.name, of_folder.licence) == ("clip", folder.name, "MIT")
    assert of_folder.sha256 == weights_sha256(folder) == Clip(model=f"local-dir:{folder}").record().sha256
    assert Clip(model=str(folder)).record().licence == "unknown"
    weights = folder / WEIGHTS
    of_file = Clip(model="ViT-B-32", pretrained=str(weights)).record()
    assert of_file.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(ARCHITECTURE))
    first = Clip(model=str(config), pretrained=str(weights)).record().sha256
    config.write_text(json.dumps({**ARCHITECTURE, "quick_gelu": False}))
    assert Clip(model=str(config), pretrained=str(weights)).record().sha256 != first


def test_published_weights_that_are_not_here_have_a_licence_and_no_hash(no_network: None) -> None:
    record = Clip(model="ViT-L-14", pretrained="openai").record()
    assert (record.name, record.sha256, record.licence) == ("ViT-L-14 openai", None, "MIT")
    assert Clip(model="hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K").record().licence == "MIT"


@pytest.mark.parametrize(
    ("clip", "licence"),
    [
        (Clip(model="ViT-B-16-SigLIP2", pretrained="webli"), "Apache-2.0"),
        (Clip(model="hf-hub:timm/PE-Core-B-16"), "Apache-2.0"),
        (Clip(model="EVA02-B-16", pretrained="merged2b_s8b_b131k"), "MIT"),
        (Clip(model="ViT-B-16-quickgelu", pretrained="metaclip_400m"), "CC-BY-NC-4.0"),
    ],
)
def test_licences_of_encoders_are_known(clip: Clip, licence: str) -> None:
    assert clip.record().licence == licence


def keep_in_hub_cache(*files: Path, cache: Path) -> None:
    """Put files where huggingface_hub keeps those of `someone/tiny`."""
    kept = cache / "models--someone--tiny"
    (kept / "snapshots" / "1").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("1")
    for file in files:
        (kept / "snapshots" / "1" / file.name).write_bytes(file.read_bytes())


def test_a_published_model_is_found_where_it_is_kept(folder: Path, tmp_path: Path, no_network: None) -> None:
    keep_in_hub_cache(folder / "open_clip_config.json", folder / WEIGHTS, cache=tmp_path / "hub")
    published, local = Clip(model="hf-hub:someone/tiny", batch_size=4), Clip(model=str(folder), batch_size=4)
    assert published.record().sha256 == weights_sha256(folder / WEIGHTS)
    towers = [clip.open_image(device="cpu") for clip in (published, local)]
    assert torch.equal(*[tower.embed(pixels(2)) for tower in towers])


def test_a_published_configuration_without_weights_is_refused(folder: Path, tmp_path: Path, no_network: None) -> None:
    keep_in_hub_cache(folder / "open_clip_config.json", cache=tmp_path / "hub")
    with pytest.raises(InputError, match="is not on this machine, and HF_HUB_OFFLINE is set"):
        Clip(model="hf-hub:someone/tiny").open_image(device="cpu")


def test_published_weights_are_found_where_they_are_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    """A tag whose weights are in the hub's cache loads without a network, with the activation of the tag."""
    keep_in_hub_cache(folder / WEIGHTS, cache=tmp_path / "hub")
    architecture = {**ARCHITECTURE, "quick_gelu": False}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny", architecture)
    tag = {"hf_hub": "someone/tiny/", "quick_gelu": True, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny", {"someone": tag})
    clip = Clip(model="Tiny", pretrained="someone", batch_size=4)
    assert clip.record().sha256 == weights_sha256(folder / WEIGHTS)
    tower = clip.open_image(device="cpu")
    assert tower.mean == (0.5, 0.4, 0.3)
    assert torch.equal(
        tower.embed(pixels(2)), Clip(model=str(folder), batch_size=4).open_image(device="cpu").embed(pixels(2))
    )


def test_published_weights_that_cannot_be_fetched_are_one_line(no_network: None) -> None:
    for clip in (Clip(model="ViT-B-32", pretrained="laion2b_s34b_b79k"), Clip(model="hf-hub:someone/nothing")):
        with pytest.raises(InputError) as error:
            clip.open_image(device="cpu")
        assert "is not on this machine, and HF_HUB_OFFLINE is set" in one_line(error)
        assert "name a folder or file" in one_line(error)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "ViT-L-14"}, "says nothing without weights"),
        ({"model": "ViT-L14", "pretrained": "openai"}, "did you mean ViT-L-14"),
        ({"model": "/nowhere/clip", "pretrained": "openai"}, "there is no such folder, and open_clip has no"),
        ({"model": "ViT-L-14", "pretrained": "open-ai"}, "did you mean openai"),
        ({"model": "ViT-L-14", "pretrained": "nowhere.pt"}, "neither a file nor weights of ViT-L-14"),
        ({"model": "hf-hub:a/b", "pretrained": "openai"}, "brings its own weights"),
        ({"model": "local-dir:nowhere"}, "holds no open_clip_config.json"),
        ({"model": "nowhere.json", "pretrained": __file__}, "cannot be read as JSON"),
        ({"model": "nowhere.json", "pretrained": "nowhere.pt"}, "no file `nowhere.pt`"),
        ({"model": "nowhere.json"}, "says nothing without weights"),
    ],
)
def test_settings_that_name_nothing_are_one_line(settings: dict[str, str], message: str) -> None:
    clip = Clip.model_validate(settings)
    for use in (clip.record, lambda: clip.open_image(device="cpu"), lambda: clip.open_text(device="cpu")):
        with pytest.raises(InputError) as error:
            use()
        assert message in one_line(error)


def test_a_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    with pytest.raises(InputError, match="holds no weights"):
        Clip(model=str(tmp_path)).open_image(device="cpu")


def test_an_architecture_that_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    config, weights = tmp_path / "tiny.json", str(folder / WEIGHTS)
    for text, message in [
        ("[]", "lacks embed_dim, text_cfg, vision_cfg"),
        ("{", "cannot be read as JSON"),
        (json.dumps({**ARCHITECTURE, "colour": 1}), "unexpected keyword argument 'colour'"),
    ]:
        config.write_text(text)
        with pytest.raises(InputError) as error:
            Clip(model=str(config), pretrained=weights).open_image(device="cpu")
        assert message in one_line(error)


@pytest.mark.parametrize("changes", [{"embed_dim": 16}, {"vision_cfg": {**ARCHITECTURE["vision_cfg"], "layers": 3}}])
def test_weights_of_another_architecture_are_refused(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps({**ARCHITECTURE, **changes}))
    with pytest.raises(InputError) as error:
        Clip(model=str(config), pretrained=str(folder / WEIGHTS)).open_image(device="cpu")
    assert "are not those of" in one_line(error)


class Program:
    """What a pickle can do when it is trusted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran.txt"),))


def test_a_file_that_is_no_state_dict_is_refused_and_not_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Program(), "program.pt")
    Path("text.safetensors").write_text("not weights")
    Path("text.pt").write_text("not weights")
    Path("empty.pt").touch()
    torch.save([1, 2], "list.pt")
    torch.save({}, "nothing.pt")
    for file in ("program.pt", "text.safetensors", "text.pt", "empty.pt", "list.pt", "nothing.pt"):
        with pytest.raises(InputError) as error:
            Clip(model=str(folder / "open_clip_config.json"), pretrained=file).open_text(device="cpu")
        assert f"`{file}` cannot be loaded" in one_line(error)
    assert not Path("ran.txt").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")
def test_a_program_instead_of_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(InputError, match="TorchScript"):
        Clip(model="ViT-B-32", pretrained=str(tmp_path / "program.pt")).open_image(device="cpu")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("", []),
        ("", None),
        ("embed_dim", float("nan")),
        ("text_cfg", []),
        ("text_cfg", {"hf_tokenizer_name": 5}),
        ("text_cfg", {"hf_model_name": ["a"]}),
        ("vision_cfg", "a"),
        ("vision_cfg", {"layers": 10**9, "width": 8, "patch_size": 8, "image_size": 32}),
        ("vision_cfg", {"layers": 1, "width": 8, "patch_size": 0, "image_size": 32}),
        ("text_cfg", {"context_length": 10**9, "width": 8, "heads": 1, "layers": 1, "vocab_size": 50}),
    ],
)
def test_a_description_of_no_clip_is_refused_and_has_contents(
    folder: Path, tmp_path: Path, place: str, value: Any
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "open_clip_config.json"
    tree = json.loads(path.read_text())
    tree["model_cfg"] = {**tree["model_cfg"], place: value} if place else value
    path.write_text(json.dumps(tree))
    (tmp_path / "folder.json").mkdir()
    clip = Clip(model=str(tmp_path))
    assert clip.contents()["model"]["sha256"]
    assert clip.record().sha256
    with pytest.raises(InputError) as error:
        clip.open_text(device="cpu")
    one_line(error)


def test_input_that_is_not_square_is_refused(tmp_path: Path) -> None:
    vision = {**ARCHITECTURE["vision_cfg"], "image_size": [32, 16]}
    with pytest.raises(InputError, match="square"):
        Clip(model=str(save_tiny_clip(tmp_path, vision_cfg=vision))).open_image(device="cpu")


def test_there_are_eighty_templates_for_imagenet() -> None:
    templates = imagenet_templates()
    assert len(templates) == len(set(templates)) == 80
    assert all(template.count("{}") == 1 for template in templates)
