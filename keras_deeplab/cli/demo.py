"""`keras-deeplab demo --model FILE`: a local web page that predicts photographs and the webcam."""

from __future__ import annotations

import argparse
import contextlib
import socket

from keras_deeplab.cli.options import Parser, command
from keras_deeplab.demo import make_app, open_choice
from keras_deeplab.demo.app import LOOPBACK
from keras_deeplab.extras import require
from keras_deeplab.validation import error

CONNECTIONS = 16  # of which each may hold an image file in memory


def parser() -> Parser:
    """Returns the parser of the command line."""
    made = Parser(
        "Serves a web page on this machine that predicts photographs and frames of the "
        "webcam. The images are not stored and do not leave the machine."
    )
    add = made.add_argument
    add(
        "--model",
        nargs="+",
        required=True,
        metavar="MODEL",
        help=".keras files, hf://USER/NAME[@REVISION] of the Hugging Face Hub, exports (folder of "
        "a SavedModel, .tflite or .onnx file) or published weights as NAME/MODEL/BACKBONE, which "
        "are downloaded once; the page offers a choice",
    )
    add("--port", type=_port, default=8000, help="0 for a free one")
    add(
        "--host",
        default="127.0.0.1",
        help="address to serve; others than this machine's own "
        "let everybody on the network use the page",
    )
    return made


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 65535. Received: {text!r}")
    return int(text)


@command(parser)
def main(options: argparse.Namespace) -> None:
    """Runs the command."""
    require("the demo", "demo", "starlette", "uvicorn")
    import uvicorn

    with _listening(options.host, options.port) as listener:  # before the models are loaded
        is_local = options.host in LOOPBACK
        app = make_app(list(map(open_choice, options.model)), LOOPBACK if is_local else ["*"])
        if not is_local:
            print(f"Warning: everybody who reaches {options.host} can use this page.")
        shown = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        print(f"Open {address} in a browser; Ctrl+C stops the demo.", flush=True)
        # Without a configuration of its own, which would close the handlers of other loggers.
        settings = {"log_config": None, "log_level": "warning"}
        config = uvicorn.Config(app, limit_concurrency=CONNECTIONS, **settings)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as fault:
        rule = "an address and a port of this machine that are free"
        raise error("--host, --port", rule, f"{host}, {port}", f"{fault.strerror}.") from fault
