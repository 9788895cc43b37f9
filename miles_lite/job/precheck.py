"""Checks a run's input before anything is started: what can be refused in a second is refused in a second."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from miles_lite.config.algorithm_rules import too_low, too_low_words
from miles_lite.config.folders import check_folder
from miles_lite.config.options import Config
from miles_lite.config.rewards import Rewards
from miles_lite.config.rollouts import mixed
from miles_lite.config.rules import refuse_broken
from miles_lite.config.teachers import is_url
from miles_lite.config.training import Algorithm
from miles_lite.engine.heads import check_head
from miles_lite.environments import load
from miles_lite.errors import UserError, user_error
from miles_lite.hooks import check_hooks, hooks_of
from miles_lite.job.forked_workers import check_models, forking_workers
from miles_lite.model_folder import check_model_folder
from miles_lite.process.gpu_driver import has_gpu_driver
from miles_lite.rollout import resume
from miles_lite.rollout.filters import load_filter
from miles_lite.rollout.prompt_lengths import prompt_limit, token_counter
from miles_lite.rollout.prompts import Prompt, as_messages, check_lengths, head, load_held_out, load_prompts
from miles_lite.rollout.rewards import check_packages, check_row
from miles_lite.rollout.rewards.weighted import row_rules
from miles_lite.session.dialects.chat import ChatCompletions
from miles_lite.session.errors import ApiError
from miles_lite.session.history.match import matcher_named
from miles_lite.session.model_text import model_text
from miles_lite.stack.cluster import joined
from miles_lite.stack.engine_plans import check_engines
from miles_lite.train.iterations import latest_iteration
from miles_lite.train.served_teacher import ServedTeacher

log = logging.getLogger(__name__)


def check_inputs(config: Config, *, trains: bool = True) -> None:
    """Folders, template, prompts and their lengths, hook files, engines, and what `trains`. Raises UserError at a
    flaw."""
    model = check_folders(config)
    if trains:
        check_trainer(config)
    check_head(model)
    limit = prompt_limit(model, config)
    check_hooks(hooks_of(config.rollouts, config.rewards, config.evaluation, config.session, config.algorithm))
    if not {".", ":"} & set(config.rollouts.dynamic_sampling_filter_path or "."):
        load_filter(config.rollouts.dynamic_sampling_filter_path)
    if "." not in config.session.session_message_matcher:
        matcher_named(config.session.session_message_matcher)
    check_rewards(config.rewards)
    if config.data.environment is not None:
        load(config.data.environment, config.data.environment_args, seed=config.data.rollout_seed)
    check_engines(config.topology, config.engines)
    family = config.session.tito_model
    tito = model_text(model, config.session, config.engines)
    log.info("append surface of %s (--tito-model %s), verified:\n%s", model.name, family, tito.table())

    count = token_counter(tito, config)
    for source, _ in mixed(config.data.prompt_data):
        prompts = load_prompts(source, config.data)
        check_teachers(head(prompts), config.algorithm)
        check_prompts(prompts, config.rewards, source=source)
        check_row_rewards(head(prompts), config, source=source)
        if config.data.overlong_prompts == "error":
            check_lengths(head(prompts), count, limit=limit, source=source)
    if trains:
        check_resumed(config)
    for name, source in config.evaluation.datasets.items():
        prompts = load_held_out(source, config, name)
        check_prompts(prompts, config.rewards, source=source)
        check_lengths(head(prompts), count, limit=limit, source=source)


def check_resumed(config: Config) -> None:
    """Refuse rollouts that a run could not go on with. Raises UserError."""
    options = config.checkpoint
    iteration = None if options.load is None or options.finetune else latest_iteration(Path(options.load))
    if options.load is not None and iteration is not None:
        resume.check(options.load, iteration, config.data)


def check_prompts(prompts: Sequence[Prompt], rewards: Rewards, *, source: str) -> None:
    """Refuse prompts that nobody could answer or judge. Raises UserError naming the first one's line."""
    check_row_rules(head(prompts), rewards, source=source)
    check_messages(head(prompts), source=source)


