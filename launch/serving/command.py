"""Serve the memory of a run in the form of OpenAI's API, on one machine.

    moram serve RUN
    moram serve RUN --port 8000 --upto TASK
    moram serve RUN/memory --model BASE

Offers /v1/completions, /v1/chat/completions, /v1/models and /health. The model is called like the
folder; RUN@after_000 is the memory as it was after its first task. Clients must send the key in
MORAM_API_KEY, if it is set. Answers are greedy unless a request gives a temperature.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from moram_dist.command_line import Parser, run_command
from moram_dist.registry import InputError
from moram_dist.terminal import make_output_last, say
from moram_dist.values import coerce

KEY = "MORAM_API_KEY"
PACKAGES = ("fastapi", "openai", "uvicorn")


def main(words: Sequence[str]) -> int:
    """Serve until a signal comes, and return the exit code."""
    return run_command(_serve, words)


def _serve(words: Sequence[str]) -> None:
    parser = Parser("moram serve", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: local")
    parser.add_argument("--port", default="8000", help="default: 8000; 0: a free one")
    parser.add_argument("--upto", metavar="TASK", help="as after this task: name or number")
    parser.add_argument("--recall", help="all or prefix; default: what the run's scores are of")
    parser.add_argument("--task", help="whose rules apply to prompts; default: the newest")
    parser.add_argument("--model", help="the base; default: the run's")
    args = parser.parse_args(words)
    listening = _socket(args.host, coerce("port", args.port, int))
    key = os.environ.get(KEY) or None

    for package in PACKAGES:
        import_module(package)  # transformers' server fails in a strange way without one
    import uvicorn

    from launch.serving.app import build_app
    from launch.serving.models import Served
    from launch.settings import quiet
    from moram_dist.families.causal import Causal
    from moram_dist.use.answerer import Answerer, Asked
    from moram_dist.use.source import read_source

    quiet()
    source = read_source(args.run, args.model)
    answerer = Answerer(source, Asked(upto=args.upto, recall=args.recall, task=args.task))
    if not isinstance(answerer.family, Causal):
        raise InputError(f"{args.run}: transformers' server takes causal models only")
    if not hasattr(answerer.tokenizer, "_tokenizer"):
        raise InputError(f"{args.run}: transformers' server takes fast tokenizers only")
    name = args.run.resolve().name
    app = build_app(Served(name, answerer), key)
    host, port = listening.getsockname()[:2]
    if key is None and not ipaddress.ip_address(host).is_loopback:
        say(f"anyone who can reach {host} can ask: set {KEY} to require a key", error=True)
    say(f"serving {name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    server.run(sockets=[listening])


def _socket(host: str, port: int) -> socket.socket:
    """A socket at that address, before anything is loaded. Raises InputError if there is none."""
    if not 0 <= port < 2**16:
        raise InputError(f"--port must be from 0 to 65535, got {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot listen: {error.strerror}") from None


if __name__ == "__main__":
    make_output_last()
    sys.exit(main(sys.argv[1:]))
