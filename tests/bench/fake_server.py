"""A tiny completion server: `python fake_server.py PORT [--shift N]`. The model's name says how it
behaves: `cut`, `garbage`, `broken`, `busy` and `slow` fail in their own ways, others answer."""

from __future__ import annotations

import argparse
import asyncio
import json

from aiohttp import web


def event(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def choice(text: str, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": text, **more}]}


class Fake:
    """Token i of an answer is (sum of the prompt + i + shift) mod 100."""

    def __init__(self, shift: int) -> None:
        self.shift = shift
        self.bodies: list[dict[str, object]] = []
        self.keys: list[str] = []

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        model = body["model"]
        if model == "busy":
            return web.Response(status=503, text="too many requests")
        response = web.StreamResponse()
        await response.prepare(request)
        if model == "slow":
            await asyncio.sleep(60)
        for i in range(body["max_tokens"]):
            token = (sum(body["prompt"]) + i + self.shift) % 100
            await response.write(event(choice(f" {token}", token_ids=[token])))
            if i == 1 and model == "cut":
                return response
            if i == 1 and model == "broken":
                await response.write(event({"error": {"message": "no memory"}}))
                return response
            if i == 1 and model == "garbage":
                await response.write(b"data: {not json\n\n")
        await response.write(event(choice("", finish_reason="length")))
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        await response.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        return response

    async def health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def start(self, port: int) -> tuple[web.AppRunner, int]:
        """The runner to clean up, and the port."""
        app = web.Application()
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_get("/health", self.health)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner, runner.addresses[0][1]


async def serve(port: int, shift: int) -> None:
    await Fake(shift).start(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--shift", type=int, default=0)
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.shift))
