"""Turns of a chat: what is read is only what is new, and the answer is that of a fresh start."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from configs.errors import RequestError, SourceError
from configs.resolve import Layers
from configs.settings import Setting
from inference.cache import common_length
from inference.cache_file import beside
from inference.chat.conversation import Conversation
from inference.chat.turns import Turns
from inference.events import Delta, Finished
from inference.load import LoadedModel
from inference.session import Session, open_session
from tests.factories_inference import KINDS, edit_json, write_mlx
from tests.unit.test_inference_batch import FALCON_H1, GPT_OSS

OTHERS: dict[str, dict[str, Any]] = {"falcon_h1": FALCON_H1, "gpt_oss": GPT_OSS}
ALL = [*KINDS, *OTHERS]
# Whose cache is cut where the prompts part, however long they are.
CUT = {"llama", "qwen2", "gemma2", "qwen3_moe"}
MOST = 8
LONG = {"generate.ignore_eos": True, "generate.max_tokens": 40}
START = Conversation("be brief")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def folder_of(folders: Path, kind: str) -> Path:
    folder = folders / kind
    if folder.is_dir():
        return folder
    return write_mlx(folder, "llama" if kind in OTHERS else kind, **OTHERS.get(kind, {}))


def opened(folder: Path, **settings: Any) -> tuple[Session, LoadedModel]:
    """A session that takes the most probable token, and answers shortly."""
    return _opened(folder, tuple(settings.items()))


@cache
def _opened(folder: Path, settings: tuple[tuple[str, Any], ...]) -> tuple[Session, LoadedModel]:
    given = {"generate.temperature": 0.0, "generate.max_tokens": MOST, **dict(settings)}
    layers = Layers(flags={key: Setting(value, "--test") for key, value in given.items()})
    session = open_session(folder, layers.resolve())
    return session, session.load("cpu", "float32", 256)


class Talk:
    """A conversation and its turns; each answer is held against that of a fresh start."""

    def __init__(self, session: Session, loaded: LoadedModel) -> None:
        self.session, self.loaded = session, loaded
        self.turns = Turns(session, loaded)
        self.conversation = START
        self.read: tuple[int, ...] = ()  # what the cache held before the last turn

    def turn(self, asked: Conversation, stop_after: int | None = None) -> Finished:
        request = self.turns.request(asked, {})
        held = self.turns.kept.contents()
        self.read = held[0].tokens if held else ()
        text, deltas, finished = "", 0, None
        for event in self.turns.run(request):
            match event:
                case Delta():
                    text += event.text
                    deltas += 1
                    if deltas == stop_after:
                        self.turns.cancel(request)
                case Finished():
                    finished = event
        assert finished is not None
        if stop_after is None:
            fresh = Turns(self.session, self.loaded)
            events = [*fresh.run(fresh.request(asked, {}))]
            assert text == "".join(e.text for e in events if isinstance(e, Delta))
            assert events[-1].usage.cached_tokens == 0  # type: ignore[union-attr]
        self.conversation = asked.answered(text)
        self.shared = common_length(self.read, request.prompt)
        return finished


@pytest.mark.parametrize("kind", ALL)
def test_each_turn_reads_only_what_is_new(kind: str, folders: Path) -> None:
    talk = Talk(*opened(folder_of(folders, kind)))
    assert talk.turn(talk.conversation.ask("hello")).usage.cached_tokens == 0
    for text in ("the quick brown fox", "again"):
        before = talk.turns.request(talk.conversation.retry(), {}).prompt
        usage = talk.turn(talk.conversation.ask(text)).usage
        # At least all of the last prompt but its last token, which is never read beforehand.
        assert usage.cached_tokens >= len(before) - 1 > 0
        if kind in CUT:
            assert usage.cached_tokens == talk.shared

    # Said differently: what comes before the last turn is kept.
    earlier = talk.turns.request(talk.conversation.undo().retry(), {}).prompt
    usage = talk.turn(talk.conversation.edit("other words")).usage
    assert usage.cached_tokens >= len(earlier) - 1
    if kind in CUT:
        assert usage.cached_tokens == talk.shared

    # Answered anew: the prompt is there but for its last token.
    usage = talk.turn(talk.conversation.retry()).usage
    assert usage.cached_tokens == usage.prompt_tokens - 1

    # Taken back twice, to the first turn.
    first = talk.turns.request(START.ask("hello"), {}).prompt
    usage = talk.turn(talk.conversation.undo().undo().ask("hm")).usage
    assert usage.cached_tokens >= len(first) - 1

    # Another system message: nothing of use is left but the words before it.
    usage = talk.turn(talk.conversation.with_system("go on").ask("x")).usage
    assert usage.cached_tokens <= 8
    assert talk.turns.totals.answers == 7
    assert talk.turns.totals.read + talk.turns.totals.cached > talk.turns.totals.read


@pytest.mark.parametrize("kind", ALL)
def test_a_stopped_answer_stays_and_so_does_its_cache(kind: str, folders: Path) -> None:
    talk = Talk(*opened(folder_of(folders, kind), **LONG))
    finished = talk.turn(talk.conversation.ask("hello"), stop_after=1)
    assert finished.reason == "cancelled" and talk.conversation.answer
    assert finished.usage.completion_tokens < LONG["generate.max_tokens"]
    usage = talk.turn(talk.conversation.ask("go on")).usage
    assert usage.cached_tokens >= finished.usage.prompt_tokens - 1


@pytest.mark.parametrize("kind", [*ALL, "quantized"])
def test_a_saved_cache_goes_on_where_it_was(kind: str, folders: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"memory.kv_bits": 8} if kind == "quantized" else {}
    folder = folder_of(folders, "llama" if kind == "quantized" else kind)
    talk = Talk(*opened(folder, **settings))
    file = tmp_path / "cache.safetensors"
    assert not talk.turns.save_cache(file) and not file.exists()  # there is none yet
    for text in ("hello", "and now"):
        talk.turn(talk.conversation.ask(text))
    assert talk.turns.save_cache(file) and [*tmp_path.iterdir()] == [file]

    again = Talk(*opened(folder, **settings))
    again.conversation = talk.conversation
    assert again.turns.load_cache(file) == talk.turns.kept.tokens
    for asked in (talk.conversation.ask("more"), talk.conversation.ask("more").retry()):
        assert again.turn(asked).usage == talk.turn(asked).usage
        assert again.conversation == talk.conversation
        assert again.turns.kept.tokens == talk.turns.kept.tokens

    # The place before the last answer is saved too.
    once_more = Talk(*opened(folder, **settings))
    once_more.turns.load_cache(file)
    asked = Conversation(START.system, talk.conversation.messages[:3])
    usage = once_more.turn(asked).usage
    assert usage.cached_tokens == usage.prompt_tokens - 1


def test_a_cache_of_something_else_is_refused(folders: Path, tmp_path: Path) -> None:
    talk = Talk(*opened(folder_of(folders, "gemma3_text")))
    talk.turn(talk.conversation.ask("hello"))
    file = tmp_path / "cache.safetensors"
    talk.turns.save_cache(file)
    other = write_mlx(tmp_path / "other", "gemma3_text", seed=1)
    with pytest.raises(SourceError, match="is of another model"):
        Turns(*opened(other)).load_cache(file)
    session, _ = opened(folder_of(folders, "gemma3_text"))
    with pytest.raises(SourceError, match="is of another dtype"):
        Turns(session, session.load("cpu", "float16", 256)).load_cache(file)
    with pytest.raises(SourceError, match="is of another kv_bits"):
        Turns(*opened(folder_of(folders, "gemma3_text"), **{"memory.kv_bits": 8})).load_cache(file)
    with pytest.raises(SourceError, match="is no saved cache"):
        talk.turns.load_cache(folder_of(folders, "llama") / "model.safetensors")


def changed_header(data: bytes, change: Any) -> bytes:
    """A safetensors file with another header."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def damaged(key: str, change: Any) -> Any:
    def apply(header: Any) -> None:
        metadata = header["__metadata__"]
        metadata[key] = json.dumps(change(json.loads(metadata[key])))

    return apply


