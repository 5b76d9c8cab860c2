"""Prompts of conversations by transformers' `apply_chat_template` 5.23, and the text of tokens as they come, of fixtures/tiny/base.

A JSON file. The templates are this repository's own, in chat/*.jinja: llama3, mistral, chatml and gemma write the prompt formats of these
models, features, dates and values the rest of the language that templates are written in. `fixture` is the template of fixtures/tiny/base.

templates       name -> text
conversations   name -> messages; the order of keys matters to `tojson`
tools           name -> list of tool definitions
cases           list of
    template, conversation, tools (a name or null), add_generation_prompt
    variables   what else the template sees: the special tokens of the tokenizer, replaced and joined by those of the case; besides these,
                `messages`, `tools` (none without tools), `documents` (none) and `add_generation_prompt` are always defined
    now         the local time that `strftime_now` formats
    expected    the prompt, or
    error       the message that `raise_exception` was called with
    tokens      of the fixture's template: the tokens of the prompt
detokenize      list of
    tokens
    text        what `decode` makes of all of them, special tokens included; invalid UTF-8 becomes U+FFFD
    skipped     the same without special tokens
    pieces      what each token adds to the text, when a character is held back until its last byte is there; one entry more than
                there are tokens, for what is held back at the end
    encoded     whether the tokens are those of `text`

Before a template sees them, transformers removes what is null from messages (not from what is nested in them). The environment is that of
`transformers.utils.chat_template_utils`: blocks are trimmed (trim_blocks, lstrip_blocks), one newline at the end of a template is dropped,
`tojson` is Python's json.dumps without escapes of HTML or of characters beyond ASCII, and an undefined variable prints as nothing.
"""

import codecs
import datetime
import json
from pathlib import Path

import common
import numpy as np
from common import ROOT

BASE = ROOT / "fixtures" / "tiny" / "base"
TEMPLATES = Path(__file__).with_name("chat")
NOW = datetime.datetime(2024, 7, 6, 15, 4, 9)


def says(role, content, **others):
    return {"role": role, "content": content, **others}


def call(name, arguments, identity="Ab3dEf9hI"):
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


