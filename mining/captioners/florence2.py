"""Captions by Florence-2 through transformers (arXiv 2311.06242), on the device of the regions.

Shapes: B pictures of a batch, T tokens of a caption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from maskmine.mining.captioners.answers import CaptionerName, CaptionImages, DecodeImage, Journal, caption_lines
from maskmine.mining.images.decode import DecodedImage
from maskmine.mining.models.devices import PROPOSALS_ON_GPU, fix_threads, open_device, resolve_precision
from maskmine.mining.models.pretrained import Family, FromTransformers
from maskmine.mining.storage.prefetch import map_in_order
from maskmine.schemas.rows import CaptioningRow, ImageRow, Rejection
from maskmine.schemas.settings import LastBits, NameOrPath, RecordOnly

Task = Literal["caption", "detailed_caption", "more_detailed_caption"]


class Florence2(FromTransformers):
    """Which Florence-2 captions the images that other sources list, and how."""

    family: ClassVar[Family] = Family(
        classes={"florence2": ("Florence2ForConditionalGeneration", "Florence2Processor")},
        pickles=False,
        needed=lambda network: (name for name, _ in network.named_parameters()),
        role="captions",
        texts=True,
    )

    kind: Literal["florence2"]
    """Florence-2 by transformers, such as `florence-community/Florence-2-base`."""
    name: CaptionerName | None = None
    """Name of the source in samples and in `licences.captions`, and of the folder of its captions; its `kind` when
    null."""
    checkpoint: NameOrPath
    """A folder saved by transformers, or a name on the Hugging Face hub, with weights as safetensors."""
    revision: Annotated[str | None, RecordOnly()] = None
    """Branch, tag or commit on the hub; null is what is on this machine, else the newest."""
    task: Task = "detailed_caption"
    """What the model is asked for: a sentence, some sentences, or a paragraph."""
    beams: Annotated[int, Field(ge=1, le=100)] = 3
    """Captions that are followed at once while one is sought; more is better and slower."""
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 256
    """Tokens that a caption may have; one that is cut off by it loses its last word."""
    batch_size: Annotated[int, LastBits(), Field(ge=1)] = 8
    """Pictures that the model sees at once on a GPU: more is faster and needs more memory. Results agree within
    rounding; on a CPU pictures go one by one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the weights (SPDX) where it is not known, such as that of a folder."""

    @property
    def place(self) -> str:
        """How messages call it."""
        return f"captions.{self.name or self.kind}"

    def contents(self) -> dict[str, Any]:
        """The checkpoint by the hash of what is loaded, and the batch, which decides the last bits."""
        return {**super().contents(), "batch_size": self.batch_size}

    def open(self, decode: DecodeImage, *, threads: int, device: str, cpu_threads: int) -> CaptionImages:
        """Load the model; returns the function from the images of a part to their captions.

        Raises InputError when the checkpoint cannot be had, is of another type, or lacks weights.
        """
        fix_threads(device, cpu_threads=cpu_threads)
        write = self.tried(self._open_writer(device))
        most = self.batch_size if open_device(device).type == "cuda" else 1

        def caption(
            images: Sequence[ImageRow],
            *,
            journal: Journal = Journal(),  # noqa: B008, what is cheap to make again is not written down
            tick: Callable[[int], None] = lambda _: None,
        ) -> list[CaptioningRow]:
            rows: dict[int, CaptioningRow] = {}
            decoded = map_in_order(decode, images, threads=threads, ahead=max(threads, most))
            for batch in _batches(decoded, rows, images, most=most):
                captions = write([picture for _, picture in batch])
                for (number, picture), lines in zip(batch, captions, strict=True):
                    rejection = None if lines else Rejection("caption_failed", "an empty text")
                    rows[number] = CaptioningRow(images[number].image_id, picture.sha256, lines, rejection)
                tick(len(batch))
            tick(sum(row.sha256 is None for row in rows.values()))
            return [rows[number] for number in range(len(images))]

        return caption

    def _open_writer(self, device: str) -> Callable[[Sequence[DecodedImage]], list[tuple[str, ...]]]:
        import torch

        target = open_device(device)
        loaded = self.load()
        network, processor = loaded.network.to(target), loaded.processor
        dtype = getattr(torch, resolve_precision(self.precision, target, on_gpu=PROPOSALS_ON_GPU))
        task = f"<{self.task.upper()}>"

        def write(pictures: Sequence[DecodedImage]) -> list[tuple[str, ...]]:
            images = [picture.rgb_HW3 for picture in pictures]
            inputs = processor(
                images=images, text=[task] * len(images), input_data_format="channels_last", return_tensors="pt"
            ).to(target)
            with torch.inference_mode(), torch.autocast(target.type, dtype=dtype, enabled=dtype != torch.float32):
                tokens_BT = network.generate(
                    **inputs, max_new_tokens=self.max_tokens, num_beams=self.beams, do_sample=False
                )
            return [_caption(tokens_T.tolist(), processor.tokenizer, most=self.max_tokens) for tokens_T in tokens_BT]

        return write


def _caption(tokens: list[int], tokenizer: Any, *, most: int) -> tuple[str, ...]:
    """The text of one caption, as one line. One that is too long is cut off, and an end put in its last place."""
    text = " ".join(tokenizer.decode(tokens, skip_special_tokens=True).split())
    return caption_lines(text, cut_off=tokenizer.eos_token_id not in tokens[1:most])  # the first one is no word


def _batches(
    decoded: Iterator[DecodedImage | Rejection],
    rows: dict[int, CaptioningRow],
    images: Sequence[ImageRow],
    *,
    most: int,
) -> Iterator[list[tuple[int, DecodedImage]]]:
    """The pictures with the numbers of their images, `most` at a time; what is none gets its row."""
    batch: list[tuple[int, DecodedImage]] = []
    for number, picture in enumerate(decoded):
        if isinstance(picture, Rejection):
            rows[number] = CaptioningRow(images[number].image_id, None, (), picture)
            continue
        batch.append((number, picture))
        if len(batch) == most:
            yield batch
            batch = []
    if batch:
        yield batch