@pytest.mark.parametrize(
    "change",
    [
        damaged("entries", lambda entries: entries[:-1]),
        damaged("entries", lambda entries: [None, *entries[1:]]),
        damaged("entries", lambda entries: [entries[1], entries[0], *entries[2:]]),
        damaged("entries", lambda entries: [[{"array": 999}, *entries[0][1:]], *entries[1:]]),
        damaged("entries", lambda entries: [[{"array": "x"}, *entries[0][1:]], *entries[1:]]),
        damaged("entries", lambda entries: [[*entries[0][:2], 3, *entries[0][3:]], *entries[1:]]),
        damaged("entries", lambda entries: "cache"),
        damaged("marks", lambda marks: 5),
        damaged("marks", lambda marks: [[10**6, marks[0][1]]]),
        damaged("marks", lambda marks: [[marks[0][0], marks[0][1][:-1]]]),
        damaged("marks", lambda marks: [[marks[0][0], [None] * len(marks[0][1])]]),
        lambda header: header["__metadata__"].pop("marks"),
        lambda header: header.update(token=header.pop("tokens")),
        lambda header: header["tokens"].update(dtype="F32"),
        lambda header: header["0"].update(dtype="I32"),
    ],
)
def test_a_damaged_cache_is_refused(change: Any, folders: Path, tmp_path: Path) -> None:
    talk = Talk(*opened(folder_of(folders, "gemma3_text")))
    talk.turn(talk.conversation.ask("hello"))
    file = tmp_path / "cache.safetensors"
    talk.turns.save_cache(file)
    data = file.read_bytes()
    file.write_bytes(changed_header(data, lambda header: None))
    assert talk.turns.load_cache(file)
    file.write_bytes(changed_header(data, change))
    with pytest.raises(SourceError):
        talk.turns.load_cache(file)
    file.write_bytes(data[:-1])
    with pytest.raises(SourceError):
        talk.turns.load_cache(file)
    usage = talk.turn(talk.conversation.ask("go on")).usage  # as if nothing had been tried
    assert usage.cached_tokens > 0


