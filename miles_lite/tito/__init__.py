"""Token-in-token-out: chat messages to token ids by a model's own template, and replies back. Pure but for loading."""

from miles_lite.tito.chat_messages import History, Message, Tools, normalise
from miles_lite.tito.from_folder import tito_of
from miles_lite.tito.parse import Reply, ReplyParser, ReplyStream, ToolCall
from miles_lite.tito.render import RenderError
from miles_lite.tito.suffix import SuffixError
from miles_lite.tito.surface import AppendSurface, Verdict
from miles_lite.tito.tito import Suffix, Tito

__all__ = [
    "AppendSurface",
    "History",
    "Message",
    "RenderError",
    "Reply",
    "ReplyParser",
    "ReplyStream",
    "Suffix",
    "SuffixError",
    "Tito",
    "ToolCall",
    "Tools",
    "Verdict",
    "normalise",
    "tito_of",
]
