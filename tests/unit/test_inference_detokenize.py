from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from inference.detokenize import Detokenizer

TEXTS = (
    "hello world",
    "  two leading, trailing  ",
    "你好，世界！🙂👩‍👩‍👧 naïve café",
    "a\n\n\tb\r\n",
    "",
    " ",
    "\ufffd real replacement \ufffd",
)
CORPUS = [*TEXTS, "the quick brown fox jumps over the lazy dog"] * 3


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_fallback(decoder: Any) -> Tokenizer:
    """As Llama 2 and Gemma have it: words with a mark for the space, bytes for the rest."""
    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    words += [*"abcdefghijklmnopqrstuvwxyz,!\n\t\r", "▁t", "▁th", "he", "▁the"]
    merges = [("▁", "t"), ("▁t", "h"), ("h", "e"), ("▁th", "e")]
    tokenizer = Tokenizer(
        models.BPE(
            {word: index for index, word in enumerate(words)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def llama() -> Tokenizer:
    return byte_fallback(
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    )


def metaspace() -> Tokenizer:
    tokenizer = byte_fallback(decoders.Metaspace("▁", "always"))
    tokenizer.normalizer = None  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    return tokenizer


def word_piece() -> Tokenizer:
    words = ["[UNK]", "the", "##re", "fox", "jump", "##s", ",", "!"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece("##")
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level(),
    "llama": llama(),
    "metaspace": metaspace(),
    "word piece": word_piece(),
}


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(lambda window: tokenizer.decode(window))
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_an_encoded_text_join_to_its_decoding(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text).ids
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["byte level", "metaspace", "word piece"])
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_pieces_of_any_ids_join_to_their_decoding(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=40))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.lists(st.sampled_from(["é", "🙂", "a", " the", "<s>", "好"]), max_size=20))
@settings(deadline=None)
def test_byte_fallback_with_special_tokens_between(parts: list[str]) -> None:
    tokenizer = TOKENIZERS["llama"]
    ids = [token for part in parts for token in tokenizer.encode(part).ids]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_comes_whole_with_its_last_token() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("a𝄞b").ids
    shown = pieces(tokenizer, ids)
    assert all("\ufffd" not in piece for piece in shown)
    assert "𝄞" in shown and shown.count("") >= 3


def test_a_character_that_is_never_finished_is_given_at_the_end() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer.encode("a𝄞").ids[:-1]
    *shown, last = pieces(tokenizer, ids)
    assert "".join(shown) == "a" and last == "\ufffd"


def test_a_bad_byte_does_not_take_back_what_was_shown() -> None:
    tokenizer = TOKENIZERS["llama"]
    good = tokenizer.encode("é").ids
    bad = tokenizer.token_to_id("<0xE9>")
    the = tokenizer.token_to_id("▁the")
    assert "".join(pieces(tokenizer, [*good, bad, the])) == "é\ufffd the"
