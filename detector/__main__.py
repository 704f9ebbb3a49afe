"""The front door: `python -m detector COMMAND ...`, or `deepfake-detector COMMAND ...` once it is installed."""

import importlib
import sys

from detector.errors import UserError, exit_on_user_error

# Command -> the module whose main() runs it, imported only when the command is called, and what it does.
COMMANDS = {
    "predict": ("detector.inference.command", "Score the faces in images, folders and archives: real, fake or unsure"),
    "serve": ("detector.serve.__main__", "Serve the detector as a web page and an HTTP API"),
    "recipe": ("detector.experiments.recipes", "Run the pipeline with a named set of parameters, as an experiment"),
    "compare": ("detector.experiments.compare", "Test whether one run's model is better than another's"),
    "leaderboard": ("detector.experiments.leaderboard", "Print all evaluated runs in one table"),
    "registry": ("detector.experiments.promote", "List the registered models; promote the better one to champion"),
    "convert": ("detector.experiments.convert", "Turn a Keras classifier of your own into a model of this project"),
    "ui": ("detector.tracking.ui", "Open the MLflow UI"),
}


def usage() -> str:
    lines = [f"  {name:12s} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: python -m detector COMMAND [ARGUMENT ...]",
            "",
            "Use the trained detector and compare the runs that trained it. Commands:",
            *lines,
            "",
            "`python -m detector COMMAND --help` lists a command's arguments.",
            "The pipeline itself (prepare, train, evaluate, plot) is run by `dvc repro`.",
        ]
    )


def main() -> None:
    """Run the command that the first argument names.

    Raises:
        UserError: there is no such command.
    """
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(usage())
        return
    if command not in COMMANDS:
        raise UserError(f"{command!r} is no command; choose from {', '.join(COMMANDS)}")
    del sys.argv[1]  # the command parses the arguments that are left
    importlib.import_module(COMMANDS[command][0]).main()


def run() -> None:
    """`main` for a shell: a user's error ends in one line and an exit code."""
    exit_on_user_error(main)


if __name__ == "__main__":
    run()
