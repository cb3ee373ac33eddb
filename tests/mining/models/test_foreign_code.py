"""Nothing that a model brings is run, by any loader, whatever its files ask for and whatever is on standard input."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import spacy
import torch

from maskmine.mining.models.clip import Clip
from maskmine.mining.models.foreign_code import check_described, nothing_is_run
from maskmine.mining.models.pretrained import load_pretrained
from maskmine.mining.models.prompts_file import read_prompts
from maskmine.mining.nouns import Nouns
from maskmine.mining.proposers import detectron2
from maskmine.mining.proposers.eomt import Eomt
from maskmine.mining.proposers.maskformer import FAMILY as MASKFORMER
from maskmine.mining.proposers.open_vocabulary_checkpoint import read_head
from maskmine.mining.proposers.rf_detr import RfDetr
from maskmine.mining.proposers.sam import _FAMILY as SAM
from maskmine.schemas.errors import InputError
from maskmine.tuning.benchmarks.ade_index import read_ade_index
from maskmine.tuning.clip.weights_files import load_ovseg_prompts
from maskmine.tuning.open_vocabulary.initial_model import from_backbone
from maskmine.tuning.training.checkpoints import Checkpoints
from tests.support.models import network, save_tiny_clip
from tests.support.tiny.proposers import save_eomt, save_rf_detr, save_sam2

MARKER = "ran.txt"
CODE = f"""
from pathlib import Path
Path({MARKER!r}).touch()
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
class EvilConfig(BertConfig):
    model_type = "evil"
class EvilModel(BertModel):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {
    "AutoConfig": "evil.EvilConfig",
    "AutoModel": "evil.EvilModel",
    "AutoBackbone": "evil.EvilModel",
    "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
    "AutoImageProcessor": "evil.EvilTokenizer",
}


class Program:
    """What a pickle can do when it is trusted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(MARKER),))


def evil_folder(folder: Path, **config: Any) -> Path:
    """A folder of transformers whose files name the code beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evil.py").write_text(CODE)
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": AUTO_MAP, **config}))
    tokenizer = {"auto_map": AUTO_MAP, "tokenizer_class": "EvilTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": AUTO_MAP}))
    return folder


def clip(folder: Path, **text: Any) -> Path:
    """A CLIP folder whose text side says more."""
    save_tiny_clip(folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= text
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return evil_folder(folder)


def open_clip_folder(folder: Path) -> None:
    kwargs = {"trust_remote_code": True}
    Clip(model=str(clip(folder, hf_tokenizer_name="x", tokenizer_kwargs=kwargs))).open_text(device="cpu")


def open_clip_tokenizer(folder: Path) -> None:
    Clip(model=str(clip(folder, hf_tokenizer_name="x"))).open_text(device="cpu")


def open_clip_text_tower(folder: Path) -> None:
    tower = str(evil_folder(folder / "tower"))
    Clip(model=str(clip(folder / "clip", hf_model_name=tower, hf_tokenizer_name="x"))).open_text(device="cpu")


def open_clip_of_a_hub(folder: Path) -> None:
    kept = folder / "hub" / "models--someone--clip"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("1" * 40)
    evil = str(evil_folder(folder / "tokenizer"))
    clip(kept / "snapshots" / ("1" * 40), hf_tokenizer_name=evil, tokenizer_kwargs={"trust_remote_code": True})
    Clip(model="hf-hub:someone/clip").open_text(device="cpu")


def open_clip_tokenizer_of_a_hub(folder: Path) -> None:
    kept = folder / "hub" / "models--someone--clip"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("1" * 40)
    clip(kept / "snapshots" / ("1" * 40), hf_tokenizer_name=str(evil_folder(folder / "tokenizer")))
    Clip(model="hf-hub:someone/clip").open_text(device="cpu")


def open_clip_weights(folder: Path) -> None:
    save_tiny_clip(folder)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(Program(), folder / "open_clip_pytorch_model.bin")
    Clip(model=str(folder)).open_text(device="cpu")


def maskformer(folder: Path, **config: Any) -> Path:
    network("maskformer").save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text())
    backbone = {"model_type": "bert", "auto_map": AUTO_MAP, "_name_or_path": str(folder), "hidden_size": 8}
    evil_folder(folder, **{**described, "auto_map": AUTO_MAP, "backbone_config": backbone, **config})
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": AUTO_MAP, "size": {"shortest_edge": 64}}))
    return folder


