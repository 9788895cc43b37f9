"""Wire dialects: OpenAI chat completions and Responses, Anthropic Messages, Google generateContent.

Each is around the same exchange. One more is a module, and a line here.
"""

from miles_lite.session.dialects.base import Dialect, Events, Stamp
from miles_lite.session.dialects.chat import ChatCompletions
from miles_lite.session.dialects.google import Google
from miles_lite.session.dialects.media import Media
from miles_lite.session.dialects.messages import Messages
from miles_lite.session.dialects.responses import Responses

DIALECTS = (ChatCompletions, Responses, Messages, Google)

__all__ = ["DIALECTS", "ChatCompletions", "Dialect", "Events", "Google", "Media", "Messages", "Responses", "Stamp"]
