"""The environment of a run, as its flags put it together."""

from __future__ import annotations

from dataclasses import dataclass

from miles_lite.config.options import Config
from miles_lite.environments import load, single_turn
from miles_lite.hooks import AgentFunction, RewardFunction, load_hook
from miles_lite.rollout.rewards import load_reward


@dataclass(frozen=True, slots=True)
class Given:
    """Who rolls out, and who judges: None where the agent function does."""

    agent: AgentFunction
    reward: RewardFunction | None


def load_environment(config: Config) -> Given:
    """Imports the environment, or the user's functions. Raises UserError when they do not exist.

    A reward that a flag names counts over the environment's.
    """
    options, data = config.rollouts, config.data
    agent: AgentFunction = single_turn.run
    reward = load_reward(config)
    if data.environment is not None:
        made = load(data.environment, data.environment_args, seed=data.rollout_seed)
        agent, reward = made.agent, reward or made.reward
    elif options.custom_agent_function_path is not None:
        agent = load_hook(options.custom_agent_function_path, flag="--custom-agent-function-path")
    elif options.custom_generate_function_path is not None:
        agent = load_hook(options.custom_generate_function_path, flag="--custom-generate-function-path")
    return Given(agent, reward)
