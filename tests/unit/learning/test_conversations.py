import pytest

from felloe.learning.chat import TEMPLATE, render
from felloe.learning.conversations import Conversation, Turn, conversations
from felloe.learning.corpus import Document

BODY = "\n".join(f"        step_{number} = prepare(source, {number})" for number in range(8))
SOURCE = f'''"""Short."""

class Reader:
    """{"Reads things with care. " * 8}"""

    def fetch(self, source):
        """Return the text of the source."""
{BODY}
        return source
'''


def turns_of(text: str, path: str = "library/reader.py") -> list[Turn]:
    return [turn for chat in conversations(Document(path, text)) for turn in chat.turns]


def test_a_documented_method_is_answered_with_its_code_without_the_indent_of_its_class() -> None:
    answers = [turn.answer for turn in turns_of(SOURCE) if turn.answer.startswith("def ")]
    assert answers
    assert answers[0].startswith('def fetch(self, source):\n    """Return the text')
    assert answers[0].endswith("    return source")


def test_a_long_description_is_answered_with_prose() -> None:
    assert any("Reader" in turn.question and turn.answer.startswith("Reads things") for turn in turns_of(SOURCE))


def test_a_form_feed_does_not_shift_the_lines() -> None:
    assert turns_of(SOURCE.replace("class Reader", "\f\nclass Reader"))[0].answer == turns_of(SOURCE)[0].answer
    code = [turn.answer for turn in turns_of(SOURCE.replace("class Reader", "\f\nclass Reader"))]
    assert any(answer.startswith("def fetch") and answer.endswith("return source") for answer in code)


def test_one_file_always_gives_the_same_conversations() -> None:
    document = Document("library/reader.py", SOURCE)
    assert list(conversations(document)) == list(conversations(document))


def test_a_file_that_does_not_parse_gives_none() -> None:
    assert turns_of("def broken(:") == []


CHATS = [
    Conversation("", (Turn("Write open.", "def open(): ..."),)),
    Conversation("You write Python.", (Turn("One?", "1"), Turn("Two?\n", " 2"))),
]


def templated(**arguments: object) -> str:
    jinja2 = pytest.importorskip("jinja2")
    return jinja2.Environment().from_string(TEMPLATE).render(**arguments)


def messages(chat: Conversation) -> list[dict[str, str]]:
    system = [{"role": "system", "content": chat.system}] if chat.system else []
    turns = [
        message
        for turn in chat.turns
        for message in (
            {"role": "user", "content": turn.question},
            {"role": "assistant", "content": turn.answer},
        )
    ]
    return [*system, *turns]


@pytest.mark.parametrize("chat", CHATS)
def test_the_template_gives_the_form_of_training_to_the_byte(chat: Conversation) -> None:
    assert templated(messages=messages(chat)) == render(chat) + "\n"


def test_the_template_opens_the_answer() -> None:
    asked = templated(messages=[{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    assert asked == "<|user|>\nHello<|end|>\n<|assistant|>\n"


def test_the_template_joins_the_text_parts_of_a_message() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    assert templated(messages=[{"role": "user", "content": parts}]) == "<|user|>\nab<|end|>\n"


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', {"city": "Oslo"}])
def test_the_template_shows_tools_calls_and_their_results(arguments: object) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    shown = templated(
        tools=[{"type": "function", "function": {"name": "weather"}}],
        messages=[
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "dry"},
        ],
    )
    assert "Functions:\n" in shown
    assert (
        '<|assistant|>\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|end|>\n' in shown
    )
    assert shown.endswith("<|user|>\n<tool_response>\ndry\n</tool_response><|end|>\n")
