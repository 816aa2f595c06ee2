"""Each file-system call of saving a chat and its cache fails: the files are old or whole."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import pytest

from configs.errors import FerryError
from inference import cache_file
from inference.cache import Held, SequenceCache
from inference.chat.conversation import Conversation
from inference.chat.saved import Saved
from inference.marks import Mark
from tests.factories_inference import tiny_config, tiny_network
from tests.faults.conversion import files_of
from tests.faults.faulty import Counting, Failing, below_disk

OLD = Saved(Conversation().ask("old"))
NEW = Saved(Conversation("brief").ask("new").answered("yes"), {"temperature": 0.5}, "model")


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
def test_old_or_whole(for_ever: bool, tmp_path: Path) -> None:
    model = tiny_network(tiny_config("gemma3_text"))
    cache = SequenceCache(model)
    model(mx.array([[5, 6, 7]]), cache=cache.layers)
    cache.advance(3)
    mark = Mark.of(cache)
    assert mark is not None
    chat = tmp_path / "chat.json"
    beside = cache_file.beside(chat)

    def write(saved: Saved, tokens: tuple[int, ...]) -> None:
        saved.save(chat)
        cache_file.save(beside, Held(tokens, cache), [mark], {"model": "m"})

    write(NEW, (5, 6, 7))
    whole = files_of(tmp_path)
    write(OLD, (1, 1, 1))
    old = files_of(tmp_path)
    with below_disk(counting := Counting()):
        write(NEW, (5, 6, 7))
    assert files_of(tmp_path) == whole and len(counting.calls) > 20
    open_files = len(os.listdir("/dev/fd"))
    for first in range(1, len(counting.calls) + 1):
        write(OLD, (1, 1, 1))
        failed = False
        try:
            with below_disk(Failing(first, for_ever=for_ever)):
                write(NEW, (5, 6, 7))
        except FerryError as error:
            failed = "\n" not in str(error)
        assert failed or files_of(tmp_path) == whole, first
        for path in (chat, beside):
            assert path.read_bytes() in (old[path.name], whole[path.name]), first
        assert len(os.listdir("/dev/fd")) == open_files, first
        write(NEW, (5, 6, 7))
        assert files_of(tmp_path) == whole, first  # nothing of the one before is left
