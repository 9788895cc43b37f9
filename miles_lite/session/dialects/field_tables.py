"""The fields and tools of each dialect: served, harmless, or refused.

Invariant: a field that changes what the model sees, or what its answer may be, is served or refused. Harmless is what
a service does around a model (storage, caches, billing, tracing), hints that no open model reads, and bounds on what
never happens here.
"""

from __future__ import annotations

from typing import Any

from miles_lite.session.dialects.known_fields import Table, harmless, refused, served
from miles_lite.session.engine.sampling import NUMBERS

SAMPLING = tuple(NUMBERS)
"""Fields that shape the distribution, where a dialect has them all."""

_SERVICE = "nothing here is stored, billed, ranked or routed by it"
_HINT = "a hint that no open model reads"
_GRAMMAR = "constrain the answer with tool_choice or a JSON schema"
_HOSTED = "not shown to the model: nobody here runs it"
_OWN = "its definition is built into other models: give the tool as a function with a schema"


def _clears_thinking_alone(value: Any) -> bool:
    """Edits of earlier thinking: what of it is shown is the template's, and the session's tokens stay."""
    edits = value.get("edits") if isinstance(value, dict) else None
    return isinstance(edits, list) and all(
        isinstance(edit, dict) and str(edit.get("type")).startswith("clear_thinking") for edit in edits
    )


_OPENAI = (
    served("chat_template_kwargs", "options of the chat template"),
    served("metadata", "`agent` or `agent_name` in it name the agent"),
    harmless("store user safety_identifier service_tier moderation", _SERVICE),
    harmless("prompt_cache_key prompt_cache_options prompt_cache_retention", _SERVICE),
    harmless("rid request_id session_id priority extra_key cache_salt data_parallel_rank client_metadata", _SERVICE),
    refused("logit_bias", "the distribution sampled from is the run's"),
    refused("top_logprobs", "logprobs are of the sampled tokens", unless=(0,)),
)
"""Of chat completions and Responses, of servers that speak them, and of Codex."""

