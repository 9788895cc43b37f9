"""Wire dialects: OpenAI chat completions and Responses, Anthropic Messages, each around the same exchange."""

from miles_lite.session.dialects.base import Dialect, Events, Stamp
from miles_lite.session.dialects.chat import ChatCompletions
from miles_lite.session.dialects.messages import Messages
from miles_lite.session.dialects.responses import Responses

__all__ = ["ChatCompletions", "Dialect", "Events", "Messages", "Responses", "Stamp"]
