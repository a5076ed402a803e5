"""A sentencepiece model as what stock transformers loads: tokenizer.json, with the ids that `llava.tokenizer` gives.

Contents:
    build_tokenizer    the whole of it
    read_sentencepiece tokenizer.model without the protobuf package
    build_model        byte pairs or unigram
    build_normalizer   what happens to text before: sentencepiece's normalisation, the space at the beginning
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import build_prompt
from llava.tokenizer import LlamaSentencePieceTokenizer

SPACE = "▁"  # as sentencepiece writes it
NORMAL, USER_DEFINED = 1, 4  # types of pieces
PROBES = ["", "What is it?", " two  spaces\n\nand 1234 lines\t", "Où est le 猫? 🐈", "No</s>Is it?", "<0x41>"]


@dataclass(frozen=True)
class SentencePiece:
    """What a sentencepiece model says.

    Args:
        pieces: (text, score, type) by id.
        is_unigram: unigram; else byte pairs.
        charsmap: sentencepiece's compiled normalisation; empty for none.
        add_prefix: a space goes before every text.
        trim: spaces at both ends are dropped, runs of them become one.
    """

    pieces: list[tuple[str, float, int]]
    is_unigram: bool
    charsmap: bytes
    add_prefix: bool
    trim: bool

    @property
    def user_defined(self) -> list[str]:
        """Pieces that are never split, the longest first."""
        return sorted((text for text, _, kind in self.pieces if kind == USER_DEFINED), key=len, reverse=True)


def build_tokenizer(
    original: LlamaSentencePieceTokenizer, placeholders: tuple[str, ...] = (DEFAULT_IMAGE_TOKEN,)
) -> Tokenizer:
    """Build the tokenizer: that of the checkpoint, and "<image>" with the next free id.

    Every text between two "<image>" is treated as a text of its own, as `tokenizer_image_token` does.

    Args:
        placeholders: what is added, "<image>" first.

    Raises:
        ValueError: if its ids are not those of the original, for what no tokenizer.json can say.
    """
    model = read_sentencepiece(original.sp_model.serialized_model_proto())
    if not original.legacy:  # the original put this behind its model, for its own use
        model = SentencePiece(model.pieces, model.is_unigram, model.charsmap, True, model.trim)
    tokenizer = Tokenizer(build_model(model))
    added = [token for _, token in sorted(original.added_tokens_decoder.items())]
    tokenizer.normalizer = build_normalizer(model, [token.content for token in added], original.legacy)
    alone = []
    if model.is_unigram:
        alone = ["<(?=0x[0-9A-F]{2}>)"]  # the name of a byte in a text is not that byte
    elif model.user_defined:  # and the same for `ignore_merges`, which takes a whole text for a piece
        alone = ["|".join(map(re.escape, model.user_defined)), r"\A<(?=0x[0-9A-F]{2}>\z)"]
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in alone]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits) if splits else None
    # `normalized` tokens are found after the normaliser, that is inside a text that has got its space already.
    tokenizer.add_tokens(
        [AddedToken(token.content, special=token.special, normalized=not original.legacy) for token in added]
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in placeholders])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    before, after = ([token] if flag else [] for token, flag in _ends(original))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{t}:1" for t in after)],
        special_tokens=[(token, original.convert_tokens_to_ids(token)) for token in (*before, *after)],
    )
    for text in (*PROBES, *(part for probe in PROBES for part in build_prompt(probe, "vicuna_v1").split("<image>"))):
        expected, got = original(text).input_ids, tokenizer.encode(text).ids
        if got != expected:
            raise ValueError(f"tokenizer.model: expected a conversion with ids {expected} of {text!r}, got {got}")
    return tokenizer


def _ends(original: LlamaSentencePieceTokenizer) -> list[tuple[str, bool]]:
    """bos and eos, and whether each is put around a text."""
    ids = original("").input_ids
    return [(token, original.convert_tokens_to_ids(token) in ids) for token in (original.bos_token, original.eos_token)]


def build_model(model: SentencePiece) -> BPE | Unigram:
    """The pieces as a model of the tokenizers library."""
    has_bytes = any(text == "<0x00>" for text, _, _ in model.pieces)
    unknown = next(index for index, (_, _, kind) in enumerate(model.pieces) if kind == 2)
    if model.is_unigram:
        best = max((score for _, score, kind in model.pieces if kind == NORMAL), default=0.0)
        # Sentencepiece's own rule for user-defined pieces.
        scores = [
            (text, len(text) * best - 0.1 if kind == USER_DEFINED else score) for text, score, kind in model.pieces
        ]
        return Unigram(scores, unk_id=unknown, byte_fallback=has_bytes)
    ids = {text: index for index, (text, _, _) in enumerate(model.pieces)}
    merging = {text: score for text, score, kind in model.pieces if kind == NORMAL}
    merges = [
        (-score, len(text[:cut]), text[:cut], text[cut:])
        for text, score in merging.items()
        for cut in range(1, len(text))
        if text[:cut] in merging and text[cut:] in merging
    ]
    merges.sort(key=lambda merge: merge[:2])
    return BPE(
        vocab=ids,
        merges=[(left, right) for _, _, left, right in merges],
        unk_token=model.pieces[unknown][0],
        fuse_unk=True,
        byte_fallback=has_bytes,
        ignore_merges=bool(model.user_defined),  # a user-defined piece stands alone by then
    )


def build_normalizer(model: SentencePiece, special: list[str], legacy: bool) -> normalizers.Sequence:
    """What happens to a text before it is cut into pieces.

    Args:
        special: tokens that are not sentencepiece's to find.
        legacy: each text between them is one of its own; else they are part of the text, which gets one space.
    """
    replace, either = normalizers.Replace, "|".join(map(re.escape, special))
    prefix = [normalizers.Prepend(SPACE)] if model.add_prefix else []
    steps = []
    if not legacy:  # here the space comes before everything else, but not before a special token
        steps += [*prefix, replace(Regex(rf"\A{SPACE}(?={either})"), "")]
        prefix = []
    if model.charsmap:
        compiled = normalizers.Precompiled(model.charsmap)
        # What the map would change of user-defined pieces is hidden from it behind private characters.
        changed = [text for text in model.user_defined if compiled.normalize_str(text) != text]
        hidden = [(text, chr(0xF0000 + index)) for index, text in enumerate(changed)]
        steps += [replace(text, mark) for text, mark in hidden]
        steps += [compiled, *(replace(mark, text) for text, mark in hidden)]
    if model.trim:
        steps += [replace(Regex(rf"(?:\A|(?<={either})) +"), ""), replace(Regex(" {2,}"), " ")]
    steps += [*prefix, replace(" ", SPACE)]
    if model.trim:
        steps += [replace(Regex(rf"{SPACE}+(?=\z|{either})"), "")]
    return normalizers.Sequence(steps)


def read_sentencepiece(data: bytes) -> SentencePiece:
    """Read a serialised model (sentencepiece_model.proto)."""
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, b"\0" * 4))[0], piece.get(3, NORMAL)))
        elif number == 2:
            trainer |= dict(_fields(value))
        elif number == 3:
            normalizer |= dict(_fields(value))
    return SentencePiece(
        pieces,
        is_unigram=trainer.get(3, 1) == 1,
        charsmap=normalizer.get(2, b""),
        add_prefix=bool(normalizer.get(3, 1)),
        trim=bool(normalizer.get(4, 1)),
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of every field of a protobuf message: ints as such, everything else as its bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, message[at : at + size]
        at += size
