"""tiktoken's tokenizers as tokenizer.json, held against tiktoken itself."""

from __future__ import annotations

import base64
import json
import pickle
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import rustbpe
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from checkpoint.tiktoken_files.encoding import Encoding, read_pickled
from checkpoint.tiktoken_files.pattern import for_tokenizers
from checkpoint.tiktoken_files.rank_files import KNOWN, read_rank_file
from checkpoint.tiktoken_files.tokenizer_json import tokenizer_json
from configs.errors import FerryError, TokenizerError
from convert.cli import main as convert
from tests.factories_nanochat import SHARED

NANOCHAT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
PATTERNS = {"nanochat": NANOCHAT} | {
    name: KNOWN[name].pattern for name in ("r50k_base", "cl100k_base", "o200k_base", "qwen")
}
SPECIAL = ("<|bos|>", "<|end|>")
WHERE = Path("tokenizer.pkl")


def both(
    ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int] | None = None
) -> tuple[Tokenizer, tiktoken.Encoding]:
    """Ours and tiktoken's tokenizer of the same ranks."""
    special = {} if special is None else special
    theirs = tiktoken.Encoding(
        "test", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(special)
    )
    ours = tokenizer_json(Encoding(pattern, ranks, special, WHERE))
    return Tokenizer.from_str(ours.decode()), theirs


def pairs() -> dict[bytes, int]:
    """Every byte and every pair of bytes: wherever a text is cut, it shows."""
    ranks = {bytes([value]): value for value in range(256)}
    for first in range(256):
        for second in range(256):
            ranks[bytes([first, second])] = len(ranks)
    return ranks