def open_maskformer(folder: Path) -> None:
    load_pretrained(str(maskformer(folder)), revision=None, family=MASKFORMER)


def open_maskformer_pickle(folder: Path) -> None:
    backbone = json.loads(network("maskformer").config.to_json_string())["backbone_config"]
    maskformer(folder, backbone_config=backbone)
    (folder / "model.safetensors").unlink()
    torch.save(Program(), folder / "pytorch_model.bin")
    load_pretrained(str(folder), revision=None, family=MASKFORMER)


def open_sam(folder: Path) -> None:
    save_sam2(folder)
    described = json.loads((folder / "config.json").read_text())
    backbone = {"model_type": "encoder-decoder", "auto_map": AUTO_MAP, "_name_or_path": str(folder)}
    described["vision_config"] |= {"backbone_config": backbone}
    evil_folder(folder, **{**described, "auto_map": AUTO_MAP})
    load_pretrained(str(folder), revision=None, family=SAM)


def open_rf_detr(folder: Path) -> None:
    save_rf_detr(folder)
    described = json.loads((folder / "config.json").read_text())
    backbone = {"model_type": "bert", "auto_map": AUTO_MAP, "_name_or_path": str(folder), "hidden_size": 8}
    evil_folder(folder, **{**described, "auto_map": AUTO_MAP, "backbone_config": backbone})
    RfDetr(kind="rf_detr", checkpoint=str(folder)).load()


def open_eomt_pickle(folder: Path) -> None:
    save_eomt(folder)
    (folder / "model.safetensors").unlink()
    torch.save(Program(), folder / "pytorch_model.bin")
    Eomt(kind="eomt", checkpoint=str(folder)).load()


def open_backbone(folder: Path) -> None:
    from_backbone(str(evil_folder(folder)), decoder={"d_model": 16}, short_side_px=64, long_side_px=128)


def open_backbone_pickle(folder: Path) -> None:
    network("maskformer").model.pixel_level_module.encoder.config.save_pretrained(folder)
    torch.save(Program(), folder / "pytorch_model.bin")
    from_backbone(str(folder), decoder={"d_model": 16}, short_side_px=64, long_side_px=128)


def pipeline(folder: Path, *lines: str) -> Path:
    """A pipeline of spaCy with Python files in its folder, and more lines in its configuration."""
    nlp = spacy.blank("en")
    nlp.add_pipe("attribute_ruler")
    nlp.to_disk(folder)
    for name in ("__init__.py", "evil.py", "attribute_ruler/__init__.py"):
        (folder / name).write_text(CODE)
    config = (folder / "config.cfg").read_text().replace('pipeline = ["attribute_ruler"]', 'pipeline = ["evil"]')
    (folder / "config.cfg").write_text(config + "\n[components.evil]\n" + "\n".join(lines) + "\n")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "pipeline": ["evil"]}))
    return folder


def open_pipeline(folder: Path) -> None:
    Nouns(model=str(pipeline(folder, 'factory = "evil"'))).open()


def open_pipeline_source(folder: Path) -> None:
    Nouns(model=str(pipeline(folder, 'source = "evil"'))).open()


def open_pipeline_hub(folder: Path) -> None:
    lines = ('factory = "transformer"', "[components.evil.model]", 'tokenizer_config = {"trust_remote_code": true}')
    Nouns(model=str(pipeline(folder, *lines))).open()


