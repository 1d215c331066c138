"""Chat templates are rendered as transformers does it, within bounds of time and size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from textmill.tokenizing import chat_templates
from textmill.tokenizing.chat_templates import ChatTemplates, TemplateFault

MESSAGES = [
    {"role": "system", "content": "Be kind.\n"},
    {"role": "user", "content": "Ärger <b> & “quotes”"},
]
CHATML = """\
{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] \
+ '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
{% endif %}"""
OTHERS = [
    "{{ bos_token }}{% for m in messages %}{{ m | tojson }}{% endfor %}",
    "{%- for m in messages -%}\n  {%- if loop.last -%}{% break %}{%- endif -%}\n{{ m.role }}\n"
    "{%- endfor %}",
    "{% if messages[0].role == 'system' %}\n  {% set first = messages[0].content | trim %}\n"
    "{% endif %}\n{{ first }}|{{ eos_token }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
]
CONFIG: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture
def templates() -> Iterator[ChatTemplates]:
    made = ChatTemplates()
    yield made
    made.close()


@pytest.mark.parametrize("template", [CHATML, *OTHERS])
def test_the_text_is_that_of_transformers(templates: ChatTemplates, template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered = render_jinja_template(
        conversations=[MESSAGES], chat_template=template, add_generation_prompt=True, **CONFIG
    )
    expected = rendered[0][0] if isinstance(rendered, tuple) else rendered
    assert templates.render(CONFIG | {"chat_template": template}, MESSAGES) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}", "not valid"),
        ("{{ messages[7].content.upper() }}", "no element 7"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "longer",
        ),
        ("{% for a in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "characters"),
        ("{{ 'x' * 9999999999 }}", "memory|failed"),
    ],
)
def test_a_hostile_template_is_an_error(
    templates: ChatTemplates, template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_templates, "RENDER_SECONDS", 1.0)
    began = time.monotonic()
    with pytest.raises(TemplateFault, match=message):
        templates.render({"chat_template": template}, MESSAGES)
    assert time.monotonic() - began < 20
    assert templates.render({"chat_template": "fine"}, MESSAGES) == "fine"


def test_the_process_used_longest_ago_ends(templates: ChatTemplates) -> None:
    for number in range(chat_templates.MAX_PROCESSES + 2):
        assert templates.render({"chat_template": f"{number}"}, MESSAGES) == str(number)
    assert len(templates._processes) == chat_templates.MAX_PROCESSES
