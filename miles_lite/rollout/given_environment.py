"""The environment of a run, as its flags put it together."""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.config.options import Config
from miles_lite.environments import single_turn
from miles_lite.hooks import AgentFunction, Environment, RewardFunction, load_hook
from miles_lite.rollout.rewards import load_reward


@dataclass(frozen=True, slots=True)
class Given:
    """See `hooks.Environment`."""

    agent: AgentFunction
    reward: RewardFunction | None


def load_environment(config: Config) -> Environment:
    """Imports the user's functions. Raises UserError when they do not exist."""
    options = config.rollouts
    agent: AgentFunction = single_turn.run
    if options.custom_agent_function_path is not None:
        agent = load_hook(options.custom_agent_function_path, flag="--custom-agent-function-path")
    elif options.custom_generate_function_path is not None:
        agent = load_hook(options.custom_generate_function_path, flag="--custom-generate-function-path")
    return Given(agent, load_reward(config))
