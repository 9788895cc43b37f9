"""Every option of a run: typed, frozen groups whose names and defaults are those of the launchers this field uses.

Invariant: a `Config` that `parse` gives is consistent: each value within its option's bounds (`flags.take_group`), and
no contradictions between them (`Config.check`), before anything is started.
Rooms receive the groups they need, never an argparse Namespace.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from miles_lite.config.flags import Leftovers, Parser, absolute, add_group, option, sort_leftovers, take_group
from miles_lite.config.redaction import redacted, write_private
from miles_lite.config.rules import contradictions, refuse_broken
from miles_lite.errors import writing


@dataclass(frozen=True, kw_only=True)
class Topology:
    """topology: how many trainers and engines, and where."""

    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", help="what a slot is; auto: cuda where there is a GPU", aka=("--sglang-device",)
    )
    actor_num_nodes: int = option(1, help="nodes that train", least=1)
    actor_num_gpus_per_node: int = option(1, help="train ranks per node (on CPU: processes)", least=1)
    rollout_num_gpus: int | None = option(None, help="slots for engines; with --colocate the trainers' slots", least=1)
    rollout_num_gpus_per_engine: int = option(
        1, help="slots per engine", least=1, aka=("--sglang-tp-size", "--sglang-tensor-parallel-size", "--sglang-tp")
    )
    num_gpus_per_node: int = option(8, help="GPUs a node has", least=1)
    rollout_external_engine_addrs: tuple[str, ...] = option(
        (), help="host:port of SGLang servers that run already, instead of starting any"
    )
    colocate: bool = option(False, help="engines and trainers share slots")
    bind_host: str = option("127.0.0.1", help="interface every server binds to")
    advertise_host: str | None = option(None, help="host name others are told (default: --bind-host)")

    @property
    def world_size(self) -> int:
        """Ranks of the trainer."""
        return self.actor_num_nodes * self.actor_num_gpus_per_node

    @property
    def model_parallel_size(self) -> int:
        """Ranks that a batch is replicated to, to work on it together: 1, as every rank computes whole layers."""
        return 1

    @property
    def dp_size(self) -> int:
        """Batches that a step is split into; ranks with equal `dp_rank` train the same one."""
        return self.world_size // self.model_parallel_size

    def dp_rank(self, rank: int) -> int:
        """Which of the `dp_size` batches a rank trains."""
        return rank // self.model_parallel_size

    @property
    def rollout_slots(self) -> int:
        """GPUs (on CPU: processes) of all engines; 0 where they run already."""
        if self.rollout_external_engine_addrs:
            return 0
        if self.rollout_num_gpus is not None:
            return self.rollout_num_gpus
        return self.world_size if self.colocate else self.rollout_num_gpus_per_engine

    @property
    def num_engines(self) -> int:
        return self.rollout_slots // self.rollout_num_gpus_per_engine

    @property
    def public_host(self) -> str:
        """What others are told to reach."""
        return self.advertise_host or self.bind_host


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """checkpoints: where the model comes from and where the run goes."""

    hf_checkpoint: str = option(
        help="Hugging Face model folder: config.json, weights, tokenizer", path=True, aka=("--sglang-model-path",)
    )
    ref_load: str | None = option(
        None, help="reference model folder for the KL loss (default: --hf-checkpoint)", path=True
    )
    load: str | None = option(
        None, help="folder of --save to continue from; starts anew when it holds no checkpoint", path=True
    )
    save: str | None = option(None, help="folder for checkpoints, iteration-numbered", path=True)
    save_interval: int | None = option(None, help="save every N rollouts, and after the last", least=1)
    save_hf: str | None = option(
        None, help="with each checkpoint also write a model folder; {rollout_id} is replaced by its number", path=True
    )


@dataclass(frozen=True, kw_only=True)
class Data:
    """data: the prompts."""

    prompt_data: str = option(help="JSONL file of prompts, one object per line; path@[a:b] takes a slice", path=True)
    input_key: str = option("input", help="key of the prompt: a string or a list of chat messages")
    label_key: str | None = option(None, help="key of the label that rewards compare with")
    metadata_key: str = option("metadata", help="key of an object that reaches the agent function")
    rollout_shuffle: bool = option(False, help="shuffle the prompts anew each epoch")
    rollout_seed: int = option(42, help="seed of the shuffle", least=0)


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """rollouts: what is generated, and by whom."""

    num_rollout: int | None = option(None, help="training steps; or give --num-epoch", least=1)
    num_epoch: int | None = option(None, help="passes over the prompts, where --num-rollout is not given", least=1)
    rollout_batch_size: int = option(help="prompt groups per rollout", least=1)
    n_samples_per_prompt: int = option(1, help="rollouts per prompt: the group size", least=1)
    over_sampling_batch_size: int | None = option(
        None, help="groups started at once (default: --rollout-batch-size)", least=1
    )
    dynamic_sampling_filter_path: str | None = option(
        None, help="dotted path or file.py:name of (group) -> Keep or bool: which groups are worth training on"
    )
    rollout_max_response_len: int = option(1024, help="new tokens per model call", least=1)
    rollout_max_prompt_len: int | None = option(None, help="longest prompt in tokens, longer ones are refused", least=1)
    rollout_max_context_len: int | None = option(
        None, help="the engine's context length in tokens", least=2, aka=("--sglang-context-length",)
    )
    max_seq_len: int | None = option(None, help="cut collected samples to this many tokens", least=1)
    rollout_temperature: float = option(1.0, help="sampling temperature")
    rollout_top_p: float = option(1.0, help="nucleus sampling", above=0, most=1)
    rollout_top_k: int = option(-1, help="top-k sampling; -1: off", least=-1)
    rollout_stop: tuple[str, ...] = option((), help="stop strings")
    custom_agent_function_path: str | None = option(
        None,
        help="dotted path or file.py:name of async run(base_url, prompt, request_kwargs, metadata, **kw) -> dict",
    )
    custom_rm_path: str | None = option(
        None,
        help="dotted path or file.py:name of async (config, rollout, *, response, label, metadata) -> float or None",
    )
    rm_type: str | None = option(None, help="built-in reward: exact_match, contains, random")
    none_reward_policy: Literal["drop", "zero", "error"] = option("drop", help="a rollout whose reward is None")
    rollout_timeout: float = option(600.0, help="seconds one agent may take", above=0)
    num_agent_workers: int = option(1, help="agent worker processes", least=1)
    agent_concurrency: int = option(64, help="agents at once per worker", least=1)


@dataclass(frozen=True, kw_only=True)
class Session:
    """sessions: chat in, tokens kept."""

    use_session_server: Literal["v1", "v2"] = option(
        "v2", help="history policy: v2 forks, v1 is linear", nargs="?", const="v1"
    )
    num_session_servers: int = option(1, help="session actors", least=1)
    session_server_port: int | None = option(None, help="first port (default: a free one each)", least=1, most=65535)
    tito_model: str = option("auto", help="model family; auto derives everything from the chat template")
    chat_template_path: str | None = option(
        None, help="chat template file that takes the place of the model folder's, everywhere", path=True
    )
    tito_allowed_append_roles: tuple[str, ...] = option(
        ("tool",), help="roles the harness appends: tool user system assistant"
    )
    session_message_matcher: str = option(
        "replay",
        help="replay, replay_arguments, strict, loose_tool_call, role_content_only or package.module.fn(stored, "
        "replayed)",
    )
    session_sample_picker_path: str | None = option(
        None, help="fn(samples of all leaves, session metadata) -> those to keep, in place of dropping retries"
    )
    session_sample_postprocessor_path: str | None = option(
        None, help="fn(samples, session metadata) -> samples: the last word on what a session gives"
    )
    timeline_compare_level: Literal["token", "text"] = option(
        "token", help="what must agree for a timeline to be merged into another: its ids, or its messages alone"
    )
    timeline_ignore_tools: Literal["true", "false"] = option(
        "false", help="merge timelines that differ in tools", nargs="?", const="true"
    )
    fix_retokenization_drift: Literal["true", "false"] = option(
        "true", help="merging by text, sampled ids replace a re-encoding that differs", nargs="?", const="true"
    )
    detect_timeline_snap: Literal["true", "false"] = option(
        "false", help="log and report where and why a session's timeline forked", nargs="?", const="true"
    )
    session_compare_template: bool = option(
        False, help="compare every sample with what the template prints (0.3 s per 100,000 tokens)"
    )
    session_unknown_fields: Literal["ignore", "refuse"] = option(
        "ignore", help="what becomes of a request's fields that no table of docs/dialects.md has"
    )
    session_tool_images: Literal["placeholder", "refuse"] = option(
        "placeholder", help="what becomes of images and files in tool results: a text that says so, or a 400"
    )
    session_client_sampling: bool = option(False, help="let clients choose sampling parameters (not for training)")
    session_journal: bool = option(True, help="keep sessions on disk, so that a killed server comes back with them")
    session_journal_dir: str | None = option(
        None,
        help="node-local folder of the journals (default: sessions/ in the run folder, or the node's temp folder)",
        path=True,
    )
    session_disconnect_grace: float = option(
        60.0, help="seconds a turn goes on after its client has disconnected", least=0
    )
    session_idle_seconds: float = option(
        7200.0, help="forget a session that nobody has asked for in this time", above=0
    )
    session_memory_gb: float = option(
        8.0, help="memory for sessions, per server; more than that waits in the journal", above=0
    )
    session_logprob_inexact: Literal["keep", "mask"] = option(
        "keep", help="what becomes of turns sampled under top_p, top_k, min_p, penalties or a grammar"
    )
    session_retry_seconds: float = option(
        120.0, help="how long a turn is retried on other engines before it fails", least=0
    )


@dataclass(frozen=True, kw_only=True)
class Engines:
    """engines and router: SGLang servers; any --sglang-FLAG is passed on to SGLang."""

    sglang_server_concurrency: int = option(512, help="requests in flight per engine", least=1)
    sglang_router_ip: str | None = option(None, help="use the router that runs there (default: start one)")
    sglang_router_port: int | None = option(None, help="the router's port (default: a free one)", least=1, most=65535)
    router: Literal["python", "gateway"] = option("python", help="gateway: the Rust gateway smg carries the data")
    router_policy: Literal["least_in_flight", "round_robin", "power_of_two"] = option(
        "least_in_flight",
        help="who takes a request that sticks to no engine",
        aka=("--sglang-router-policy",),
        read=dict.fromkeys(("cache_aware", "consistent_hashing", "manual", "prefix_hash"), "least_in_flight"),
    )
    router_timeout: float = option(
        600.0,
        help="seconds the router waits for an engine's answer",
        above=0,
        aka=("--sglang-router-request-timeout-secs", "--miles-router-timeout"),
    )
    router_queue_seconds: float = option(60.0, help="seconds a request waits for an engine with room", least=0)
    sglang_config: str | None = option(
        None, help="YAML file of engine groups: roles, sizes, SGLang options of each", path=True
    )
    prefill_num_servers: int = option(
        0, help="how many of the engines only prefill; the others then only decode", least=0
    )
    engine_start_timeout: float = option(300.0, help="seconds an engine may take to start", above=0)
    engine_health_interval: float = option(2.0, help="seconds between two probes of an engine", above=0)
    engine_health_timeout: float = option(
        10.0, help="seconds without a token after which an idle processor is a hang", above=0
    )
    engine_hang_timeout: float = option(
        300.0, help="seconds without a token that are a hang whatever is computed", above=0
    )
    engine_restarts: int = option(3, help="how often a dead engine is replaced", least=0)
    pause_generation_mode: Literal["retract", "in_place", "abort"] = option(
        "retract", help="what a weight update does to requests in flight"
    )
    update_weight_transfer_mode: Literal["disk", "tensor", "distributed"] = option(
        "disk", help="how weights travel to the engines: in a folder, in shared memory of one node, or by broadcast"
    )
    offload_rollout: bool = option(False, help="engines free their memory while the trainer works (with --colocate)")
    update_weight_buffer_size: int = option(512 << 20, help="bytes per bucket of modes tensor and distributed", least=1)
    check_weight_update_equal: bool = option(
        False, help="after each update, compare every tensor the engines serve with the folder of that version"
    )
    sglang_args: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """algorithm: advantages, losses, batches."""

    loss_type: Literal["policy_loss", "sft_loss"] = option(
        "policy_loss", help="sft_loss: imitate the rows of --prompt-data (from traces to-data), without rollouts"
    )
    advantage_estimator: Literal["grpo"] = option("grpo", help="how rewards become advantages")
    disable_rewards_normalization: bool = option(False, help="use raw rewards as advantages")
    disable_grpo_std_normalization: bool = option(False, help="subtract the group mean only (Dr. GRPO)")
    eps_clip: float = option(0.2, help="lower clip range of the importance ratio", least=0)
    eps_clip_high: float | None = option(None, help="upper clip range (default: --eps-clip)", least=0)
    eps_clip_c: float | None = option(None, help="dual clip: bound for negative advantages, > 1", above=1)
    use_kl_loss: bool = option(False, help="add a KL loss to the reference model")
    kl_loss_coef: float = option(0.0, help="its weight; 0 only logs it", least=0)
    kl_loss_type: Literal["k1", "k2", "k3", "low_var_kl"] = option("k1", help="its estimator")
    entropy_coef: float = option(0.0, help="entropy bonus")
    use_rollout_logprobs: bool = option(False, help="old logprobs are the engine's, not the trainer's recomputation")
    use_rollout_routing_replay: bool = option(
        False, help="engines return the experts that routed each token, and samples carry them"
    )
    use_tis: bool = option(False, help="truncated importance sampling between trainer and engine")
    tis_clip: float = option(2.0, help="its upper bound", above=0)
    tis_clip_low: float = option(0.0, help="its lower bound", least=0)
    calculate_per_token_loss: bool = option(False, help="average over tokens, not over rollouts")
    global_batch_size: int | None = option(
        None, help="rollouts per optimizer step (default: all of a rollout)", least=1
    )
    num_steps_per_rollout: int | None = option(
        None, help="optimizer steps per rollout; sets --global-batch-size", least=1
    )
    micro_batch_size: int = option(1, help="samples per forward pass", least=1)
    use_dynamic_batch_size: bool = option(False, help="pack samples into micro-batches by token budget")
    max_tokens_per_gpu: int | None = option(None, help="that budget, tokens per micro-batch", least=1)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """optimizer: AdamW."""

    lr: float = option(1e-6, help="learning rate", least=0)
    lr_decay_style: Literal["constant", "linear", "cosine"] = option("constant", help="its schedule")
    lr_warmup_iters: int = option(0, help="optimizer steps of linear warm-up", least=0)
    min_lr: float = option(0.0, help="where decay ends", least=0)
    weight_decay: float = option(0.1, help="decoupled weight decay", least=0)
    adam_beta1: float = option(0.9, help="AdamW beta1", least=0, below=1)
    adam_beta2: float = option(0.98, help="AdamW beta2", least=0, below=1)
    adam_eps: float = option(1e-8, help="AdamW epsilon", above=0)
    clip_grad: float = option(1.0, help="gradient norm clip; 0: off", least=0)
    seed: int = option(
        1234, help="seed of torch, numpy and the engines", least=0, most=2**31 - 1, aka=("--sglang-random-seed",)
    )
    train_threads: int | None = option(None, help="CPU threads per train rank (default: cores / ranks)", least=1)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """evaluation: held-out prompts."""

    eval_interval: int | None = option(None, help="evaluate every N rollouts, and before and after", least=1)
    eval_prompt_data: tuple[str, ...] = option((), help="NAME PATH [NAME PATH ...]")
    n_samples_per_eval_prompt: int = option(1, help="rollouts per held-out prompt", least=1)
    eval_max_response_len: int | None = option(None, help="default: --rollout-max-response-len", least=1)
    eval_temperature: float | None = option(None, help="default: --rollout-temperature", least=0)
    eval_top_p: float | None = option(None, help="default: --rollout-top-p", above=0, most=1)
    skip_eval_before_train: bool = option(False, help="no evaluation before the first step")

    @property
    def datasets(self) -> dict[str, str]:
        """Prompt file by name, in the order given."""
        return dict(zip(self.eval_prompt_data[::2], self.eval_prompt_data[1::2], strict=True))


@dataclass(frozen=True, kw_only=True)
class Logging:
    """logging: the run folder, wandb, tensorboard."""

    run_dir: str = option("runs/latest", help="folder for metrics.jsonl, logs, plots, weights, summary.json", path=True)
    use_wandb: bool = option(False, help="log to wandb")
    wandb_project: str = option("miles_lite", help="wandb project")
    wandb_group: str | None = option(None, help="wandb group")
    wandb_mode: Literal["online", "offline", "disabled"] = option("online", help="offline writes into the run folder")
    use_tensorboard: bool = option(False, help="log to tensorboard in the run folder")
    reward_chance: float | None = option(None, help="expected reward of guessing, for the plot and the summary")
    log_passrate: bool = option(False, help="log pass@k")
    trajectory_dir: str | None = option(None, help="write one .atraj file per rollout here", path=True)
    ray_address: str | None = option(None, help="join this Ray cluster (default: RAY_ADDRESS, else a local one)")

    @property
    def path(self) -> Path:
        """The run folder, absolute."""
        return Path(self.run_dir).expanduser().resolve()


GROUPS: dict[str, type] = {
    "topology": Topology,
    "checkpoint": Checkpoint,
    "data": Data,
    "rollouts": Rollouts,
    "session": Session,
    "engines": Engines,
    "algorithm": Algorithm,
    "optimizer": Optimizer,
    "evaluation": Evaluation,
    "logging": Logging,
}


WEIGHT_UPDATES = (
    "pause_generation_mode",
    "update_weight_transfer_mode",
    "offload_rollout",
    "update_weight_buffer_size",
    "check_weight_update_equal",
)
SERVED: dict[type, tuple[str, ...]] = {
    Checkpoint: ("hf_checkpoint",),
    Engines: tuple(name for name in Engines.__dataclass_fields__ if name not in WEIGHT_UPDATES),
    Logging: ("run_dir", "ray_address"),
}
"""Of these groups, the flags of commands that only serve; nothing is trained, updated, saved or logged there."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All groups of one run, checked."""

    topology: Topology
    checkpoint: Checkpoint
    data: Data
    rollouts: Rollouts
    session: Session
    engines: Engines
    algorithm: Algorithm
    optimizer: Optimizer
    evaluation: Evaluation
    logging: Logging

    @property
    def global_batch_size(self) -> int:
        """Rollouts per optimizer step."""
        total = self.rollouts.rollout_batch_size * self.rollouts.n_samples_per_prompt
        if self.algorithm.num_steps_per_rollout:
            return total // max(self.algorithm.num_steps_per_rollout, 1)
        return self.algorithm.global_batch_size or total

    @property
    def run_dir(self) -> Path:
        return self.logging.path

    def as_dict(self) -> dict[str, Any]:
        """Every option by group, as config.json has it: without SGLang's keys and passwords."""
        shown = dataclasses.asdict(self)
        shown["engines"]["sglang_args"] = redacted(self.engines.sglang_args)
        return shown

    def write(self) -> None:
        """Write config.json into the run folder, for its owner alone."""
        path = self.run_dir / "config.json"
        with writing("the run's configuration", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(path, json.dumps(self.as_dict(), indent=2))

    def check(self) -> Config:
        """Refuse contradictions; returns self. Raises UserError naming the flags."""
        refuse_broken(contradictions(self))
        return self


def build_parser(prog: str = "miles-lite train") -> argparse.ArgumentParser:
    """The flags of all groups."""
    parser = Parser(prog=prog, allow_abbrev=False)
    for group in GROUPS.values():
        add_group(parser, group)
    return parser


def parse(argv: Sequence[str], prog: str = "miles-lite train") -> tuple[Config, Leftovers]:
    """Command line to a checked Config, plus what was accepted and ignored. Raises UserError."""
    parser = build_parser(prog)
    namespace, unknown = parser.parse_known_args(list(argv))
    leftovers = sort_leftovers(parser, unknown)
    groups: dict[str, Any] = {name: take_group(namespace, group) for name, group in GROUPS.items()}
    routed = {"enable_return_routed_experts": True} if groups["algorithm"].use_rollout_routing_replay else {}
    pairs = groups["evaluation"].eval_prompt_data
    located = tuple(absolute(each) if at % 2 else each for at, each in enumerate(pairs))
    groups["evaluation"] = dataclasses.replace(groups["evaluation"], eval_prompt_data=located)
    groups["engines"] = dataclasses.replace(groups["engines"], sglang_args=leftovers.sglang | routed)
    return Config(**groups).check(), leftovers
