"""Plug-ins as people wrote them for miles: in its signatures, importing its modules. Tests run this file unmodified."""

from miles.rollout.filter_hub.base_types import DynamicFilterOutput
from miles.rollout.sglang_rollout import GenerateState
from miles.utils.http_utils import post
from miles.utils.types import Sample


async def generate(args, sample: Sample, sampling_params) -> Sample:
    state = GenerateState(args)
    url = f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"
    prompt_ids = state.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
    payload = {"input_ids": prompt_ids, "sampling_params": sampling_params, "return_logprob": True}
    output = await post(url, payload)
    pairs = output["meta_info"]["output_token_logprobs"]
    new_ids = [pair[1] for pair in pairs]
    sample.tokens = prompt_ids + new_ids
    sample.response_length = len(new_ids)
    sample.rollout_log_probs = [pair[0] for pair in pairs]
    sample.loss_mask = [1] * len(new_ids)
    sample.response = state.tokenizer.decode(new_ids)
    finish = output["meta_info"]["finish_reason"]["type"]
    sample.status = Sample.Status.TRUNCATED if finish == "length" else Sample.Status.COMPLETED
    sample.metadata["turns"] = 1
    return sample


async def reward_func(args, sample, **kwargs):
    return {"score": float(len(sample.response) % 7), "acc": float(sample.label == "zz")}


def keep_some(args, samples: list[Sample], **kwargs):
    rewards = [sample.get_reward_value(args) for sample in samples]
    lengths = [sample.response_length for sample in samples]
    assert all(len(sample.tokens) > length > 0 for sample, length in zip(samples, lengths, strict=True))
    return DynamicFilterOutput(keep=max(rewards) >= 0, reason="negative")


def post_process(args, samples):
    raw = [sample.get_reward_value(args) for sample in samples]
    mean = sum(raw) / len(raw)
    return raw, [reward - mean for reward in raw]


def truncated_importance(
    args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, total_lengths, response_lengths, **kwargs
):
    import torch

    ratio = torch.exp(torch.cat(train_log_probs) - torch.cat(rollout_log_probs))
    masks = [mask * (length > 1) for mask, length in zip(loss_masks, response_lengths, strict=True)]
    return pg_loss * ratio.clamp(max=args.tis_clip), masks, {"ratio": ratio}


async def group_reward(args, samples, **kwargs):
    longest = max(len(sample.response) for sample in samples)
    return [float(len(sample.response) == longest) for sample in samples]