def open_pipeline_pickle(folder: Path) -> None:
    pipeline(folder, 'factory = "attribute_ruler"')
    shutil.copytree(folder / "attribute_ruler", folder / "evil")
    for name in ("tokenizer", "vocab/lookups.bin", "vocab/vectors", "evil/patterns"):
        (folder / name).write_bytes(pickle.dumps(Program()))
    Nouns(model=str(folder)).open()


def pickled(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"fingerprint": Program(), "state_dict": Program()}, path)
    return path


def open_prompts(folder: Path) -> None:
    with suppress(InputError):
        read_prompts(pickled(folder / "prompts.safetensors"))
    load_ovseg_prompts(pickled(folder / "ovseg.pth"), None)


def open_checkpoint(folder: Path) -> None:
    pickled(folder / "checkpoint.pt")
    Checkpoints(folder, "fingerprint", every=1).read()


def open_head(folder: Path) -> None:
    pickled(folder / "head.safetensors")
    read_head(folder)


def open_ade_index(folder: Path) -> None:
    folder.mkdir()
    (folder / "index_ade20k.pkl").write_bytes(pickle.dumps({"filename": Program(), "folder": [], "objectnames": []}))
    read_ade_index(folder / "index_ade20k.pkl")


def open_detectron2(folder: Path) -> None:
    weights = pickled(folder / "model.pkl")
    detectron2._checked_weights(detectron2.Detectron2(kind="detectron2", config="x.yaml", weights=str(weights)))


LOADERS: dict[str, Callable[[Path], None]] = {
    name.removeprefix("open_"): loader for name, loader in globals().items() if name.startswith("open_")
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loader", LOADERS)
def test_nothing_that_a_model_brings_is_run(loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "model" / "hub"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    with pytest.raises(InputError) as error:
        LOADERS[loader](tmp_path / "model")
    assert "\n" not in str(error.value)
    assert not Path(MARKER).exists()
    assert sys.stdin.read() == "y\n" * 20, "nobody was asked"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", {"vision_config": {"_attn_implementation": "someone/kernel"}}, "a kernel of a hub"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "quantized weights"),
        ("adapter_config.json", {"base_model_name_or_path": "someone/other"}, "an adapter of another model"),
    ],
)
def test_a_folder_that_asks_for_more_than_its_weights_is_refused(
    tmp_path: Path, file: str, content: dict[str, Any], said: str
) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        check_described(tmp_path, name="it", setting="proposals.checkpoint")


def test_outside_of_our_loading_transformers_does_as_its_caller_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with nothing_is_run("it", setting="clip.model"):
        pass
    transformers.AutoConfig.from_pretrained(str(evil_folder(tmp_path / "model")))
    assert Path(MARKER).exists()


READER = 'factory = "attribute_ruler"', "scorer = ${v.a}", "[v]", r'a = {"@\u0072eaders": "srsly.read_json.v1"}'


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (READER, r"outside of its folder \(`@readers"),
        (('before = {"@callbacks": "spacy.copy_from_base_model.v1"}',), r"outside of its folder \(`@callbacks"),
        ((f"size = {1 << 80}",), "a `size` that no pipeline has"),
        (("[v]", "a0 = 0123456789", *(f"a{n + 1} = {f'${{v.a{n}}}' * 10}" for n in range(6))), "far too long"),
        (("[v]", "a = ${v.a}"), "far too long"),
    ],
    ids=["reader", "callback", "number", "references", "itself"],
)
def test_a_pipeline_reads_its_folder_alone_and_is_no_longer_than_it_looks(
    tmp_path: Path, lines: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        Nouns(model=str(pipeline(tmp_path / "it", *lines))).open()


def test_a_head_in_numbers_that_are_only_stored_is_refused_in_one_line(tmp_path: Path) -> None:
    stored = {"classes_KD": {"dtype": "F4", "shape": [1, 8], "data_offsets": [0, 4]}}
    header = json.dumps(stored).encode()
    (tmp_path / "head.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(InputError, match="cannot be loaded"):
        read_head(tmp_path)
