"""The draft model of `--draft-model`: opened, checked against the model, loaded.

Owns what must be the same in both. Knows nothing of how it guesses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import UsageError

if TYPE_CHECKING:
    from inference.drafts import DraftModel
    from inference.load import LoadedModel
    from inference.session import Session
    from inference.tokenizer import Tokenizer


def load_draft(path: Path, session: Session, loaded: LoadedModel, length: int) -> DraftModel:
    """Load a draft model beside the model that it guesses for.

    Args:
        path: Its folder.
        session: The model's.
        loaded: The model.
        length: Most tokens of the texts to come.

    Raises:
        UsageError: Its tokens are others, or both take more memory than is allowed.
        SourceError: It is not a whole model folder, or not one that can be run.
    """
    from checkpoint.architecture.rotations import tune_rotations
    from inference.device import allocating
    from inference.drafts import DraftModel
    from inference.load import load, open_folder
    from inference.tokenizer import load_tokenizer

    settings = session.settings
    where = settings.origin("model.draft")
    folder = open_folder(path)
    if session.tokenizer is not None:
        check_same(where, session.tokenizer, load_tokenizer(path, folder.config, ()))
    limit, needed = settings.memory.limit, loaded.weight_bytes + folder.weight_bytes
    if limit is not None and limit < needed:
        what = f"with it the weights are {needed:,} bytes, and memory.limit is {limit:,}"
        raise UsageError(where, what, "raise that, or leave the draft model out")
    with allocating():
        draft = load(folder, loaded.placement)
        tune_rotations(draft.model, folder.config, length)
    cost = draft.weight_bytes / loaded.weight_bytes
    return DraftModel(draft.model, session.folder.vocabulary, cost, draft.weight_bytes)


def check_same(where: str, model: Tokenizer, draft: Tokenizer) -> None:
    """Refuse a draft model whose token ids mean something else.

    Raises:
        UsageError: The first of them.
    """
    for token in range(max(model.highest_id, draft.highest_id) + 1):
        theirs, ours = draft.piece(token), model.piece(token)
        if theirs != ours:
            what = f"its tokenizer is another: token {token} is {theirs!r} there and {ours!r} here"
            raise UsageError(where, what, "give a model of the same family, or --prompt-lookup")