def trained(pattern: str, size: int = 700) -> dict[bytes, int]:
    """Ranks that nanochat's own trainer finds, in our own sources."""
    tokenizer = rustbpe.Tokenizer()
    texts = [path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    texts.append("渡船在黎明时离开，船上有四十个人。 Die Fähre fuhr früh. 😀🌍\r\n 12345 678" * 40)
    tokenizer.train_from_iterator(iter(texts), size, pattern=pattern)
    return {bytes(token): rank for token, rank in tokenizer.get_mergeable_ranks()}


def code_points(step: int = 1) -> Iterator[str]:
    """All code points that a text can hold, in order; beyond the first 1,280 every `step`th."""
    for number in [*range(0x500), *range(0x500, 0x110000, step)]:
        if not 0xD800 <= number < 0xE000:
            yield chr(number)


def all_code_points(together: int = 128) -> list[str]:
    """Texts of so many code points each, which are all that there are."""
    chars = list(code_points())
    return ["".join(chars[at : at + together]) for at in range(0, len(chars), together)]


def same(ours: Tokenizer, theirs: tiktoken.Encoding, texts: list[str]) -> bool:
    found = [encoding.ids for encoding in ours.encode_batch(texts)]
    return found == theirs.encode_ordinary_batch(texts, num_threads=1)


def random_text(rng: random.Random) -> str:
    pieces = ("the ", "'s", "'LL", " \n", "\r\n", "12345", "\t", "é", "中文", "  ", "😀", "ſ", "/")
    made = []
    for _ in range(rng.randrange(1, 24)):
        if rng.random() < 0.3:
            number = rng.randrange(0x110000)
            made.append("" if 0xD800 <= number < 0xE000 else chr(number))
        else:
            made.append(rng.choice([*pieces, chr(rng.randrange(32, 127))]))
    return "".join(made)


def test_every_code_point_and_10_000_texts_of_a_trained_tokenizer() -> None:
    ours, theirs = both(trained(NANOCHAT), NANOCHAT)
    rng = random.Random(7)

    assert same(ours, theirs, all_code_points())
    assert same(ours, theirs, list(code_points(step=97)))
    assert same(ours, theirs, [random_text(rng) for _ in range(10_000)])


@pytest.mark.parametrize("name", PATTERNS)
def test_text_is_cut_where_tiktoken_cuts_it(name: str) -> None:
    ours, theirs = both(pairs(), PATTERNS[name])
    rng = random.Random(8)
    texts = [f"a{char} {char}{char}1'{char}\n" for char in code_points(step=97)]

    assert same(ours, theirs, texts)
    assert same(ours, theirs, [random_text(rng) for _ in range(1000)])


@pytest.mark.parametrize(
    "pattern",
    [
        r"\p{N}{1,3}+|\s+$|\S|\s",
        r"^\w+|\w|\W",
        r"(?:ab){2}+|\p{Lu}?+\pL|[\p{L}&&[^\p{Han}]]+|[^\x{e9}\u4e00]|.",
        r"(?>a|ab)c|(?i:k)+|[\s\S]",
        r"[a-zé]{2,3}?|\d|(?<=a)b|(?<!a)c|\D",
    ],
)
def test_patterns_that_must_be_rewritten(pattern: str) -> None:
    ours, theirs = both(pairs(), pattern)
    rng = random.Random(9)
    more = ["1234567", "a\nb\n", "ab\u200cc", "ababab abc", "\u212ak\u017f", "²³¼", "x \n \n", "é"]

    assert same(ours, theirs, more)
    assert same(ours, theirs, [random_text(rng) for _ in range(1000)])
    assert same(ours, theirs, list(code_points(step=199)))


def test_without_its_rewriting_a_pattern_cuts_elsewhere() -> None:
    pattern = PATTERNS["cl100k_base"]
    ours, theirs = both(pairs(), pattern)
    naive = json.loads(ours.to_str())
    naive["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}

    assert for_tokenizers(pattern, WHERE) != pattern
    assert not same(Tokenizer.from_str(json.dumps(naive)), theirs, ["1234567", " \n \n a"])


def test_what_a_pattern_passes_over_is_left_out_as_tiktoken_does() -> None:
    ours, theirs = both(pairs(), r"[a-z]+|\d")

    assert same(ours, theirs, ["ab, CD12é!", "", "--"])


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "(", ")", "a)", "[a", "a**", "a{2}?", "a{2}{3}", "a{,3}", "*a", "a|+", "]", "}"),
        *(r"\b", r"\h", r"\R", r"\X", r"\K", r"\1", r"\Q", "\\", r"\p{Foo}", r"\p{^L}", r"[\W]"),
        *("(?m)a", "(?x: a)", "(?s:.)", "(?-i:a)", "(?<n>a)", "(?P<n>a)", "(?i:é)", "(?#a)"),
        *("[[:alpha:]]", "[a--b]", "[]a]", r"\x{110000}", r"\u{d800}", "a" * 30_000),
    ],
)
def test_what_may_mean_something_else_is_refused(pattern: str) -> None:
    with pytest.raises(TokenizerError):
        for_tokenizers(pattern, WHERE)


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.binary(min_size=2, max_size=6), max_size=40, unique=True),
    texts=st.lists(st.text("ab c\n", max_size=20), min_size=1, max_size=20),
    data=st.data(),
)
def test_any_ranks(words: list[bytes], texts: list[str], data: st.DataObject) -> None:
    """Ranks that no trainer would give, words that no merges lead to among them."""
    letters = [bytes(b"ab c\n"[value % 5] for value in word) for word in words]
    order = data.draw(st.permutations(list(dict.fromkeys(letters))))
    ranks = {bytes([value]): value for value in range(256)}
    for word in order:
        ranks[word] = len(ranks)
    ours, theirs = both(ranks, r"[^\n]+|\n")

    assert same(ours, theirs, texts)


@pytest.mark.parametrize("gap", [0, 5])
def test_special_tokens_have_their_ids_and_no_text_spells_them(gap: int) -> None:
    ranks = trained(NANOCHAT, 300)
    special = {token: 300 + gap + 2 * gap * at + at for at, token in enumerate(SPECIAL)}
    ours, theirs = both(ranks, NANOCHAT, special)

    text = "a<|bos|>b <|end|><|bo"

    assert ours.encode(text).ids == theirs.encode(text, allowed_special="all")
    for token, number in special.items():
        assert ours.token_to_id(token) == number
        assert ours.decode([number], skip_special_tokens=False) == token
    plain = json.loads(ours.to_str()) | {"added_tokens": []}
    found = Tokenizer.from_str(json.dumps(plain)).encode(text).ids
    assert found == theirs.encode_ordinary(text)


