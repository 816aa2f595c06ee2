"""How nanochat writes a conversation, as a jinja template, and what ends an answer.

A system message is put before the first user's, in one text. An assistant's message is a
text, or a list of parts: `text`, `python` for an expression that is worked out, and
`python_output` for what came out. Owns the names of the special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

BOS = "<|bos|>"
ASSISTANT_END = "<|assistant_end|>"
CHAT_TOKENS = (
    BOS,
    *("<|user_start|>", "<|user_end|>", "<|assistant_start|>", ASSISTANT_END),
    *("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"),
)
"""nanochat's special tokens; a tokenizer that lacks some is not made for chat."""

CHAT_TEMPLATE = """\
{{- '<|bos|>' -}}
{%- set turns = messages -%}
{%- set system = '' -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set turns = messages[1:] -%}
    {%- set system = messages[0]['content'] -%}
    {%- if not turns -%}
        {{- raise_exception('a system message must come before a message of the user') -}}
    {%- endif -%}
{%- endif -%}
{%- for message in turns -%}
    {%- set content = message['content'] -%}
    {%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
        {{- raise_exception('messages must be those of user and assistant in turn') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- '<|user_start|>' -}}
        {%- if system and loop.first -%}{{- system -}}{{- '\\n\\n' -}}{%- endif -%}
        {{- content -}}
        {{- '<|user_end|>' -}}
    {%- else -%}
        {{- '<|assistant_start|>' -}}
        {%- if content is string -%}
            {{- content -}}
        {%- else -%}
            {%- for part in content -%}
                {%- if part['type'] == 'text' -%}
                    {{- part['text'] -}}
                {%- elif part['type'] == 'python' -%}
                    {{- '<|python_start|>' -}}{{- part['text'] -}}{{- '<|python_end|>' -}}
                {%- elif part['type'] == 'python_output' -%}
                    {{- '<|output_start|>' -}}{{- part['text'] -}}{{- '<|output_end|>' -}}
                {%- else -%}
                    {{- raise_exception('a part is of no known type') -}}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {{- '<|assistant_end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}
"""


def ends(special: Mapping[str, int]) -> list[int]:
    """The ids that end an answer."""
    return [special[text] for text in (ASSISTANT_END, BOS) if text in special]
