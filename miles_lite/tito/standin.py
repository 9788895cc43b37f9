"""A stand-in tokenizer for a chat template that comes without one.

Invariant: bytes are the ordinary tokens, and control tokens are what the template itself prints that looks like one.
"""

from __future__ import annotations

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from miles_lite.tito.guard import literals
from miles_lite.tito.render import environment

VARIABLES = {"bos_token": "<|stand_in_bos|>", "eos_token": "<|stand_in_eos|>", "pad_token": "<|stand_in_pad|>"}
_LOOKS_CONTROL = re.compile(
    r"<[|｜][^<>\s|｜]{1,40}[|｜]>"  # <|im_start|>, <｜User｜>
    r"|<\|?[A-Za-z_]{1,30}\|>|<\|[A-Za-z_]{1,30}>"  # <turn|>, <|turn>
    r"|</?(?:think|tool_call|tool_response|tool_calls|bos|eos|s|[a-z]+:tool_call)>"
    r"|<(?:start|end)_of_(?:turn|utterance|image|text)>|<end_of_utterance>"
    r"|\]~!?b[\[\]]|\[e~\[|\[gMASK\]|<sop>"
    r"|\[/?[A-Z_]{3,20}\]"  # [INST], [/INST]
)


def stand_in_tokenizer(template: str) -> Tokenizer:
    """A byte-level tokenizer that knows the template's control tokens and `VARIABLES`. Raises RenderError."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    markup = re.compile(r"</?(think|tool)")
    tokens = control_tokens(template)
    tokenizer.add_tokens([AddedToken(each, special=not markup.match(each), normalized=False) for each in tokens])
    return tokenizer


def control_tokens(template: str) -> list[str]:
    """What the template's own text, and `VARIABLES`, hold that looks like a control token. Raises RenderError."""
    texts = [*literals(environment().parse(template)), *VARIABLES.values()]
    return sorted({match[0] for text in texts for match in _LOOKS_CONTROL.finditer(text)})
