"""Texts and bytes of single tokens, in each kind of vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from inference.token_text import TokenTexts
from inference.tokenizer import Tokenizer, load_tokenizer
from tests.factories_models import write_tokenizer


def texts(backend: Backend) -> TokenTexts:
    return TokenTexts(Tokenizer(backend, {}, frozenset(), Path("tokenizer.json")))


def sentencepiece(decoder: decoders.Decoder) -> Backend:
    pieces = ["<unk>", "▁Hello", "▁wor", "ld", "▁", "é", "<0xE4>", "<0xBD>", "<0xA0>", "<0x41>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoder
    return backend


DECODERS = [
    decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    ),
    decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace("▁", "always")],
    ),
]


@pytest.mark.parametrize("decoder", DECODERS)
def test_byte_fallback(decoder: decoders.Decoder) -> None:
    found = texts(sentencepiece(decoder))
    assert [found.bytes(token) for token in range(1, 6)] == [
        b" Hello",
        b" wor",
        b"ld",
        b" ",
        "é".encode(),
    ]
    assert b"".join(found.bytes(token) for token in (6, 7, 8)).decode() == "你"
    assert found.fields(6) == {"id": 6, "text": "\ufffd", "bytes": [0xE4]}
    assert found.fields(9) == {"id": 9, "text": "A", "bytes": [0x41]}
    assert found.fields(99) == {"id": 99, "text": "", "bytes": []}


def test_byte_level(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, {})
    found = TokenTexts(tokenizer)
    text = " Hello\n\twörld 你好 🙂"
    ids = tokenizer.encode_text(text)
    assert b"".join(found.bytes(token) for token in ids) == text.encode()
    end = tokenizer.id_of("<|im_end|>")
    assert end is not None and found.fields(end)["text"] == "<|im_end|>"


def test_a_byte_level_vocabulary_may_have_tokens_that_are_plain_text() -> None:
    backend = Backend(models.BPE({"Ġa": 0, "Ã": 1}, []))
    backend.decoder = decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.add_special_tokens([AddedToken("<｜end｜>", special=True)])
    found = texts(backend)
    assert [found.bytes(token) for token in range(3)] == [b" a", b"\xc3", "<｜end｜>".encode()]


def test_word_pieces() -> None:
    vocabulary = {"[UNK]": 0, "un": 1, "##able": 2, "to": 3, "!": 4}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece("##", cleanup=False)
    found = texts(backend)
    assert [found.bytes(token) for token in (2, 3)] == [b"able", b" to"]


def test_no_decoder() -> None:
    backend = Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    found = texts(backend)
    assert found.bytes(1) in (b"b", b" b") and texts(Backend(models.BPE())).bytes(0) == b""