CHAT = Table(
    served("messages model stream stream_options.include_usage tools max_tokens max_completion_tokens stop logprobs"),
    served("tool_choice parallel_tool_calls response_format", "see Constraints"),
    served("functions function_call", "tools in the older form, answered in it"),
    served(" ".join(SAMPLING), "gives way to the run's"),
    served("n", "answers to the same request, each a turn of its own"),
    served("stop_at", "`json_object`: nothing is sampled after the reply's first JSON object"),
    served("reasoning_effort reasoning.effort", "the template's `reasoning_effort`"),
    served("enable_thinking thinking.type reasoning.enabled", "the template's `enable_thinking`"),
    *_OPENAI,
    harmless("verbosity", _HINT),
    harmless("thinking.budget_tokens thinking.clear_thinking thinking_budget reasoning.max_tokens", "not enforced"),
    harmless("prediction audio stream_options.include_obfuscation", _SERVICE),
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
    harmless("usage provider preset trace tool_stream incremental_output do_sample", _SERVICE),
    refused("modalities", "answers are text", unless=(["text"],)),
    refused("web_search_options enable_search plugins", "nobody here searches: give the model a tool", unless=(False,)),
    refused("regex ebnf structural_tag guided_json guided_regex guided_choice guided_grammar", _GRAMMAR),
    refused("structured_outputs stop_regex stop_token_ids allowed_token_ids bad_words", _GRAMMAR),
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

RESPONSES = Table(
    served("input instructions model stream tools max_output_tokens stop"),
    served("tool_choice parallel_tool_calls text.format", "see Constraints"),
    served("previous_response_id", "an answer of this session"),
    served("include", "`message.output_text.logprobs`; there is nothing else to include"),
    served(" ".join(SAMPLING), "gives way to the run's"),
    served("reasoning.effort", "the template's `reasoning_effort`"),
    *_OPENAI,
    harmless("text.verbosity reasoning.mode", _HINT),
    harmless("reasoning.summary reasoning.generate_summary", "reasoning is shown as it is"),
    harmless("max_tool_calls", "bounds the tools that OpenAI would run"),
    harmless("truncation", "nothing is left out: a conversation that is too long is refused"),
    harmless("stream_options background_options access_programs", _SERVICE),
    refused("background", "wait for the answer, or stream it", unless=(False,)),
    refused("conversation prompt", "it is not kept here: send the conversation as `input`"),
    refused("context_management", "what is sent is what the model sees"),
    refused("reasoning.context", "what of earlier reasoning is shown is the template's", unless=("auto",)),
    refused("image", "answers are text"),
)

MESSAGES = Table(
    served("messages system model max_tokens stream stop_sequences tools"),
    served("tool_choice output_config.format output_format", "see Constraints"),
    served("temperature top_p top_k seed", "gives way to the run's"),
    served("thinking.type", "enabled and disabled are the template's `enable_thinking`"),
    served("output_config.effort", "the template's `reasoning_effort`"),
    served("chat_template_kwargs", "options of the chat template"),
    served("metadata", "`agent` or `agent_name` in it name the agent"),
    harmless("thinking.budget_tokens", "not enforced"),
    harmless("thinking.display thinking.block_binding", "thinking is shown as it is"),
    harmless("cache_control service_tier inference_geo speed betas user_profile_id workspace_id", _SERVICE),
    harmless("diagnostics billing_policy fallbacks fallback_credit_token", _SERVICE),
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

GOOGLE = Table(
    served("contents systemInstruction tools"),
    served("toolConfig.functionCallingConfig generationConfig.responseMimeType", "see Constraints"),
    served("generationConfig.responseSchema generationConfig.responseJsonSchema", "see Constraints"),
    served("generationConfig.maxOutputTokens generationConfig.stopSequences generationConfig.responseLogprobs"),
    served(
        "generationConfig.temperature generationConfig.topP generationConfig.topK generationConfig.seed "
        "generationConfig.presencePenalty generationConfig.frequencyPenalty",
        "gives way to the run's",
    ),
    served("generationConfig.thinkingConfig", "budget 0: no `enable_thinking`; level: `reasoning_effort`"),
    harmless("safetySettings labels store serviceTier modelArmorConfig model", _SERVICE),
    harmless("toolConfig.retrievalConfig toolConfig.includeServerSideToolInvocations", _HOSTED),
    harmless(
        "generationConfig.mediaResolution generationConfig.audioTimestamp generationConfig.speechConfig "
        "generationConfig.imageConfig generationConfig.audioTranscriptionConfig",
        "about images and sound, which are refused where they stand",
    ),
    harmless("generationConfig.enableEnhancedCivicAnswers", _SERVICE),
    refused("generationConfig.candidateCount", "open a session per sample", unless=(1,)),
    refused("generationConfig.logprobs", "logprobs are of the sampled tokens", unless=(0,)),
    refused("generationConfig.responseModalities", "answers are text", unless=(["TEXT"], ["text"])),
    refused("generationConfig.responseFormat generationConfig.generationOutputConfig", "ask for a responseSchema"),
    refused("generationConfig.routingConfig generationConfig.modelSelectionConfig", "there is one model"),
    refused("cachedContent", "it is not kept here: send the conversation as `contents`"),
    refused("continuationToken automaticContinuation", "an answer is a message of its own", unless=(False,)),
)
"""In camel case; Google's servers also take names with underscores."""

CHAT_TOOLS = Table(
    served("function"),
    refused("custom", "give the tool as a function"),
)
"""By type."""

RESPONSES_TOOLS = Table(
    served("function"),
    served("namespace", "its functions, named `namespace__name`"),
    served("custom", "a function of one text `input`; its grammar is not enforced"),
    harmless("web_search web_search_preview image_generation", _HOSTED),
    refused("file_search code_interpreter mcp", "nobody here runs it: give the model a function"),
    refused("local_shell shell apply_patch computer computer_use_preview", _OWN),
    refused("tool_search programmatic_tool_calling", "give all functions as tools"),
)

MESSAGES_TOOLS = Table(
    served("custom"),
    harmless("web_search web_fetch code_execution advisor", _HOSTED),
    refused("bash text_editor memory computer computer_toolset browser_toolset", _OWN),
    refused("tool_search_tool_bm25 tool_search_tool_regex mcp_toolset", "give all tools with their schemas"),
)

GOOGLE_TOOLS = Table(
    served("functionDeclarations"),
    harmless("googleSearch googleSearchRetrieval urlContext codeExecution googleMaps enterpriseWebSearch", _HOSTED),
    refused(
        "retrieval fileSearch mcpServers parallelAiSearch exaAiSearch", "nobody here runs it: give the model a function"
    ),
    refused("computerUse", _OWN),
)
"""By the field of a tool."""