def test_a_special_token_that_text_would_spell_is_refused() -> None:
    ranks = {bytes([value]): value for value in range(256)}

    with pytest.raises(TokenizerError, match="only spells it"):
        both(ranks, r"[^\n]+|\n", {"<|bos|>": 300})


def test_decoding_gives_the_text_again() -> None:
    ours, _ = both(trained(NANOCHAT), NANOCHAT)
    rng = random.Random(3)

    for text in (random_text(rng) for _ in range(300)):
        assert ours.decode(ours.encode(text).ids) == text


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/nanochat is not here")
def test_nanochats_own_tokenizer() -> None:
    path = SHARED / "tokenizer" / "tokenizer.pkl"
    theirs = pickle.loads(path.read_bytes())
    ours = Tokenizer.from_str(tokenizer_json(read_pickled(path)).decode())
    rng = random.Random(7)

    assert same(ours, theirs, all_code_points())
    assert same(ours, theirs, [random_text(rng) for _ in range(10_000)])
    for token in theirs.special_tokens_set:
        assert ours.encode(token).ids == [theirs.encode_single_token(token)]


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("echo executed",)


def test_a_pickle_of_anything_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pkl"
    for content, told in (
        (_Evil(), "system"),
        ({"pat_str": "a"}, "does not hold one"),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(FerryError, match=told):
            read_pickled(path)


def test_an_encoding_that_is_only_a_name_is_not_fetched(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.pkl"
    path.write_bytes(b"\x80\x04ctiktoken.core\nEncoding\n)\x81\x8c\x05o200kb.")

    with pytest.raises(TokenizerError, match="only the name 'o200k'"):
        read_pickled(path)


@pytest.mark.parametrize(
    "ranks",
    [
        {bytes([value]): value for value in range(255)},
        {bytes([value]): 0 for value in range(256)},
        {bytes([value]): value - 1 for value in range(256)},
    ],
)
def test_ranks_that_can_not_be(ranks: dict[bytes, int]) -> None:
    with pytest.raises(TokenizerError):
        Encoding("a", ranks, {}, WHERE)


def write_ranks(path: Path, ranks: Mapping[bytes, int]) -> Path:
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    path.write_bytes(b"".join(lines))
    return path


def test_a_rank_file_of_no_known_name_needs_its_pattern(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (llama / "tokenizer.json").unlink()
    ranks = {bytes([value]): value for value in range(256)}
    rows = json.loads((llama / "config.json").read_text())["vocab_size"]
    for first in range(97, 123):
        for second in range(97, 123):
            if len(ranks) < rows - 1:
                ranks[bytes([first, second])] = len(ranks)
    write_ranks(llama / "mine.tiktoken", ranks)
    settings = {"added_tokens_decoder": {str(len(ranks)): {"content": "<|end|>"}}}
    (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    made = llama.parent / "made"
    flags = ["--hf-path", str(llama), "--mlx-path", str(made)]

    assert convert(flags) == 1
    assert "tokenizer.pattern" in capsys.readouterr().err
    pattern = r" ?[a-z]+|\p{N}{1,3}+|\s|\S"
    assert convert([*flags, "--set", f"tokenizer.pattern={json.dumps(pattern)}"]) == 0

    ours = Tokenizer.from_file(str(made / "tokenizer.json"))
    theirs = tiktoken.Encoding(
        "test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|end|>": len(ranks)}
    )
    assert same(ours, theirs, ["hello world 12345", "ſ ab<|"])
    assert ours.token_to_id("<|end|>") == len(ranks)


def test_a_rank_file_of_a_known_name_needs_none(tmp_path: Path) -> None:
    ranks = pairs()
    for number in range(65_792, 100_256):
        ranks[b"\x00\x00" + number.to_bytes(3, "big")] = number
    path = write_ranks(tmp_path / "cl100k_base.tiktoken", dict(list(ranks.items())[:100_256]))

    encoding = read_rank_file(path, None)

    assert encoding.pattern == KNOWN["cl100k_base"].pattern
    assert encoding.special["<|endofprompt|>"] == 100_276
