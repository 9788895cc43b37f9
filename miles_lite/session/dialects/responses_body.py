"""What a request for OpenAI Responses holds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from miles_lite.process.json_types import Json, JsonObject
from miles_lite.session.dialects.chat_body import OPENAI, Format, OpenAIBody, Text
from miles_lite.session.dialects.known_fields import (
    HINT,
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
from miles_lite.session.dialects.typed_json import Count, Struct

TextKind = Literal["input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal"]


class Part(Struct):
    type: TextKind
    text: Text = None
    refusal: Text = None


class ResultPart(Struct):
    type: TextKind | Literal["input_image", "input_file", "input_audio"]
    text: Text = None
    refusal: Text = None
    image_url: Json = None
    file_data: Json = None


class MessageItem(Struct, tag_field="type", tag="message"):
    role: Literal["user", "system", "developer", "assistant"]
    content: str | list[Part] | None = None


class ReasoningItem(Struct, tag_field="type", tag="reasoning"):
    content: str | list[Part] | None = None


class FunctionCallItem(Struct, tag_field="type", tag="function_call"):
    name: str
    arguments: str
    call_id: str
    namespace: Text = None


class CustomCallItem(Struct, tag_field="type", tag="custom_tool_call"):
    name: str
    input: str
    call_id: str
    namespace: Text = None


class FunctionResult(Struct, tag_field="type", tag="function_call_output"):
    call_id: str
    output: str | list[ResultPart] | None = None


class CustomResult(Struct, tag_field="type", tag="custom_tool_call_output"):
    call_id: str
    output: str | list[ResultPart] | None = None


Result = FunctionResult | CustomResult
Said = ReasoningItem | FunctionCallItem | CustomCallItem
Item = MessageItem | Said | Result


class ToolFormat(Struct):
    type: Text = None
    syntax: Text = None
    definition: Text = None


class ResponsesTool(Struct):
    type: str
    name: Text = None
    description: Text = None
    parameters: JsonObject | None = None
    format: ToolFormat | None = None
    tools: list[ResponsesTool] | None = None


class ResponsesChoice(Struct):
    type: Literal["function", "custom"]
    name: str
    namespace: Text = None


class TextOptions(Group):
    format: Annotated[Format | None, why(SEE_CONSTRAINTS)] = None


class ReasoningOptions(Group):
    effort: Annotated[Text, why("the template's `reasoning_effort`")] = None


class ResponsesBody(OpenAIBody, kw_only=True):
    input: str | Annotated[list[Item], Meta(min_length=1)]
    instructions: Text = None
    tools: list[ResponsesTool] | None = None
    max_output_tokens: Count | None = None
    tool_choice: Annotated[
        Literal["auto", "none", "required"] | ResponsesChoice | None,
        why(SEE_CONSTRAINTS),
    ] = None
    text: TextOptions | None = None
    previous_response_id: Annotated[Text, why("an answer of this session")] = None
    include: Annotated[list[str] | None, why("`message.output_text.logprobs`; there is nothing else to include")] = None
    reasoning: ReasoningOptions | None = None


FIELDS = Table(
    served(ResponsesBody),
    *OPENAI,
    harmless("text.verbosity reasoning.mode", HINT),
    harmless("reasoning.summary reasoning.generate_summary", "reasoning is shown as it is"),
    harmless("max_tool_calls", "bounds the tools that OpenAI would run"),
    harmless("truncation", "nothing is left out: a conversation that is too long is refused"),
    harmless("stream_options background_options access_programs", SERVICE),
    refused("background", "wait for the answer, or stream it", unless=(False,)),
    refused("conversation prompt", "it is not kept here: send the conversation as `input`"),
    refused("context_management", "what is sent is what the model sees"),
    refused("reasoning.context", "what of earlier reasoning is shown is the template's", unless=("auto",)),
    refused("image", "answers are text"),
)

TOOLS = Table(
    kinds("function"),
    kinds("namespace", "its functions, named `namespace__name`"),
    kinds("custom", "a function of one text `input`; its grammar is not enforced"),
    harmless("web_search web_search_preview image_generation", HOSTED),
    refused("file_search code_interpreter mcp", "nobody here runs it: give the model a function"),
    refused("local_shell shell apply_patch computer computer_use_preview", OWN),
    refused("tool_search programmatic_tool_calling", "give all functions as tools"),
)
"""By type."""