def check_messages(prompts: Iterable[Prompt], *, source: str) -> None:
    """Refuse prompts that a session would refuse. Raises UserError naming the first one's line."""
    for prompt in prompts:
        try:
            ChatCompletions().parse({"messages": as_messages(prompt)})
        except ApiError as error:
            where = f" ({error.param})" if error.param else ""
            raise UserError(f"{source}, line {prompt.row}: {error.message}{where}") from error


def check_rewards(options: Rewards) -> None:
    """Refuse rules whose package is missing, and a judge's question that cannot be read or does not show what is
    judged. Raises UserError."""
    check_packages(each.rule for each in options.rules)
    if options.rm_judge_prompt is not None:
        with user_error(f"--rm-judge-prompt {options.rm_judge_prompt}: cannot be read", OSError, UnicodeDecodeError):
            question = Path(options.rm_judge_prompt).read_text(encoding="utf-8")
        if missing := [name for name in options.judged if f"{{{name}}}" not in question]:
            raise UserError(
                f"--rm-judge-prompt {options.rm_judge_prompt}: has no {{{missing[0]}}} in it, which is judged"
            )


def check_row_rules(prompts: Iterable[Prompt], rewards: Rewards, *, source: str) -> None:
    """Refuse rows that name a reward which is not known or not installed, or without what theirs judges by. Raises
    UserError naming the line."""
    default = () if rewards.custom_rm_path or rewards.judges_groups else rewards.rules
    for prompt in prompts:
        with user_error(f"{source}, line {prompt.row}", UserError):
            rules = row_rules(prompt.metadata, default)
            check_packages(each.rule for each in rules)
            for each in rules:
                check_row(each.rule, label=prompt.label, metadata=prompt.metadata)


def check_row_rewards(prompts: Iterable[Prompt], config: Config, *, source: str) -> None:
    """Refuse rows whose rules give rewards that the estimator cannot take. Raises UserError naming the line."""
    for prompt in prompts:
        if too_low(config.rewards, row_rules(prompt.metadata, ()), config.algorithm):
            where = f"{source}, line {prompt.row}: the rm_type of its metadata"
            raise UserError(too_low_words(where, config.algorithm))


def check_teachers(prompts: Iterable[Prompt], algorithm: Algorithm) -> None:
    """Refuse prompts without a teacher, where each is to name one. Raises UserError naming the first one's line."""
    key = algorithm.opd_teacher_key
    if key is None:
        return
    for prompt in prompts:
        if str(prompt.metadata.get(key)) not in algorithm.teachers:
            raise UserError(
                f"--prompt-data, line {prompt.row}: its metadata has {prompt.metadata.get(key)!r} under '{key}' "
                f"(--opd-teacher-key), and --opd-teacher knows {', '.join(algorithm.teachers)}"
            )


def check_trainer(config: Config) -> None:
    """What ranks will load, on which devices, and whom they ask. Raises UserError."""
    if slots_are_cpus(config):
        refuse_broken(config.on_device("cpu"))
    check_models(config)
    algorithm = config.algorithm
    for where in filter(is_url, algorithm.teachers.values()):
        ServedTeacher(where, likeliest=algorithm.opd_log_prob_top_k).check()


def slots_are_cpus(config: Config) -> bool:
    """Whether that is known before Ray is: it starts on this machine, which has nothing else, or they are to be."""
    device = config.topology.device
    here = not joined(config.cluster.ray_address)
    return here and (device == "cpu" or (device == "auto" and not has_gpu_driver()))


def forking_early(config: Config) -> AbstractContextManager[None]:
    """Ranks' fork server from before the first look at their models, where they will be forked."""
    return forking_workers("cpu", config.run_dir / "logs") if slots_are_cpus(config) else nullcontext()


def check_folders(config: Config) -> Path:
    """The folders that are read and those that will be written; returns the model's. Raises UserError."""
    model = check_model_folder(config.model.hf_checkpoint)
    written = {
        "--run-dir": config.run.run_dir,
        "--load": config.checkpoint.load,
        "--save": config.checkpoint.save,
        "--save-hf": config.checkpoint.save_hf,
        "--trajectory-dir": config.logging.trajectory_dir,
        "--save-debug-rollout-data": _folder_of(config.debugging.save_debug_rollout_data),
    }
    for flag, path in written.items():
        if path is not None:
            check_folder(flag, path)
    return model


def _folder_of(pattern: str | None) -> str | None:
    return None if pattern is None else str(Path(pattern).parent)