QUESTION = says("user", "What is a borrow checker?")
ANSWER = says("assistant", "A part of the compiler.")
WEATHER = {"location": "Zürich", "days": 3, "units": ["°C", "hPa"], "detail": {"wind": True, "rain": None, "limit": 0.5}}
CALLS = [
    says("user", "How is the weather in Zürich?"),
    says("assistant", None, tool_calls=[call("weather", WEATHER)]),
    says("tool", '{"temperature": 21.5, "sky": "clear"}', tool_call_id="Ab3dEf9hI", name="weather"),
]
TWO_CALLS = [call("weather", {"location": "Bern"}), call("clock", {}, "000000001")]
PARTS = [{"type": "text", "text": " Describe this: "}, {"type": "image"}, {"type": "text", "text": "and that."}]
CONVERSATIONS = {
    "question": [QUESTION],
    "system": [says("system", "  Answer in one sentence.\n"), QUESTION],
    "turns": [
        says("system", "Be brief."), QUESTION, ANSWER, says("user", "And a lifetime?\n\nIn short."), says("assistant", " A scope. "),
        says("user", "Thanks"),
    ],
    "answered": [QUESTION, ANSWER],
    "non_ascii": [
        says("system", "Réponds en français 🇫🇷"),
        says("user", "Was heißt „naïve“? 你好，世界 — e\u0301 👩‍👩‍👧 \u202eשלום\u202c\u2028\x7f"),
        says("assistant", "ça\u00a0va"),
    ],
    "empty": [says("user", ""), says("assistant", ""), says("user", " \n\t ")],
    "markup": [says("user", "<b>\"quotes\"</b> & 'more' \\n {{ not.a.variable }} {% if %} <|im_end|>\r\n\ttab")],
    "no_content": [QUESTION, {"role": "assistant", "tool_calls": [call("clock", {})]}],
    "call": CALLS,
    "call_answered": [says("system", "Use tools."), *CALLS, says("assistant", "It is 21.5 °C."), says("user", "And tomorrow?")],
    "two_calls": [
        QUESTION, says("assistant", "Let me look.", tool_calls=TWO_CALLS),
        says("tool", "rain", tool_call_id="Ab3dEf9hI"), says("tool", "12:30", tool_call_id="000000001"),
    ],
    "short_id": [QUESTION, says("assistant", "", tool_calls=[call("clock", {}, "1")])],
    "text_arguments": [QUESTION, says("assistant", "", tool_calls=[call("clock", '{"zone":"CET"}')])],
    "thoughts": [
        QUESTION, says("assistant", "<think>\nEasy.\n</think>\n\nA part."), says("user", "Sure?"), says("assistant", "<think>\nWell…\n\n</think>\n\nYes."),
    ],
    "reasoning": [
        QUESTION, says("assistant", "A part.", reasoning_content="Easy.\n"), says("user", "Sure?"), says("assistant", "Yes.", thinking="Well…"),
    ],
    "parts": [says("user", PARTS)],
    "parts_only_image": [says("user", [{"type": "image"}]), says("assistant", "Nothing.")],
    "two_questions": [QUESTION, says("user", "Hello?")],
    "answer_first": [ANSWER, QUESTION],
    "late_system": [QUESTION, says("system", "Be brief."), ANSWER],
    "developer": [
        says("developer", "Be brief."), QUESTION, says("assistant", "Yes."), says("user", "stop"), says("assistant", "Unseen."),
    ],
    "unknown_role": [QUESTION, says("moderator", "Stop it.")],
}
TOOLS = {
    "one": [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather at a place, \"now\" or later <in days>; größer als nichts.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "location": {"type": "string", "description": "A city\nor a village"},
                        "days": {"type": "integer", "minimum": 0, "maximum": 14, "default": 1},
                        "units": {"type": "array", "items": {"type": "string", "enum": ["°C", "hPa"]}},
                        "limit": {"type": "number", "default": 0.25, "examples": [1e-7, 1e22, 1.0, -0.0, 123456789012345680.0]},
                        "strict": {"type": "boolean", "default": False, "examples": [True, None]},
                    },
                    "required": ["location"],
                },
                "return": {"type": "string"},
            },
        }
    ],
    "empty": [],
}
CLOCK = {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}}
TOOLS["two"] = [*TOOLS["one"], {"type": "function", "function": CLOCK}]

LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
MISTRAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = {"eos_token": "<|im_end|>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>"}
TEXT = ["question", "system", "turns", "answered", "non_ascii", "empty", "markup", "two_questions", "answer_first", "late_system", "unknown_role"]
WITH_CALLS = ["call", "call_answered", "two_calls", "short_id", "text_arguments"]
# template, variables, name of the tools, conversations
PLAN = [
    ("llama3", LLAMA3, None, [*TEXT, *WITH_CALLS, "no_content", "developer"]),
    ("llama3", {**LLAMA3, "date_string": "26 Jul 2024"}, "one", ["question", "system", "call", "call_answered", "answer_first"]),
    ("llama3", {**LLAMA3, "tools_place": "system"}, "two", ["question", "system", "call_answered"]),
    ("llama3", LLAMA3, "empty", ["question"]),
    ("mistral", MISTRAL, None, [*TEXT, *WITH_CALLS, "no_content", "developer"]),
    ("mistral", MISTRAL, "one", ["question", "system", "call", "call_answered"]),
    ("mistral", MISTRAL, "two", ["question", "turns", "two_calls"]),
    ("chatml", CHATML, None, [*TEXT, *WITH_CALLS, "no_content", "thoughts", "reasoning", "parts", "developer"]),
    ("chatml", CHATML, "one", ["question", "system", "call", "call_answered"]),
    ("chatml", {**CHATML, "enable_thinking": False}, "two", ["question", "two_calls"]),
    ("chatml", {**CHATML, "enable_thinking": True}, "empty", ["thoughts"]),
    ("gemma", GEMMA, None, [*TEXT, "parts", "parts_only_image", "developer", "thoughts"]),
    ("features", CHATML, None, [*TEXT, "parts", "parts_only_image", "developer"]),
    ("features", CHATML, "two", ["question", "turns"]),
    ("dates", {}, None, ["question"]),
    ("values", {}, None, ["question", "parts"]),
    ("fixture", {}, None, [*TEXT, "developer"]),
]
TEXTS = [
    "plain words, and a\nnewline\ttab",
    "crème brûlée, naïve, Ærøskøbing",
    "你好，世界。日本語のテキスト",
    "🎉 party 👩‍👩‍👧‍👦 family 🇨🇭 flag 👍🏽",
    "e\u0301 n\u0303 \u1100\u1161\u11a8 combining; Zalgo: h\u0335\u0328e\u0337\u0321",
    "עברית and العربية \u202eright to left\u202c",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010ffff \ufffd replacement \ufeff mark \x00\x1f\x7f",
    "<|im_start|>user\nWhat is 2 → 3?<|im_end|>\n<tool_call>\n{\"é\": 1}\n</tool_call><|im_end|>\n",
    " leading  double   triple    spaces ",
    "",
]


