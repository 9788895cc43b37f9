"""A taskset and a harness of verifiers v1 (in its own Python): guess a number; the harness answers each guess."""

from __future__ import annotations

import httpx
import verifiers.v1 as vf

__all__ = ["Asking", "Guesses"]


class Number(vf.TaskData):
    number: int
    breaks: str = ""


class Guess(vf.Task[Number, vf.State, vf.TaskConfig]):
    @vf.reward(weight=0.5)
    async def right(self, trace: vf.Trace) -> float:
        if self.data.breaks == "scoring":
            raise OSError("the judge is gone")
        return float(trace.info["said"][-1].strip() == str(self.data.number))

    @vf.metric
    async def guesses(self, trace: vf.Trace) -> float:
        return float(len(trace.info["said"]))


class Guesses(vf.Taskset[Guess, vf.TasksetConfig]):
    def load(self):
        return [Guess(Number(number=number, prompt="guess"), self.config.task) for number in range(1, 5)]


class Asking(vf.Harness[vf.HarnessConfig]):
    APPENDS_SYSTEM_PROMPT = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        if data.breaks == "harness":
            return vf.ProgramResult(exit_code=3, stdout="", stderr="it broke")
        messages = [{"role": "user", "content": data.prompt}]
        said: list[str] = []
        trace.info["said"] = said
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {secret}"}, timeout=60) as client:
            while len(said) < 3:
                body = {"model": ctx.model, "messages": messages}
                answer = await client.post(f"{endpoint}/chat/completions", json=body)
                answer.raise_for_status()
                message = answer.json()["choices"][0]["message"]
                said.append(message["content"])
                if message["content"].strip() == str(data.number):
                    break
                messages += [message, {"role": "user", "content": "no"}]
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")