def test_saved_bytes_are_what_was_read(folders: Path, tmp_path: Path) -> None:
    """The room for tokens to come, 256 at a time, is not saved."""
    talk = Talk(*opened(folder_of(folders, "llama")))
    talk.turn(talk.conversation.ask("hello"))
    talk.turns.save_cache(tmp_path / "cache")
    arrays = mx.load(str(tmp_path / "cache"), format="safetensors")
    tokens = talk.turns.kept.tokens
    assert {array.shape for name, array in arrays.items() if name != "tokens"} == {  # type: ignore[union-attr]
        (1, 2, tokens, 32)
    }


def test_what_does_not_fit_the_context_is_refused_with_the_way_out(folders: Path) -> None:
    talk = Talk(*opened(folder_of(folders, "llama"), **{"memory.context": 60}))
    talk.turn(talk.conversation.ask("hello"))
    with pytest.raises(RequestError) as caught:
        talk.turn(talk.conversation.ask("the quick brown fox jumps over"))
    message = str(caught.value)
    assert "max_tokens 8 are beyond the context of 60" in message and "prompt tokens" in message
    assert all(way in message for way in ("/undo", "/clear", "/set max_tokens", "--context"))
    usage = talk.turn(talk.conversation.undo().ask("ho")).usage  # the chat goes on, its cache too
    assert usage.cached_tokens > 0


def test_another_attempt_has_another_seed(folders: Path) -> None:
    talk = Talk(*opened(folder_of(folders, "llama"), **{"generate.seed": 5}))
    asked = START.ask("hello")
    seeds = [talk.turns.request(asked, {}, n).options.sampling.seed for n in range(3)]
    assert seeds[0] == 5 and len(set(seeds)) == 3
    request = talk.turns.request(asked, {"temperature": 1.5, "max_tokens": 3})
    assert request.options.max_tokens == 3 and request.options.sampling.temperature == 1.5


def test_the_cache_lies_beside() -> None:
    assert beside(Path("a/chat.json")) == Path("a/chat.json.kv.safetensors")


@pytest.mark.parametrize("kind", ["gemma3_text", "mamba", "falcon_h1", "llama"])
def test_a_prompt_that_ends_with_more_than_the_history_tells(kind: str, tmp_path: Path) -> None:
    """As where a template begins a thought, and leaves thoughts out of the history."""
    folder = write_mlx(tmp_path, "llama" if kind in OTHERS else kind, **OTHERS.get(kind, {}))
    given = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    template = given.replace("assistant\n{% endif", "assistant\nhm, <think>\n{% endif")
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    talk = Talk(*opened(folder))
    before = 0
    for text in ("hello", "again", "and again"):
        usage = talk.turn(talk.conversation.ask(text)).usage
        assert usage.cached_tokens >= before - len("\nhm, <think>\n")  # a character, a token
        before = usage.prompt_tokens
    assert usage.cached_tokens > 60
    usage = talk.turn(talk.conversation.retry()).usage
    assert usage.cached_tokens == usage.prompt_tokens - 1
