"""A stand-in tokenizer for a chat template that comes without one.

Invariant: bytes are the ordinary tokens, and control tokens are what the template itself prints that looks like one, by
the shapes that are in use, or `widely`: by any brackets or doubled signs around a word.
"""

from __future__ import annotations

import re
from contextlib import suppress

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from miles_lite.tito.chat_messages import PLAIN, Form, normalise
from miles_lite.tito.control_tokens import literals
from miles_lite.tito.render import JinjaRenderer, RenderError, syntax

VARIABLES = {"bos_token": "<|stand_in_bos|>", "eos_token": "<|stand_in_eos|>", "pad_token": "<|stand_in_pad|>"}
_LOOKS_CONTROL = re.compile(
    r"<[|｜][^<>\s|｜]{1,40}[|｜]>"  # <|im_start|>, <｜User｜>
    r"|<\|?[A-Za-z_]{1,30}\|>|<\|[A-Za-z_]{1,30}>"  # <turn|>, <|turn>
    r"|</?(?:think|tool_call|tool_response|tool_calls|bos|eos|s|[a-z]+:tool_call)>"
    r"|<(?:start|end)_of_(?:turn|utterance|image|text)>|<end_of_utterance>"
    r"|\]~!?b[\[\]]|\[e~\[|\[gMASK\]|<sop>"
    r"|\[/?[A-Z_]{3,20}\]"  # [INST], [/INST]
)
_LOOKS_BRACKETED = re.compile(
    r"<[^<>\s\"'{}]{1,60}>|\[{1,2}[^\[\]\s\"'{},]{1,60}\]{1,2}|\{[^{}\s\"':,]{1,60}\}"
    r"|[⟨⟪⟦《【「『〈«‹◁][^⟨⟪⟦《【「『〈«‹◁⟩⟫⟧》】」』〉»›▷\s]{1,60}[⟩⟫⟧》】」』〉»›▷]"
    r"|([@#%~$:=*|!+^&])\1+[\w/.:-]{1,40}\1{2,}"
)
_CHAT = [("system", "Be0"), ("user", "Ask0"), ("assistant", "Said0"), ("user", "Ask1"), ("assistant", "Said1")]
"""Its print shows control tokens that a template puts together, such as of a role between brackets."""


def stand_in_tokenizer(template: str, *, widely: bool = False) -> Tokenizer:
    """A byte-level tokenizer that knows the template's control tokens and `VARIABLES`. Raises RenderError."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    markup = re.compile(r"</?(think|tool)")
    tokens = control_tokens(template, widely=widely)
    tokenizer.add_tokens([AddedToken(each, special=not markup.match(each), normalized=False) for each in tokens])
    return tokenizer


def control_tokens(template: str, *, widely: bool = False) -> list[str]:
    """What the template's own text, and `VARIABLES`, hold that looks like a control token. Raises RenderError."""
    texts = [*literals(syntax(template)), *VARIABLES.values()]
    looks = [_LOOKS_CONTROL]
    if widely:
        texts += _printed(template)
        looks.append(_LOOKS_BRACKETED)
    return sorted({match[0] for text in texts for look in looks for match in look.finditer(text)})


def _printed(template: str) -> list[str]:
    """A plain chat, with and without system message; what the template refuses is left out."""
    renderer, found = JinjaRenderer(template, variables=VARIABLES), []
    for form in (PLAIN, Form(content="parts")):
        chat = [normalise({"role": role, "content": content}, form) for role, content in _CHAT]
        for messages in (chat, chat[1:]):
            with suppress(RenderError):
                found.append(renderer.render(messages, tools=None, open_turn=True, options={}))
    return found
