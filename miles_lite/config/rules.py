"""What the options of a command cannot be together.

Invariant: what a value may be stands at its option (`least`, `above`, ...); here stands what options cannot be
together, and the few bounds that need words of their own.
"""

from __future__ import annotations

from miles_lite.config.choices import RewardRule, RouterKind
from miles_lite.config.engines import RouterAddress, Routing, WeightUpdates
from miles_lite.config.environments import is_source
from miles_lite.config.model import Checkpoint
from miles_lite.config.parallel import Compute, Parallelism
from miles_lite.config.places import Topology
from miles_lite.config.rewards import NEED_NO_LABEL, Rewards
from miles_lite.config.rollouts import Data, Evaluation, Rollouts, mixed
from miles_lite.config.scheduling import Scheduling
from miles_lite.config.session_options import Session, SessionServers
from miles_lite.config.training import Algorithm, Optimizer
from miles_lite.errors import UserError

Rules = list[tuple[bool, str]]
"""Whether a rule is broken, and the words that say so."""


def refuse_broken(rules: Rules) -> None:
    """Raises UserError with the words of the first rule that is broken."""
    for broken, message in rules:
        if broken:
            raise UserError(message)


def length(rollouts: Rollouts, optimizer: Optimizer) -> Rules:
    """How long a run is, and its learning rate on the way."""
    decay = optimizer.lr_decay_style
    return [
        (
            rollouts.num_rollout is None and rollouts.num_epoch is None,
            "give --num-rollout or --num-epoch: how long to train",
        ),
        (
            rollouts.num_rollout is None and decay != "constant",
            f"--lr-decay-style {decay} needs --num-rollout: where decay ends",
        ),
        (
            optimizer.lr_warmup_fraction is not None and rollouts.num_rollout is None,
            "--lr-warmup-fraction needs --num-rollout: what it is a share of",
        ),
        (
            optimizer.min_lr > optimizer.lr,
            f"--min-lr {optimizer.min_lr} is above --lr {optimizer.lr}",
        ),
    ]


def overlap(rollouts: Rollouts, scheduling: Scheduling, updates: WeightUpdates) -> Rules:
    """What cannot run beside what."""
    bound, depth = scheduling.staleness, scheduling.pipeline_depth or 0
    room = rollouts.num_agent_workers * rollouts.agent_concurrency
    asked = scheduling.most_at_once(room)
    return [
        (
            depth > bound,
            f"--pipeline-depth {depth} is above --max-weight-staleness {bound}: what starts so early is too old when "
            "it is trained",
        ),
        (
            bound == 0 and scheduling.fully_async,
            "--fully-async contradicts --max-weight-staleness 0: leave one out",
        ),
        (
            bound == 0 and scheduling.partial_rollout,
            "--partial-rollout contradicts --max-weight-staleness 0: what goes on in the next step is a step old",
        ),
        (
            bound > 0 and updates.offload_rollout,
            f"--max-weight-staleness {bound}: not with --offload-rollout: engines without memory cannot go on while "
            "the trainer works",
        ),
        (
            asked > room,
            f"--rollout-concurrency {asked}: --num-agent-workers x --agent-concurrency have room for {room}",
        ),
    ]


def curriculum(data: Data) -> Rules:
    """Which prompts come again."""
    easy, hard = data.easy_threshold, data.hard_threshold
    return [
        (
            easy is not None and hard is not None and hard >= easy,
            f"--hard-threshold {hard} is not below --easy-threshold {easy}: a prompt cannot be both",
        ),
    ]


def batches(rollouts: Rollouts, algorithm: Algorithm, *, batch: int) -> Rules:
    """What makes up an optimizer step of `batch` rollouts."""
    total = rollouts.rollout_batch_size * rollouts.n_samples_per_prompt
    product = f"{total} rollouts (batch size x samples per prompt)"
    steps, over = algorithm.num_steps_per_rollout, rollouts.over_sampling_batch_size
    told = f"--global-batch-size {batch}" if steps is None else f"--num-steps-per-rollout {steps}"
    return [
        (
            over is not None and over < rollouts.rollout_batch_size,
            f"--over-sampling-batch-size {over} is below --rollout-batch-size {rollouts.rollout_batch_size}",
        ),
        (
            batch < 1 or total % batch != 0 or (steps is not None and batch * steps != total),
            f"{told} does not divide {product}",
        ),
        (
            steps is not None and algorithm.global_batch_size not in (None, batch),
            "--global-batch-size contradicts --num-steps-per-rollout: give one of them",
        ),
        (
            algorithm.use_dynamic_batch_size and algorithm.max_tokens_per_gpu is None,
            "--use-dynamic-batch-size needs --max-tokens-per-gpu",
        ),
    ]


