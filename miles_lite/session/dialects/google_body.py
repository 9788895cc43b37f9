"""What a request for Google's generateContent holds, in camel case; its servers also take names with underscores."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from miles_lite.process.json_types import JsonObject
from miles_lite.session.dialects.chat_body import Flag, Number, Temperature, Text
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


class FunctionCall(Struct, rename="camel"):
    name: str
    id: Text = None
    args: JsonObject | None = None


class FunctionResponse(Struct, rename="camel"):
    name: str
    id: Text = None
    response: JsonObject | None = None
    parts: list[Part] | Part | None = None


class Part(Struct, rename="camel"):
    text: Text = None
    thought: Flag = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None


class Content(Struct, rename="camel"):
    role: Literal["user", "model", "function", ""] | None = None
    parts: list[Part] | Part | None = None


class Declaration(Struct, rename="camel"):
    name: str
    description: Text = None
    parameters: JsonObject | None = None
    parameters_json_schema: JsonObject | None = None


class GoogleTool(Struct, rename="camel"):
    function_declarations: list[Declaration] | None = None


class CallingConfig(Struct, rename="camel"):
    mode: Literal["AUTO", "ANY", "VALIDATED", "NONE", "MODE_UNSPECIFIED", ""] | None = None
    allowed_function_names: list[str] | None = None


class ToolConfig(Group, rename="camel"):
    function_calling_config: Annotated[CallingConfig | None, why(SEE_CONSTRAINTS)] = None


class ThinkingConfig(Struct, rename="camel"):
    include_thoughts: Flag = None
    thinking_budget: int | None = None
    thinking_level: Text = None


class GenerationConfig(Group, rename="camel"):
    response_mime_type: Annotated[
        Literal["text/plain", "application/json", ""] | None,
        why(SEE_CONSTRAINTS),
    ] = None
    response_schema: Annotated[JsonObject | None, why(SEE_CONSTRAINTS)] = None
    response_json_schema: Annotated[JsonObject | None, why(SEE_CONSTRAINTS)] = None
    max_output_tokens: Count | None = None
    stop_sequences: list[NotEmpty] | None = None
    response_logprobs: Flag = None
    temperature: Temperature = None
    top_p: Number = None
    top_k: Number = None
    seed: Number = None
    presence_penalty: Number = None
    frequency_penalty: Number = None
    thinking_config: Annotated[
        ThinkingConfig | None, why("budget 0: no `enable_thinking`; level: `reasoning_effort`")
    ] = None


class GoogleBody(Struct, rename="camel"):
    contents: Annotated[list[Content], Meta(min_length=1)]
    system_instruction: str | Content | None = None
    tools: list[GoogleTool] | None = None
    tool_config: ToolConfig | None = None
    generation_config: GenerationConfig | None = None


FIELDS = Table(
    served(GoogleBody),
    harmless("safetySettings labels store serviceTier modelArmorConfig model", SERVICE),
    harmless("toolConfig.retrievalConfig toolConfig.includeServerSideToolInvocations", HOSTED),
    harmless(
        "generationConfig.mediaResolution generationConfig.audioTimestamp generationConfig.speechConfig "
        "generationConfig.imageConfig generationConfig.audioTranscriptionConfig",
        "about images and sound, which are refused where they stand",
    ),
    harmless("generationConfig.enableEnhancedCivicAnswers", SERVICE),
    refused("generationConfig.candidateCount", "open a session per sample", unless=(1,)),
    refused("generationConfig.logprobs", "logprobs are of the sampled tokens", unless=(0,)),
    refused("generationConfig.responseModalities", "answers are text", unless=(["TEXT"], ["text"])),
    refused("generationConfig.responseFormat generationConfig.generationOutputConfig", "ask for a responseSchema"),
    refused("generationConfig.routingConfig generationConfig.modelSelectionConfig", "there is one model"),
    refused("cachedContent", "it is not kept here: send the conversation as `contents`"),
    refused("continuationToken automaticContinuation", "an answer is a message of its own", unless=(False,)),
)

TOOLS = Table(
    kinds("functionDeclarations"),
    harmless("googleSearch googleSearchRetrieval urlContext codeExecution googleMaps enterpriseWebSearch", HOSTED),
    refused(
        "retrieval fileSearch mcpServers parallelAiSearch exaAiSearch", "nobody here runs it: give the model a function"
    ),
    refused("computerUse", OWN),
)
"""By the field of a tool."""
