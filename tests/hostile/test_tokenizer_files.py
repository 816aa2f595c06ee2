"""Cases 24, 25, 28 and 29: tokenizer files that lie, or want code to be run."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from checkpoint.tokenizer_files import TokenizerFiles, check_tokenizer
from configs.errors import SourceError, TokenizerError

TEXT = ['the quick "brown" fox \\ merges: [', "jumps über den 懒狗 🦊", '"merges":["x"]']


def trained(model: str) -> Tokenizer:
    """A real tokenizer of each kind, trained on a few lines, with two added tokens."""
    if model == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"]
        )
    elif model == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["<unk>"])
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"])
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|ünï|>")])
    return tokenizer


@pytest.mark.parametrize("pretty", [True, False])
@pytest.mark.parametrize("model", ["bpe", "unigram", "wordpiece"])
def test_real_tokenizers(tmp_path: Path, model: str, pretty: bool) -> None:
    tokenizer = trained(model)
    tokenizer.save(str(tmp_path / "tokenizer.json"), pretty=pretty)
    highest = max(tokenizer.get_vocab().values())
    assert check_tokenizer(tmp_path) == TokenizerFiles("tokenizer.json", highest)
    assert check_tokenizer(tmp_path, highest + 1).highest_id == highest
    # The last two are special: no fault, as long as no prompt holds them.
    found = check_tokenizer(tmp_path, highest - 1)
    assert found.beyond == (f"'<|im_start|>' ({highest - 1})", f"'<|ünï|>' ({highest})")
    rows = highest - 2
    with pytest.raises(TokenizerError) as caught:  # case 24
        check_tokenizer(tmp_path, rows)
    assert caught.value.what == f"has token id {rows}, and the embedding has {rows} rows"


def tokenizer_json(vocab: object, added: object = (), **model: Any) -> bytes:
    content = {
        "added_tokens": added,
        "model": {"type": "BPE", "vocab": vocab, "merges": []} | model,
    }
    return json.dumps(content).encode()


def added(number: object, content: object) -> dict[str, object]:
    return {"id": number, "content": content, "special": True}


AB = {"a": 0, "b": 1}
INVALID = {
    "empty": (b"", "is empty"),
    "not JSON": (b"{", "is not valid JSON"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is not valid JSON"),
    "bad UTF-8": (b'{"model": "\xff"}', "is not valid UTF-8"),
    "UTF-8 cut short": (b'{"model": {"vocab": {}}}\xe2\x96', "is not valid UTF-8"),
    "array": (b"[]", "has no object named model"),
    "no model": (b"{}", "has no object named model"),
    "model is text": (b'{"model": "BPE"}', "has no object named model"),
    "no vocabulary": (b'{"model": {}}', "has no vocabulary"),
    "vocabulary is a number": (tokenizer_json(7), "has no vocabulary"),
    "empty vocabulary": (tokenizer_json({}), "has an empty vocabulary"),
    "deep": (b'{"model": ' + b"[" * 100_000, "nested too deep"),
    "bad merges": (tokenizer_json(AB)[:-3] + b'"a\x01"]}}', "Invalid control character"),
    "unfinished merges": (tokenizer_json(AB)[:-3] + b'"a b",]}}', "is not valid JSON"),
    "merges without comma": (tokenizer_json(AB)[:-3] + b'"a b"["c d"]}}', "is not valid JSON"),
    "Unigram entry without score": (tokenizer_json([["a", 0.0], ["b"]]), "entry 1 of its"),
    "added tokens not an array": (tokenizer_json(AB, {"c": 2}), "added_tokens is an object"),
    "added token is text": (tokenizer_json(AB, ["c"]), "an added token without its text"),
    "added token without text": (tokenizer_json(AB, [added(2, None)]), "without its text"),
    # 28
    "id twice": (tokenizer_json({"a": 0, "ü": 0}), "gives the id 0 to 'a' and to 'ü'"),
    "token twice": (b'{"model": {"vocab": {"a": 0, "a": 1}}}', "key 'a' is given twice"),
    "added id twice": (tokenizer_json(AB, [added(2, "c"), added(2, "d")]), "the id 2 to 'c' and"),
    "added id of another": (tokenizer_json(AB, [added(1, "c")]), "the id 1 to 'b' and to 'c'"),
    "negative": (tokenizer_json({"a": -1}), "token 'a' the id -1, outside 0 to 4294967294"),
    "2^32-1": (tokenizer_json({"a": 2**32 - 1}), "the id 4294967295, outside"),
    "2^64": (tokenizer_json({"a": 2**64}), "the id 18446744073709551616, outside"),
    "float": (tokenizer_json({"a": 1.0}), "gives token 'a' 1.0 for an id"),
    "bool": (tokenizer_json({"a": True}), "gives token 'a' true for an id"),
    "text": (tokenizer_json({"a": "1"}), "gives token 'a' \"1\" for an id"),
    "added negative": (tokenizer_json(AB, [added(-1, "c")]), "token 'c' the id -1"),
    "added negative and known": (tokenizer_json(AB, [added(-1, "a")]), "token 'a' the id -1"),
    "added without id": (tokenizer_json(AB, [added(None, "c")]), "gives token 'c' null"),
}


@pytest.mark.parametrize(("content", "reason"), INVALID.values(), ids=INVALID.keys())
def test_invalid_tokenizer_json(tmp_path: Path, content: bytes, reason: str) -> None:
    """Cases 25 and 28."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        check_tokenizer(tmp_path)
    assert reason in caught.value.what
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "merges",
    [
        ["a b"],
        [["a", "b"]],
        [["\\", "\\"], ['"', '"merges":[']],
        ["é 字", "\n \t", "\\ud83e\\udd8a"],
    ],
    ids=str,
)
def test_merges_of_every_form(tmp_path: Path, merges: object) -> None:
    """They are passed over, and nothing beside them is."""
    content = tokenizer_json(AB | {'"merges": [': 2}, [added(3, '"merges": ["')], merges=merges)
    (tmp_path / "tokenizer.json").write_bytes(content)
    assert check_tokenizer(tmp_path).highest_id == 3


