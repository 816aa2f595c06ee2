"""The child process that has transformers make a tokenizer of a GGUF file's metadata.

Run by its path, not imported: the metadata arrive on stdin as JSON, tokenizer.json leaves
on stdout. torch, which transformers would add if it could, is kept out.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY_LIMIT = 6 << 30  # of address space


def made(asked: dict[str, Any]) -> str:
    """tokenizer.json.

    Args:
        asked: `architecture` and `tokenizer` as transformers takes them; `begin`, a token that
            every text begins with, or null.
    """
    from tokenizers.processors import Sequence, TemplateProcessing
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

    tokenizer, _ = convert_gguf_tokenizer(asked["architecture"], asked["tokenizer"])
    begin = asked["begin"]
    if begin is not None:
        template = TemplateProcessing(
            single=[begin, "$A"],
            pair=[begin, "$A", begin, "$B:1"],
            special_tokens=[(begin, tokenizer.token_to_id(begin))],
        )
        before = tokenizer.post_processor
        if before is None or type(before) is TemplateProcessing:
            tokenizer.post_processor = template
        else:
            tokenizer.post_processor = Sequence([before, template])
    text: str = tokenizer.to_str()
    return text


def main() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    except (ImportError, ValueError, OSError):
        pass  # not every system has the limit; the caller's cap on time remains
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` fail at once
    text = made(json.load(sys.stdin))
    sys.stdout.buffer.write(text.encode())


if __name__ == "__main__":
    main()