def parallel(topology: Topology, sizes: Parallelism, compute: Compute) -> Rules:
    """How many ranks there are, and how they share the model."""
    ranks, tensor, experts = topology.world_size, sizes.tensor_model_parallel_size, sizes.expert_model_parallel_size
    copies = sizes.data_parallel_replicate_size
    per_copy = ranks // copies
    told = f"{ranks} train ranks (--actor-num-nodes x --actor-num-gpus-per-node)"
    return [
        (
            compute.train_backend == "megatron",
            "--train-backend megatron: does not exist here. Megatron-core packs sequences, and cuts experts over "
            "tensor ranks, only with TransformerEngine, and megatron-bridge needs transformers below 5, which the "
            "engines' SGLang excludes. Leave the flag out: --tensor-model-parallel-size and FSDP2 train the Hugging "
            "Face model",
        ),
        (
            ranks % sizes.ranks_per_batch != 0,
            f"{told} cannot be shared out: --tensor-model-parallel-size {tensor} x --context-parallel-size "
            f"{sizes.context_parallel_size} must divide them",
        ),
        (
            ranks % (copies * sizes.ranks_per_batch) != 0,
            f"--data-parallel-replicate-size {copies} does not divide the {ranks // sizes.ranks_per_batch} "
            "data-parallel ranks",
        ),
        (
            per_copy % experts != 0 or (experts > 1 and experts % tensor != 0),
            f"--expert-model-parallel-size {experts} must divide {per_copy} ranks and be a multiple of "
            f"--tensor-model-parallel-size {tensor}: whole experts are shared out over ranks that hold all of a batch",
        ),
        (
            sizes.data_parallel_sharding_strategy == "no_shard" and sizes.shares_layers,
            "--data-parallel-sharding-strategy no_shard: only on CPU, and without tensor, context or expert "
            "parallelism; leave it out",
        ),
        (
            sizes.context_parallel_size > 1 and compute.attn_implementation != "auto",
            f"--attn-implementation {compute.attn_implementation} computes sequence by sequence, and "
            f"--context-parallel-size {sizes.context_parallel_size} shares rows of packed ones: leave one out",
        ),
        (
            compute.recompute_method == "block" and compute.recompute_num_layers is None,
            "--recompute-method block needs --recompute-num-layers: how many layers are computed again",
        ),
    ]


def sampling(rollouts: Rollouts, session: Session) -> Rules:
    """How rollouts are sampled, and what sessions take."""
    roles = {"tool", "user", "system", "assistant"}
    return [
        (
            rollouts.custom_agent_function_path is not None and rollouts.custom_generate_function_path is not None,
            "--custom-agent-function-path and --custom-generate-function-path exclude each other: one of them rolls "
            "out; miles' agentic generate functions are not needed",
        ),
        (rollouts.rollout_top_k == 0, "--rollout-top-k 0: give -1 (off) or at least 1"),
        (
            rollouts.rollout_temperature <= 0,
            "--rollout-temperature must be above 0: greedy tokens have no policy gradient",
        ),
        (
            not roles.issuperset(session.tito_allowed_append_roles),
            "--tito-allowed-append-roles: only tool, user, system and assistant exist",
        ),
    ]


