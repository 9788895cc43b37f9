"""miles_lite: a Ray-based orchestrator for reinforcement learning of LLM agents."""