def environment(now):
    """Makes `strftime_now` of transformers tell a fixed time."""
    from transformers.utils import chat_template_utils

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return now

    chat_template_utils.datetime = Clock


def prompts(tokenizer, templates):
    import jinja2

    cases = []
    for template, variables, tools, names in PLAN:
        for name in names:
            for add_generation_prompt in [False, True]:
                case = {"template": template, "conversation": name, "tools": tools, "add_generation_prompt": add_generation_prompt}
                case |= {"variables": {**tokenizer.special_tokens_map, **variables}, "now": NOW.isoformat()}
                given = {"chat_template": templates[template], "tools": TOOLS.get(tools), "add_generation_prompt": add_generation_prompt}
                messages = json.loads(json.dumps(CONVERSATIONS[name]))
                try:
                    case["expected"] = tokenizer.apply_chat_template(messages, tokenize=False, **given, **variables)
                except jinja2.TemplateError as error:
                    # Not one of its subclasses, which tell of faults of a template.
                    assert type(error) is jinja2.TemplateError, (case, error)
                    case["error"] = error.message
                if template == "fixture":
                    case["tokens"] = tokenizer.apply_chat_template(messages, **given)["input_ids"]
                cases.append(case)
    return cases


def pieces(tokenizer, tokens, skip_special):
    """What each token adds, by Python's incremental decoder of UTF-8, and what it holds back at the end."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    # Of tokenizer.json, which are more than the named ones of tokenizer_config.json.
    special = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
    out = []
    for token in tokens:
        if skip_special and token in special:
            out.append("")
            continue
        out.append(decoder.decode(bytes(byte_of[char] for char in tokenizer.convert_ids_to_tokens(token))))
    return [*out, decoder.decode(b"", final=True)]


def detokenize(tokenizer):
    rng = np.random.default_rng(29)
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    # Single bytes are among the first tokens, so that these are full of sequences that are no UTF-8.
    noise = [rng.integers(0, 300, 60).tolist(), rng.integers(0, len(tokenizer), 60).tolist(), [t for text in encoded for t in text[-1:]]]
    # Texts that end within a character.
    cut = [next(t[:n] for n in range(len(t), 0, -1) if tokenizer.decode(t[:n]).endswith("\ufffd")) for t in [encoded[2], encoded[3]]]
    out = []
    for i, tokens in enumerate([*encoded, *noise, *cut]):
        entry = {"tokens": tokens, "text": tokenizer.decode(tokens), "skipped": tokenizer.decode(tokens, skip_special_tokens=True)}
        entry["pieces"] = pieces(tokenizer, tokens, False)
        assert "".join(entry["pieces"]) == entry["text"], (entry, "".join(entry["pieces"]))
        assert "".join(pieces(tokenizer, tokens, True)) == entry["skipped"]
        entry["encoded"] = i < len(encoded)
        assert not entry["encoded"] or entry["text"] == TEXTS[i]
        out.append(entry)
    return out


def main():
    from transformers import AutoTokenizer

    environment(NOW)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    templates = {path.stem: path.read_text() for path in sorted(TEMPLATES.glob("*.jinja"))}
    templates["fixture"] = tokenizer.chat_template
    cases = prompts(tokenizer, templates)
    errors = sum("error" in case for case in cases)
    print(f"{len(cases)} prompts, {errors} of them refused")
    return {
        "templates": templates, "conversations": CONVERSATIONS, "tools": TOOLS, "cases": cases, "detokenize": detokenize(tokenizer),
    }


if __name__ == "__main__":
    common.run_json(main, "squish-model", "chat", ["jinja2", "transformers"])
