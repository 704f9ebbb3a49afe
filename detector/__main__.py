"""The front door: `python -m detector COMMAND ...`, one line a command with `--help`."""

import importlib
import sys

from detector.errors import UserError, exit_on_user_error

COMMANDS = {  # command -> the module whose main() it is, and what it does; imported only when it is called
    "predict": (
        "detector.inference.command",
        "say of faces in images, folders and archives whether they are real or fake",
    ),
    "serve": ("detector.serve.__main__", "a web page and an HTTP API for the same"),
    "convert": ("detector.experiments.convert", "make a Keras classifier that you have a model of this project"),
    "compare": (
        "detector.experiments.compare",
        "say whether one run's model is better than another's, on the same images",
    ),
    "leaderboard": ("detector.experiments.leaderboard", "all evaluated runs in one table"),
    "registry": ("detector.experiments.promote", "list the registered models, make the better one champion"),
    "recipe": ("detector.experiments.recipes", "run the pipeline with a named set of parameters, as an experiment"),
    "ui": ("detector.tracking.ui", "open the MLflow UI: ui [PORT]"),
}


def usage() -> str:
    lines = [f"  {name:12s} {says}" for name, (_, says) in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m detector COMMAND ...", "", *lines, "", "python -m detector COMMAND --help says the rest."]
    )


def main() -> None:
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(usage())
        return
    if command not in COMMANDS:
        raise UserError(f"{command!r} is no command; choose from {', '.join(COMMANDS)}")
    del sys.argv[1]  # so that the command sees its own arguments
    importlib.import_module(COMMANDS[command][0]).main()


if __name__ == "__main__":
    exit_on_user_error(main)
