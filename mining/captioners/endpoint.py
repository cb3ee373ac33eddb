"""Captions from a server of chat completions in OpenAI's form, such as vLLM or SGLang: a request for each image.

    images ─▶ decoded, reduced, JPEG ─▶ asked, some at once ─▶ answer written down ─▶ rows

An answer is written down and synced before it counts, so whatever ends the run loses the requests that were on their
way, and no other is sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, JsonValue

from maskmine.mining.captioners.answers import (
    Answered,
    CaptionerName,
    CaptionImages,
    DecodeImage,
    Journal,
    Unanswered,
)
from maskmine.mining.captioners.chat import Asker, Chat, Pace, asking
from maskmine.mining.images.encode import encode_reduced
from maskmine.schemas.errors import IncompleteError, InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.rows import CaptioningRow, ImageRow, Rejection
from maskmine.schemas.settings import ExecutionOnly, RecordOnly, Settings, fingerprint, plain_values

PROMPT = (
    "Describe this image in one sentence that names every object in it. Answer with the sentence alone, without "
    "explanations."
)
"""What is asked where the settings say nothing else."""
JPEG_QUALITY = 90

_ENV_NAME_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_CHECK_S = 5.0

Out = TypeVar("Out")


def _plain_url(url: str) -> str:
    # No message names the value: what stands in it may be a secret.
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018, it is read for its error
    except ValueError as error:
        raise ValueError("an address such as http://localhost:8000/v1 is expected") from error
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("an address without name, password, ? and # is expected; `key_env` names the key's variable")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an address that begins with http:// or https:// is expected")
    return url.rstrip("/")


def _env_name(name: str) -> str:
    if not name or name[0].isdigit() or not _ENV_NAME_CHARS.issuperset(name):
        raise ValueError("the name of an environment variable is expected, such as OPENAI_API_KEY, and never the key")
    return name


class Endpoint(Settings):
    """A server of chat completions that is asked for the captions of the images which other sources list."""

    kind: Literal["endpoint"]
    """A server of chat completions in OpenAI's form (vLLM, SGLang)."""
    name: CaptionerName | None = None
    """Name of the source in samples and in `licences.captions`, and of the folder of its captions; its `kind` when
    null. Under another name everything is asked again."""
    url: Annotated[str, ExecutionOnly(), AfterValidator(_plain_url)]
    """Where its API begins, such as `http://localhost:8000/v1`. Naming it here allows it to be asked, on any
    address."""
    model: Annotated[str, Field(min_length=1, max_length=300)]
    """The model, as the server calls it."""
    prompt: Annotated[str, Field(min_length=1, max_length=20_000)] = PROMPT
    """What the model is asked, beside the picture. Each line of its answer is a caption."""
    key_env: Annotated[str, ExecutionOnly(), AfterValidator(_env_name)] | None = None
    """Environment variable that holds the key; null for a server that needs none. The key itself stands nowhere."""
    per_image: Annotated[int, Field(ge=1, le=100)] = 1
    """Captions of each image: the first lines of an answer."""
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = 300
    """Tokens that an answer may have. One that is cut off by it loses its last word; null leaves it to the server."""
    temperature: Annotated[float, Field(ge=0, le=10)] | None = 0.0
    """How freely the model chooses its words; null leaves it to the server."""
    extra: dict[str, JsonValue] = Field(default={})
    """Further fields of the request, such as `{seed: 0}`; null leaves out a field of the same name."""
    max_side_px: Annotated[int, Field(ge=16, le=8192)] = 1024
    """Longer side of the picture that is sent; larger ones are reduced to it. It is sent as JPEG."""
    requests_at_once: Annotated[int, ExecutionOnly(), Field(ge=1, le=1024)] = 8
    """Requests on their way at a time."""
    per_minute: Annotated[float, ExecutionOnly(), Field(gt=0)] | None = None
    """Requests that are begun in a minute, at most; null for no limit."""
    timeout_s: Annotated[float, ExecutionOnly(), Field(gt=0, le=3600)] = 120.0
    """Seconds for one attempt, however slowly the answer comes."""
    attempts: Annotated[int, ExecutionOnly(), Field(ge=1, le=20)] = 4
    """Attempts at a picture where the server fails, does not answer or breaks off."""
    patience_s: Annotated[float, ExecutionOnly(), Field(ge=0)] = 600.0
    """Seconds to wait in all where the server asks for patience (429, 503); then the run ends with exit code 4."""
    most_failures: Annotated[int, ExecutionOnly(), Field(ge=1)] = 10
    """Pictures in a row without an answer, after which the server counts as out of order and the run ends with exit
    code 4."""
    licence: Annotated[str | None, RecordOnly()] = None
    """Licence of the model (SPDX), or the name of its terms, where it is not known."""

    @property
    def place(self) -> str:
        """How messages call it."""
        return f"captions.{self.name or self.kind}"

    def decides(self) -> dict[str, Any]:
        """What of it decides the captions: model, prompt, parameters and the size of the picture."""
        return {key: value for key, value in plain_values(self).items() if key not in ("name", "licence")}

    def chat(self) -> Chat:
        """The server, and how it is asked."""
        return Chat(
            place=self.place,
            url=self.url,
            model=self.model,
            prompt=self.prompt,
            parameters={"max_tokens": self.max_tokens, "temperature": self.temperature, **self.extra},
            per_image=self.per_image,
            key_env=self.key_env,
            timeout_s=self.timeout_s,
            attempts=self.attempts,
            patience_s=self.patience_s,
        )

    def open(self, decode: DecodeImage, *, threads: int) -> CaptionImages:
        """The function from the images of a part to their captions. Pictures are decoded in `threads`.

        A picture without an answer costs its captions alone. Raises InputError where the settings are at fault,
        IncompleteError where the server as a whole is out of order.
        """
        pace, failures = Pace(self.per_minute), _Failures(self.most_failures, self.place)

        def caption(
            images: Sequence[ImageRow],
            *,
            journal: Journal = Journal(),  # noqa: B008, it is frozen
            tick: Callable[[int], None] = lambda _: None,
        ) -> list[CaptioningRow]:
            part = _Part(self, decode, journal, tick, pace, failures)
            return run_async(part.caption(images, threads=threads))

        return caption

    def require_key(self) -> None:
        """Raises InputError where the key's variable is not set."""
        self.chat().key()

    def find_models(self) -> list[str] | None:
        """The models that the server lists, by one request in a few seconds; None where it lists none.

        Raises InputError or IncompleteError where it does not answer as it should.
        """

        async def ask() -> list[str] | None:
            chat = self.model_copy(update={"timeout_s": min(self.timeout_s, _CHECK_S), "attempts": 1}).chat()
            async with asking(chat, Pace(None)) as asker:
                return await asker.models()

        return run_async(ask())

    def record(self) -> ModelRecord:
        """The model by the name that the server has for it: nobody outside can hash its weights."""
        return ModelRecord(role="captions", name=self.model, sha256=None, licence=self.licence or "unknown")


