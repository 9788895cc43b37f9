"""What a request for chat completions holds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from miles_lite.process.json_types import Json, JsonObject
from miles_lite.session.dialects.known_fields import (
    GRAMMAR,
    HINT,
    SEE_CONSTRAINTS,
    SERVICE,
    THE_RUNS,
    Group,
    Table,
    harmless,
    kinds,
    refused,
    served,
    why,
)
from miles_lite.session.dialects.typed_json import Count, NotNegative, Struct

MAX_CHOICES = 128

Number = Annotated[float | None, why(THE_RUNS)]
Temperature = Annotated[NotNegative | None, why(THE_RUNS)]
Flag = bool | None
Text = str | None


class Named(Struct):
    name: str


class CalledFunction(Named):
    arguments: str | JsonObject | None = None


class Call(Struct):
    function: CalledFunction
    id: Text = None


class ChatMessage(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[str | JsonObject] | None = None
    reasoning_content: Text = None
    tool_call_id: Text = None
    name: Text = None
    tool_calls: list[Call] | None = None


class Function(Named):
    description: Text = None
    parameters: JsonObject | None = None


class Tool(Struct):
    function: Function
    type: Text = "function"


class ToolChoice(Struct):
    type: Literal["function"]
    function: Named


class NamedSchema(Struct):
    schema: JsonObject
    name: Text = None


class Format(Struct):
    """What an answer must be; the dialects differ in where its schema stands."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema: JsonObject | None = None
    json_schema: NamedSchema | None = None


class StreamOptions(Group):
    include_usage: Flag = None


class Thinking(Group):
    type: Annotated[Text, why("the template's `enable_thinking`")] = None


class ChatReasoning(Group):
    effort: Annotated[Text, why("the template's `reasoning_effort`")] = None
    enabled: Annotated[Flag, why("the template's `enable_thinking`")] = None


class Sampling(Struct):
    """Fields that shape the distribution, where a dialect has them all."""

    temperature: Temperature = None
    top_p: Number = None
    top_k: Number = None
    min_p: Number = None
    frequency_penalty: Number = None
    presence_penalty: Number = None
    repetition_penalty: Number = None
    seed: Number = None


class OpenAIBody(Sampling):
    """Of chat completions and Responses."""

    model: Text = None
    stream: Flag = None
    stop: Json = None
    parallel_tool_calls: Annotated[Flag, why(SEE_CONSTRAINTS)] = None
    chat_template_kwargs: Annotated[JsonObject | None, why("options of the chat template")] = None
    metadata: Annotated[JsonObject | None, why("`agent` or `agent_name` in it name the agent")] = None


class ChatBody(OpenAIBody, kw_only=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: Flag = None
    tool_choice: Annotated[
        Literal["auto", "none", "required"] | ToolChoice | None,
        why(SEE_CONSTRAINTS),
    ] = None
    response_format: Annotated[Format | None, why(SEE_CONSTRAINTS)] = None
    functions: Annotated[list[Function] | None, why("tools in the older form, answered in it")] = None
    function_call: Annotated[
        Literal["auto", "none"] | Named | None,
        why("tools in the older form, answered in it"),
    ] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None, why("answers to the same request, each a turn of its own")
    ] = None
    stop_at: Annotated[
        Literal["json_object"] | None, why("`json_object`: nothing is sampled after the reply's first JSON object")
    ] = None
    reasoning_effort: Annotated[Text, why("the template's `reasoning_effort`")] = None
    reasoning: ChatReasoning | None = None
    enable_thinking: Annotated[Flag, why("the template's `enable_thinking`")] = None
    thinking: Thinking | None = None


OPENAI = (
    harmless("store user safety_identifier service_tier moderation", SERVICE),
    harmless("prompt_cache_key prompt_cache_options prompt_cache_retention", SERVICE),
    harmless("rid request_id session_id priority extra_key cache_salt data_parallel_rank client_metadata", SERVICE),
    refused("logit_bias", "the distribution sampled from is the run's"),
    refused("top_logprobs", "logprobs are of the sampled tokens", unless=(0,)),
)
"""Of chat completions and Responses, of servers that speak them, and of Codex."""

FIELDS = Table(
    served(ChatBody),
    *OPENAI,
    harmless("verbosity", HINT),
    harmless("thinking.budget_tokens thinking.clear_thinking thinking_budget reasoning.max_tokens", "not enforced"),
    harmless("prediction audio stream_options.include_obfuscation", SERVICE),
    harmless(
        "return_hidden_states return_routed_experts routed_experts_start_len return_cached_tokens_details "
        "return_spec_tokens_details return_prompt_token_ids return_token_ids return_meta_info "
        "return_input_ids_in_sglext return_output_ids_in_sglext return_sampling_mask sampling_logprobs_mode "
        "return_flat_raw_output_top_logprobs prompt_logprobs no_stop_trim skip_special_tokens "
        "return_flat_raw_top_logprobs_b64 spaces_between_special_tokens include_stop_str_in_output "
        "stream_reasoning reasoning.exclude include_reasoning",
        "answers are chat messages: tokens, logprobs and experts are in the session's samples",
    ),
    harmless(
        "max_dynamic_patch min_dynamic_patch use_audio_in_video images_config video_config mm_processor_kwargs "
        "vl_high_resolution_images",
        "about images, which are refused where they stand",
    ),
    harmless("usage provider preset trace tool_stream incremental_output do_sample", SERVICE),
    refused("modalities", "answers are text", unless=(["text"],)),
    refused("web_search_options enable_search plugins", "nobody here searches: give the model a tool", unless=(False,)),
    refused("regex ebnf structural_tag guided_json guided_regex guided_choice guided_grammar", GRAMMAR),
    refused("structured_outputs stop_regex stop_token_ids allowed_token_ids bad_words", GRAMMAR),
    refused("min_tokens", "a reply ends where the model ends it", unless=(0,)),
    refused("ignore_eos", "a reply ends where the model ends it", unless=(False,)),
    refused("continue_final_message", "an answer is a message of its own", unless=(False,)),
    refused("add_generation_prompt separate_reasoning add_special_tokens", "as it is, by default", unless=(True,)),
    refused("input_ids prompt_embeds documents chat_template task", "the prompt is what the template prints"),
    refused("transforms", "what is sent is what the model sees"),
    refused("models route", "there is one model"),
    refused("lora_path custom_logit_processor custom_params watermark session_params", "engines serve the run's model"),
    refused("use_beam_search echo", "answers are sampled", unless=(False,)),
    refused("best_of", "answers are sampled", unless=(1,)),
)

TOOLS = Table(
    kinds("function"),
    refused("custom", "give the tool as a function"),
)
"""By type."""