def environment(data: Data, rollouts: Rollouts, evaluation: Evaluation) -> Rules:
    """Where prompts come from, and who rolls out."""
    functions = {
        "--custom-agent-function-path": rollouts.custom_agent_function_path,
        "--custom-generate-function-path": rollouts.custom_generate_function_path,
        "--rollout-function-path": rollouts.rollout_function_path,
    }
    given = next((flag for flag, path in functions.items() if path is not None), "")
    own = data.environment is None and any(is_source(source) for source, _ in mixed(data.prompt_data))
    paired = len(evaluation.eval_prompt_data) % 2 == 0
    held_out = [name for name, source in evaluation.datasets.items() if is_source(source)] if paired else []
    return [
        (own, "prompts are missing: give --prompt-data FILE, or --environment, which has its own"),
        (
            data.environment is None and bool(held_out),
            f"the held-out set {', '.join(held_out)} is of an environment: give --environment",
        ),
        (
            data.environment is not None and bool(given),
            f"--environment and {given} exclude each other: one of them rolls out",
        ),
    ]


def rewards(options: Rewards, data: Data) -> Rules:
    """Who judges, and what it needs."""
    rules = options.rules
    compared = [each.name for each in rules if each.rule not in NEED_NO_LABEL]
    asks = any(each.rule in (RewardRule.REMOTE_RM, RewardRule.LLM_JUDGE) for each in rules)
    return [
        (
            bool(rules) and options.custom_rm_path is not None,
            "--rm-type and --custom-rm-path exclude each other: one of them gives the reward",
        ),
        (
            bool(compared) and data.label_key is None,
            f"--rm-type {' '.join(compared)} needs --label-key: what responses are compared with",
        ),
        (
            options.group_rm and options.custom_group_rm_path is None and options.rm_type != (RewardRule.LLM_JUDGE,),
            "--group-rm needs --custom-rm-path, or --rm-type llm_judge: who judges the rollouts of a prompt together",
        ),
        (
            options.judges_groups and options.custom_rm_path is not None,
            "--custom-group-rm-path and --custom-rm-path exclude each other: one of them gives the reward",
        ),
        (
            options.rm_url is None and any(each.rule is RewardRule.REMOTE_RM for each in rules),
            "--rm-type remote_rm needs --rm-url: where the reward model answers",
        ),
        (
            options.rm_url is not None and bool(rules) and not asks,
            f"--rm-url: --rm-type {' '.join(options.rm_type)} asks nobody; take remote_rm or llm_judge",
        ),
    ]


def folders(checkpoint: Checkpoint, evaluation: Evaluation) -> Rules:
    """What is saved and evaluated."""
    names = evaluation.eval_prompt_data[::2]
    return [
        (len(evaluation.eval_prompt_data) % 2 != 0, "--eval-prompt-data takes pairs: NAME PATH [NAME PATH ...]"),
        (len(set(names)) < len(names), "--eval-prompt-data: a name is there twice; give each file another name"),
        (
            evaluation.eval_interval is not None
            and not (evaluation.eval_prompt_data or evaluation.eval_config or evaluation.eval_function_path),
            "--eval-interval needs --eval-prompt-data",
        ),
    ]


def engines(topology: Topology, routing: Routing, address: RouterAddress, sessions: SessionServers) -> Rules:
    """What the engines of a run, or of a command that only serves, cannot be."""
    size, prefill = topology.rollout_num_gpus_per_engine, topology.prefill_num_servers
    return [
        (
            address.sglang_router_ip is not None and address.sglang_router_port is None,
            "--sglang-router-ip needs --sglang-router-port: where that router runs",
        ),
        (
            address.num_routers > 1 and address.sglang_router_ip is not None,
            f"--num-routers {address.num_routers}: not with --sglang-router-ip, where one router runs already",
        ),
        (
            address.num_routers > sessions.num_session_servers,
            f"--num-routers {address.num_routers} is above --num-session-servers {sessions.num_session_servers}, each "
            "of which sends to one router: the others would have nothing to do",
        ),
        (
            topology.rollout_slots % size != 0,
            f"--rollout-num-gpus {topology.rollout_slots} is not a multiple of --rollout-num-gpus-per-engine {size}",
        ),
        (
            prefill >= max(topology.num_engines, 1),
            f"--prefill-num-servers {prefill}: of {topology.num_engines} engines at least one must be left to decode",
        ),
        (
            routing.router == RouterKind.GATEWAY and (prefill > 0 or address.sglang_router_ip is not None),
            "--router gateway: not with --prefill-num-servers, whose replies the gateway does not merge without "
            "loss, nor with --sglang-router-ip, where another router runs already",
        ),
    ]
