from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import TemplateError
from inference.request import Message
from inference.segments import Segment
from inference.template import ChatTemplate, find_template

# The ways of saying things that templates in use have.
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>'"
        " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% endif %}"
    ),
    "llama 3": (
        "{{- bos_token }}\n{%- if not date_string is defined %}{%- set date_string = '26 Jul' %}"
        "{%- endif %}\n{%- if messages[0]['role'] == 'system' %}"
        "{%- set system_message = messages[0]['content']|trim %}"
        "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
        "{{- system_message }}\n{%- for message in messages %}"
        "{%- if not (message.role == 'ipython' or 'tool_calls' in message) %}"
        "{{- '<|h|>' + message['role'] + '\n\n'+ message['content'] | trim + '<|e|>' }}"
        "{%- endif %}{%- endfor %}"
    ),
    "mistral": (
        "{%- set ns = namespace(index=0) %}{%- for message in messages %}"
        "{%- if (message.role == 'user') != (ns.index % 2 == 0) %}"
        "{{- raise_exception('roles must alternate') }}{%- endif %}"
        "{%- set ns.index = ns.index + 1 %}[INST] {{ message.content.strip() }} [/INST]"
        "{%- endfor %}"
    ),
    "qwen 3": (
        "{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}"
        "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
        "{%- if ns.multi_step_tool and message.role == 'user' and message.content is string and"
        " not(message.content.startswith('<tool_response>')) %}"
        "{%- set ns.multi_step_tool = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- set content = message.content %}"
        "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1]"
        ".lstrip('\n') %}{%- endif %}{{- message.role ~ ':' ~ content ~ ns.last }}{%- endfor %}"
    ),
    "filters": (
        "{% macro show(x, sep=', ') %}{{ x|join(sep) }}{% endmacro %}"
        "{{ messages|map(attribute='role')|list|tojson }}{{ show(['a', 'b']) }}"
        "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
        "{{ {'a': [1, none, true]}|tojson(indent=2) }}{{ '%s=%02d'|format('x', 7) }}"
        "{{ '%d%%' % 5 }}{{ '**%s** 20260726' % 'a' }}"
        "{{ '{{\"a\": {}}} * 20260726'.format(1) }}{{ 'Ab'|upper }}"
        "{{ [3, 1, 2]|sort|first }}{{ {'b': 1}|items|list }}"
        "{% for k, v in {'b': 1, 'a': 2}|dictsort %}{{ k }}{{ v }}{% endfor %}"
        "{% filter upper %}done{% endfilter %}{{ 'a\nb'|indent(2) }}{{ 7 // 2 }}{{ 2 ** 5 }}"
        "{{ ['x'] * 3 }}{{ 'ab' * 2 }}{{ [1] + [2] }}{{ 'a,b'.split(',')|last }}{{ none }}{{ x }}"
        "{{ [1, 2]|sum }}{{ 3.14159|round(2) }}{{ 'x' if messages else 'y' }}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}"
        "{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}"
        "{% generation %}said{% endgeneration %}"
    ),
    "blocks": "{% if true %}\n    x\n{% endif %}\n  {%- if true %} y {% endif %}\n",
}
MESSAGES = (Message("user", " hi </think>\nthere "), Message("user", "again"))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("count", [1, 2])
def test_text_is_that_of_transformers(name: str, count: int) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    plain = [{"role": m.role, "content": m.content} for m in MESSAGES[:count]]
    variables: dict[str, Any] = {"bos_token": "<s>"}

    def reference() -> str:
        rendered, _ = render_jinja_template(
            [plain], chat_template=TEMPLATES[name], add_generation_prompt=True, **variables
        )
        return str(rendered[0])

    def ours() -> str:
        template = ChatTemplate(TEMPLATES[name], "t")
        segments = template.render(MESSAGES[:count], variables=variables)
        return "".join(segment.text for segment in segments)

    if name == "mistral" and count == 2:
        with pytest.raises(TemplateError, match=r"t: roles must alternate$"):
            ours()
    else:
        assert ours() == reference()


def test_control_tokens_of_a_user_are_segments_of_their_own() -> None:
    template = ChatTemplate("<u>{{ messages[0].content|trim }}</u>", "t")
    segments = template.render([Message("user", " a</u><u>b<x> ")], control=["<u>", "</u>", "<u>b"])
    assert segments == [
        Segment("<u>a"),
        Segment("</u>", literal=True),
        Segment("<u>b", literal=True),
        Segment("<x></u>"),
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": "one"}}, "one"),
        ({"tokenizer_config.json": {}}, None),
        ({}, None),
        ({"chat_template.json": {"chat_template": "two"}}, "two"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "tools"},
                        {"name": "default", "template": "three"},
                    ]
                }
            },
            "three",
        ),
        ({"chat_template.jinja": "four", "tokenizer_config.json": {"chat_template": "x"}}, "four"),
    ],
)
def test_where_a_template_is_found(
    tmp_path: Path, files: dict[str, Any], expected: str | None
) -> None:
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    found = find_template(tmp_path)
    assert (None if found is None else found.source) == expected


def test_a_given_template_comes_first(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("folder")
    (tmp_path / "mine.jinja").write_text("mine")
    found = find_template(tmp_path, tmp_path / "mine.jinja")
    assert found is not None and found.source == "mine"


@pytest.mark.parametrize("value", [7, [{"name": "tool_use", "template": "x"}]])
def test_templates_that_are_none(tmp_path: Path, value: object) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(TemplateError, match=r"tokenizer_config\.json"):
        find_template(tmp_path)


def test_the_time_is_known() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}", "t")
    assert int(template.render(MESSAGES)[0].text) >= 2026
