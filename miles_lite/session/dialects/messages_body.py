"""What a request for Anthropic Messages holds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from miles_lite.process.json_types import Json, JsonObject
from miles_lite.session.dialects.chat_body import Flag, Format, Number, Temperature, Text
from miles_lite.session.dialects.known_fields import (
    HOSTED,
    OWN,
    SEE_CONSTRAINTS,
    SERVICE,
    Group,
    Table,
    harmless,
    kinds,
    refused,
    served,
    why,
)
from miles_lite.session.dialects.typed_json import Count, NotEmpty, Struct


class TextBlock(Struct, tag_field="type", tag="text"):
    text: str


class Thought(Struct, tag_field="type", tag="thinking"):
    thinking: str


class RedactedThought(Struct, tag_field="type", tag="redacted_thinking"):
    pass


class ToolUse(Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: JsonObject


class Source(Struct):
    media_type: Json = None


class Image(Struct, tag_field="type", tag="image"):
    source: Source | None = None


class Document(Struct, tag_field="type", tag="document"):
    source: Source | None = None


class ToolResult(Struct, tag_field="type", tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock | Image | Document] | None = None


class UserMessage(Struct, tag_field="role", tag="user"):
    content: str | list[TextBlock | ToolResult]


class SystemMessage(Struct, tag_field="role", tag="system"):
    content: str | list[TextBlock | ToolResult]


class AssistantMessage(Struct, tag_field="role", tag="assistant"):
    content: str | list[TextBlock | Thought | RedactedThought | ToolUse]


class MessagesTool(Struct):
    type: Text = None
    name: Text = None
    description: Text = None
    input_schema: JsonObject | None = None


class MessagesChoice(Struct):
    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: Text = None
    disable_parallel_tool_use: Flag = None


class MessagesThinking(Group):
    type: Annotated[Text, why("enabled and disabled are the template's `enable_thinking`")] = None


class OutputConfig(Group):
    format: Annotated[Format | None, why(SEE_CONSTRAINTS)] = None
    effort: Annotated[Text, why("the template's `reasoning_effort`")] = None


class MessagesBody(Struct):
    messages: Annotated[list[UserMessage | SystemMessage | AssistantMessage], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    model: Text = None
    max_tokens: Count | None = None
    stream: Flag = None
    stop_sequences: list[NotEmpty] | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: Annotated[MessagesChoice | None, why(SEE_CONSTRAINTS)] = None
    output_config: OutputConfig | None = None
    output_format: Annotated[Format | None, why(SEE_CONSTRAINTS)] = None
    temperature: Temperature = None
    top_p: Number = None
    top_k: Number = None
    seed: Number = None
    thinking: MessagesThinking | None = None
    chat_template_kwargs: Annotated[JsonObject | None, why("options of the chat template")] = None
    metadata: Annotated[JsonObject | None, why("`agent` or `agent_name` in it name the agent")] = None


def _clears_thinking_alone(value: Json) -> bool:
    """Edits of earlier thinking: what of it is shown is the template's, and the session's tokens stay."""
    edits = value.get("edits") if isinstance(value, dict) else None
    return isinstance(edits, list) and all(
        isinstance(edit, dict) and str(edit.get("type")).startswith("clear_thinking") for edit in edits
    )


FIELDS = Table(
    served(MessagesBody),
    harmless("thinking.budget_tokens", "not enforced"),
    harmless("thinking.display thinking.block_binding", "thinking is shown as it is"),
    harmless("cache_control service_tier inference_geo speed betas user_profile_id workspace_id", SERVICE),
    harmless("diagnostics billing_policy fallbacks fallback_credit_token", SERVICE),
    refused(
        "thread",
        "send the whole conversation as `messages`",
        code="thread_unsupported_request",
    ),
    refused("context_management", "what is sent is what the model sees", unless=_clears_thinking_alone),
    refused("compaction", "what is sent is what the model sees"),
    refused("output_config.task_budget", "no open model reads it"),
    refused("container mcp_servers", "nobody here runs it: give the model tools"),
)

TOOLS = Table(
    kinds("custom"),
    harmless("web_search web_fetch code_execution advisor", HOSTED),
    refused("bash text_editor memory computer computer_toolset browser_toolset", OWN),
    refused("tool_search_tool_bm25 tool_search_tool_regex mcp_toolset", "give all tools with their schemas"),
)
"""By type."""