def run_async(work: Coroutine[Any, Any, Out]) -> Out:
    """The result of `work`; in a thread of its own where this one has a loop already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@dataclass(slots=True)
class _Failures:
    """Pictures in a row that the server did not answer."""

    most: int
    place: str
    in_a_row: int = 0

    def count(self, outcome: Answered | Unanswered) -> None:
        """Raises IncompleteError after too many."""
        self.in_a_row = 0 if isinstance(outcome, Answered) else self.in_a_row + 1
        if isinstance(outcome, Unanswered) and self.in_a_row >= self.most:
            raise IncompleteError(
                f"{self.place}: {self.in_a_row} pictures in a row had no answer, the last one: {outcome.fault}"
                f"{outcome.said}; what was answered is kept: look at the server, and run the same command again"
            )


@dataclass(slots=True)
class _Part:
    """The work on one part. `stopped` is what ends it: others finish what they have asked for, and ask no more."""

    settings: Endpoint
    decode: DecodeImage
    journal: Journal
    tick: Callable[[int], None]
    pace: Pace
    failures: _Failures
    stopped: Exception | None = None
    rows: dict[int, CaptioningRow] = field(default_factory=dict)
    unwritten: list[CaptioningRow] = field(default_factory=list)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def caption(self, images: Sequence[ImageRow], *, threads: int) -> list[CaptioningRow]:
        """The rows of the images, in order."""
        left = iter(enumerate(images))
        how = fingerprint(self.settings.decides())
        with ThreadPoolExecutor(threads) as pool:
            async with asking(self.settings.chat(), self.pace, given_up=lambda: self.stopped is not None) as asker:

                async def work() -> None:
                    for number, image in left:
                        try:
                            self.rows[number] = await self._row(image, asker, pool, how=how)
                        except (InputError, IncompleteError, OSError) as error:
                            self.stopped = self.stopped or error
                        if self.stopped is not None:
                            return
                        self.tick(1)

                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.settings.requests_at_once, len(images))):
                        group.create_task(work())
        if self.stopped is not None:
            raise self.stopped
        return [self.rows[number] for number in range(len(images))]

    async def _row(self, image: ImageRow, asker: Asker, pool: ThreadPoolExecutor, *, how: str) -> CaptioningRow:
        loop = asyncio.get_running_loop()
        picture = await loop.run_in_executor(pool, self.decode, image)
        if isinstance(picture, Rejection):
            return CaptioningRow(image.image_id, None, (), picture)
        known = self.journal.known.get(image.image_id)
        if known is not None and known.sha256 == picture.sha256:
            return known
        max_side_px = self.settings.max_side_px
        jpeg = await loop.run_in_executor(
            pool, lambda: encode_reduced(picture.rgb_HW3, max_side_px=max_side_px, quality=JPEG_QUALITY)
        )
        outcome = await asker.ask(jpeg, token=fingerprint([how, picture.sha256]))
        if isinstance(outcome, Answered):
            rejection = Rejection("caption_failed", outcome.fault) if outcome.fault else None
            row = CaptioningRow(image.image_id, picture.sha256, outcome.captions, rejection)
            await self._write(row)
        else:
            row = CaptioningRow(image.image_id, picture.sha256, (), Rejection("caption_failed", outcome.fault))
        self.failures.count(outcome)
        return row

    async def _write(self, row: CaptioningRow) -> None:
        """Return when the row is durable; rows that come while others are written are written together."""
        self.unwritten.append(row)
        async with self.writing:
            batch, self.unwritten = self.unwritten, []
            if batch:  # else whoever was before has written it
                await asyncio.to_thread(self.journal.write, batch)
