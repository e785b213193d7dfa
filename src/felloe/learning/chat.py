"""The chat form: one text shape for training, and the template that gives the same shape in an engine.

`render` and `TEMPLATE` must agree to the byte for every chat that the model was trained on. The template
takes more than that (tools, parts of content), because OpenAI clients send it.
"""

import json

from felloe.learning.conversations import Conversation
from felloe.learning.tool_calls import ToolCall

BEGIN = "<|bos|>"
END = "<|end|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
PADDING = "<|pad|>"
SPECIAL_TOKENS = (BEGIN, END, SYSTEM, USER, ASSISTANT, PADDING)

_TOOLS_HEAD = """\
To call a function, write:
<tool_call>
{"name": ..., "arguments": {...}}
</tool_call>
Functions:"""

TEMPLATE = """\
{%- macro plain(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}{{- part.text -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if tools -%}
    {{- '<|system|>\\nTo call a function, write:\\n' -}}
    {{- '<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>\\nFunctions:' -}}
    {%- for tool in tools -%}
        {{- '\\n' ~ (tool | tojson) -}}
    {%- endfor -%}
    {{- '<|end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{- '<|assistant|>\\n' ~ plain(message.content) -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set called = call.function -%}
            {{- '<tool_call>\\n{"name": "' ~ called.name ~ '", "arguments": ' -}}
            {%- if called.arguments is string -%}
                {{- called.arguments -}}
            {%- else -%}
                {{- called.arguments | tojson -}}
            {%- endif -%}
            {{- '}\\n</tool_call>' -}}
        {%- endfor -%}
    {%- elif message.role == 'tool' -%}
        {{- '<|user|>\\n<tool_response>\\n' ~ plain(message.content) ~ '\\n</tool_response>' -}}
    {%- elif message.role in ['system', 'developer'] -%}
        {{- '<|system|>\\n' ~ plain(message.content) -}}
    {%- else -%}
        {{- '<|user|>\\n' ~ plain(message.content) -}}
    {%- endif -%}
    {{- '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>\\n' -}}
{%- endif -%}
"""


def render(conversation: Conversation) -> str:
    """The text of a conversation, without the begin token and ending with the last end token."""
    system = [f"{SYSTEM}\n{conversation.system}{END}"] if conversation.system else []
    return "\n".join(system + [_turn(turn.question, turn.answer) for turn in conversation.turns])


def render_tool_call(called: ToolCall) -> str:
    """The text of a conversation with a tool, in the same form."""
    turns = [
        f"{SYSTEM}\n{_TOOLS_HEAD}\n{json.dumps(called.tool)}{END}",
        _turn(called.question, f"<tool_call>\n{called.call}\n</tool_call>"),
    ]
    if called.result:
        turns.append(_turn(f"<tool_response>\n{called.result}\n</tool_response>", f"The answer is {called.result}."))
    return "\n".join(turns)


def _turn(question: str, answer: str) -> str:
    return f"{USER}\n{question}{END}\n{ASSISTANT}\n{answer}{END}"