def test_added_token_that_the_vocabulary_has(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(AB, [added(1, "b"), added(7, "c")]))
    assert check_tokenizer(tmp_path).highest_id == 7


def test_missing(tmp_path: Path) -> None:
    """Case 25."""
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TokenizerError, match="is missing") as caught:
        check_tokenizer(tmp_path)
    assert caught.value.where == str(tmp_path / "tokenizer.json")


def test_invalid_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(AB))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(TokenizerError) as caught:
        check_tokenizer(tmp_path)
    assert caught.value.where == str(tmp_path / "tokenizer_config.json")


def test_link_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(tokenizer_json(AB))
    (folder / "tokenizer.json").symlink_to("../secret")
    with pytest.raises(SourceError, match="leaves the folder"):
        check_tokenizer(folder)


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoTokenizer": ["tokenization_evil.Evil", None]},
        {"AutoTokenizer": "tokenization_evil.Evil"},
        ["tokenization_evil.Evil", None],
    ],
    ids=str,
)
def test_custom_class(tmp_path: Path, auto_map: object) -> None:
    """Case 29: it is never run; and not needed where there is a tokenizer.json."""
    (tmp_path / "tokenization_evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    (tmp_path / "evil.tiktoken").write_bytes(b"YQ== 0\n")
    with pytest.raises(TokenizerError, match=r"own class 'tokenization_evil\.Evil'") as caught:
        check_tokenizer(tmp_path)
    assert "tokenizer.json" in caught.value.mend
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(AB))
    assert check_tokenizer(tmp_path).main == "tokenizer.json"


def ranks(*tokens: bytes) -> bytes:
    return b"".join(b"%s %d\n" % (base64.b64encode(token), n) for n, token in enumerate(tokens))


@pytest.mark.parametrize("name", ["qwen.tiktoken", "tokenizer.model"])
def test_tiktoken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(ranks(b"a", b"b", b"ab", b"\xff"))
    assert check_tokenizer(tmp_path, 4) == TokenizerFiles(name, 3)
    with pytest.raises(TokenizerError, match="has token id 3, and the embedding has 3 rows"):
        check_tokenizer(tmp_path, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (ranks(b"a") + b"Y 1\n", "line 2 is not a base64 token"),
        (ranks(b"a") + b"YQ=a 1\n", "line 2 is not a base64 token"),
        (ranks(b"a") + b"Yg==\n", "line 2 is not a base64 token"),
        (ranks(b"a") + b"Yg== -1\n", "line 2 is not a base64 token"),
        (ranks(b"a") + b"Yg== x\n", "line 2 is not a base64 token"),
        (ranks(b"a") + b"Yg== 0\n", "gives rank 0 twice, again in line 2"),
        (ranks(b"a") + b"YQ== 1\n", "gives token 'YQ==' twice, again in line 2"),
    ],
)
def test_wrong_ranks(tmp_path: Path, content: bytes, reason: str) -> None:
    """Case 29."""
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        check_tokenizer(tmp_path)
    assert reason in caught.value.what


def test_sentencepiece_alone_is_reported(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    assert check_tokenizer(tmp_path, 4) == TokenizerFiles("tokenizer.model", None)


def test_vocab_json_alone_is_reported(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(AB))
    assert check_tokenizer(tmp_path, 2) == TokenizerFiles("vocab.json", 1)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 0}))
    with pytest.raises(TokenizerError, match="gives the id 0 to 'a' and to 'b'"):
        check_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["a FIFO", "a folder"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "merges.txt"])
def test_what_is_no_file(tmp_path: Path, name: str, kind: str) -> None:
    """It is named, and not called missing or passed over; a FIFO is never waited for."""
    trained("bpe").save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if kind == "a FIFO":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(SourceError, match=f"is {kind}, not a file") as caught:
        check_tokenizer(tmp_path)
    assert caught.value.where == str(path)


def test_a_link_that_leads_nowhere_is_missing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to("nothing")
    with pytest.raises(TokenizerError, match="is missing"):
        check_tokenizer(tmp_path)
