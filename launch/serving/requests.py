"""Check requests before transformers' handlers see them: they ignore or crash on what they lack.

A refusal is an ``ApiError``, which the server answers in the form of OpenAI's own errors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi.responses import StreamingResponse
from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler

from launch.serving.models import Served
from moram_dist.registry import InputError
from moram_dist.use.prompt_file import write_chat

NOTHING = {
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "n": 1,
    "presence_penalty": 0,
}
"""Fields that are not supported -> the value that asks for nothing."""

REFUSED = (
    *("audio", "functions", "generation_config", "logit_bias", "logprobs", "prediction"),
    *("response_format", "seed", "suffix", "tools", "top_logprobs", "web_search_options"),
)
"""Fields that are not supported with any value but null or false."""


class ApiError(Exception):
    """A request that is refused."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        """``param`` and ``code`` are those of OpenAI's errors."""
        super().__init__(message)
        self.status = status
        kind = "authentication_error" if status == 401 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Answers:
    """What both handlers do in another way than transformers'."""

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: Any, use_cb: bool = False
    ) -> GenerationConfig:
        return generation_config(body, model_generation_config)

    def _streaming(self, *args: Any, **named: Any) -> StreamingResponse:
        return with_done(super()._streaming(*args, **named))  # type: ignore[misc]


class Completions(_Answers, CompletionHandler):
    """``/v1/completions``."""

    model_manager: Served

    def _validate_request(self, body: dict[str, Any]) -> None:
        super()._validate_request(body)
        served = self.model_manager
        check(body, served)
        prompt = body.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise ApiError("'prompt' must be a text that is not empty", param="prompt")
        check_length(len(served.tokenizer.encode(prompt)), body, served)


class ChatCompletions(_Answers, ChatCompletionHandler):
    """``/v1/chat/completions``."""

    model_manager: Served

    def _validate_request(self, body: dict[str, Any]) -> None:
        super()._validate_request(body)
        served = self.model_manager
        check(body, served)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(map(_is_turn, messages)):
            raise ApiError(
                "'messages' must be a list of objects with a text as 'role' and as 'content'",
                param="messages",
            )
        tokenizer = served.answerer.tokenizer
        try:
            text = write_chat(tokenizer, messages, "messages")
        except InputError as error:
            raise ApiError(str(error), param="messages") from None
        check_length(len(tokenizer(text, add_special_tokens=False)["input_ids"]), body, served)


def check(body: Mapping[str, Any], served: Served) -> None:
    """Raises ApiError where the model does not exist, or a field is wrong or not supported."""
    name = body.get("model")
    if not isinstance(name, str):
        raise ApiError("'model' must be a text", param="model")
    if name not in served.views:
        raise ApiError(
            f"The model '{name}' does not exist; /v1/models lists those that do",
            status=404,
            param="model",
            code="model_not_found",
        )
    for field, nothing in NOTHING.items():
        if body.get(field) not in (None, nothing):
            raise ApiError(f"'{field}' is not supported", param=field)
    for field in REFUSED:
        if body.get(field) not in (None, False):
            raise ApiError(f"'{field}' is not supported", param=field)
    for field, most in (("temperature", 2), ("top_p", 1)):
        value = body.get(field)
        if value is not None and not (_is_number(value) and 0 <= value <= most):
            raise ApiError(f"'{field}' must be a number from 0 to {most}", param=field)
    for field in ("max_tokens", "max_completion_tokens"):
        value = body.get(field)
        if value is not None and not (type(value) is int and value >= 1):
            raise ApiError(f"'{field}' must be a whole number of at least 1", param=field)
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if stop is not None and not (isinstance(stops, list) and all(_is_text(s) for s in stops)):
        raise ApiError("'stop' must be a text or a list of texts", param="stop")
    if not isinstance(body.get("stream") or False, bool):
        raise ApiError("'stream' must be true or false", param="stream")


def check_length(num_prompt: int, body: Mapping[str, Any], served: Served) -> None:
    """Raises ApiError if prompt and answer are longer than what the model can read."""
    answerer = served.answerer
    there = answerer.family.positions(answerer.model)
    limit = there.tokens or there.trained
    new = _max_new_tokens(body) or answerer.task.max_answer_tokens
    if limit is not None and num_prompt + new > limit:
        raise ApiError(
            f"This model's maximum context length is {limit} tokens, and you requested "
            f"{num_prompt + new} ({num_prompt} in the prompt, {new} for the answer)",
            code="context_length_exceeded",
        )


def generation_config(body: Mapping[str, Any], own: GenerationConfig) -> GenerationConfig:
    """The view's settings, which are those of the run's evaluation, with those of the request.

    Greedy unless the request gives a temperature over 0.
    """
    values = own.to_diff_dict()
    new = _max_new_tokens(body)
    if new is not None:
        values["max_new_tokens"] = new
    if body.get("temperature"):
        values |= {"do_sample": True, "temperature": float(body["temperature"])}
        if body.get("top_p") is not None:
            values["top_p"] = float(body["top_p"])
    if body.get("stop"):
        values["stop_strings"] = body["stop"]
    return GenerationConfig(**values)


def with_done(response: StreamingResponse) -> StreamingResponse:
    """The stream, ended by the line that OpenAI's API ends it with."""
    stream = response.body_iterator

    async def lines() -> AsyncIterator[Any]:
        async for line in stream:
            yield line
        yield "data: [DONE]\n\n"

    response.body_iterator = lines()
    return response


def _max_new_tokens(body: Mapping[str, Any]) -> int | None:
    found: int | None = body.get("max_completion_tokens") or body.get("max_tokens")
    return found


def _is_turn(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and _is_text(message.get("role"))
        and isinstance(message.get("content"), str)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
