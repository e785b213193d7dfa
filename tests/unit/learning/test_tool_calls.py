import json

import pytest

from felloe.learning.chat import TEMPLATE, render_tool_call
from felloe.learning.corpus import Document
from felloe.learning.tool_calls import ToolCall, tool_calls

METHOD = '''
    def weather_{number}(self, city, unit):
        """Return the weather. More words."""
        return city
'''
SOURCE = "class Station:" + "".join(METHOD.format(number=number) for number in range(30))


def calls_of(text: str) -> list[ToolCall]:
    return list(tool_calls(Document("library/station.py", text)))


def test_a_call_names_the_tool_and_gives_every_argument_that_it_requires() -> None:
    calls = calls_of(SOURCE)
    assert calls
    for called in calls:
        function = called.tool["function"]
        assert isinstance(function, dict)
        written = json.loads(called.call)
        assert written["name"] == function["name"]
        assert list(written["arguments"]) == function["parameters"]["required"] == ["city", "unit"]


def test_some_conversations_end_with_the_call_and_some_with_its_result() -> None:
    assert {bool(called.result) for called in calls_of(SOURCE)} == {True, False}


def test_functions_without_words_or_arguments_give_none() -> None:
    assert calls_of(SOURCE.replace('"""Return the weather. More words."""', "pass")) == []
    assert calls_of(SOURCE.replace(", city, unit", "")) == []
    assert calls_of("def broken(:") == []


def test_the_template_gives_the_form_of_training_to_the_byte() -> None:
    jinja2 = pytest.importorskip("jinja2", reason="the template is rendered with Jinja")
    environment = jinja2.Environment()
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    for called in calls_of(SOURCE):
        call = json.loads(called.call)
        messages = [
            {"role": "user", "content": called.question},
            {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
        ]
        if called.result:
            messages += [
                {"role": "tool", "content": called.result},
                {"role": "assistant", "content": f"The answer is {called.result}."},
            ]
        shown = environment.from_string(TEMPLATE).render(tools=[called.tool], messages=messages)
        assert shown == render_tool_call(called) + "\n"
