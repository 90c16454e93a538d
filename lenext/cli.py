"""The command line: the only file that defines commands and flags.

Results go to standard output, progress and messages to standard error. Exit status: 0 done, 1 the work failed,
2 the request was wrong, 130 interrupted. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
from argparse import OPTIONAL, SUPPRESS, Action
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from lenext.config import described_fields, nearest, read_file
from lenext.version import __version__

DESCRIPTION = "Image classification, from a folder of photos to a trained, evaluated, explained classifier."
VIEWS = "Mirrored and turned versions of a picture, 1 to 8, that an answer averages (default: as trained)"
LICENSE = "Licence as the Hub names it, such as apache-2.0 or cc-by-4.0 (default: none is named)"
PLACE = "Where the data is (default: where it usually is)"
Output = Literal["table", "json"]
ExportFormat = Literal["onnx", "openvino", "torch"]
PredictOutput = Literal["table", "json", "jsonl", "csv", "parquet"]
Language = Literal["en", "zh"]


class _Help(DefaultHelpFormatter):
    """Help with the choices and one default, without the types of Python."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog.replace(" [options]", ""), **options)

    def _get_help_string(self, action: Action) -> str:
        text, default = action.help or "", action.default
        if not action.option_strings or _is_switch(action) or default in (None, SUPPRESS, {}, []):
            return f"{text} (required)" if action.option_strings and action.required else text
        default = str(default).lower() if isinstance(default, bool) else default
        return text if "(default: " in text else f"{text} (default: {default})"

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        choices = re.findall(r"Literal\[([^\]]*)\]", self._get_type_str(action) or "")
        shown = ",".join(choices).replace("'", "").replace(" ", "")
        return f"{{{shown}}}" if choices else super()._get_default_metavar_for_optional(action)

    def _format_args(self, action: Action, default_metavar: str) -> str:
        return "" if _is_switch(action) else super()._format_args(action, default_metavar)

    def _format_usage(self, usage: Any, actions: Any, *args: Any, **kwargs: Any) -> str:
        return super()._format_usage(usage, actions, *args, **kwargs).replace(" ]", "]")


def _is_switch(action: Action) -> bool:
    """Whether it is given without a value, such as --allow-urls."""
    return bool(action.option_strings) and action.nargs == OPTIONAL


class _Parser(ArgumentParser):
    """A parser whose errors are one sentence with the nearest name, exit status 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message, command = " ".join(message.split()), self.prog.replace(" [options]", "")
        if found := re.search(r"[Uu]nrecognized arguments: (.*)", message):
            unknown = next((w for w in found[1].split() if w.startswith("-")), found[1].split()[0]).split("=")[0]
            known = {flag.lstrip("-") for c in _commands(self).values() for flag in c._option_string_actions}
            hint = nearest(unknown.lstrip("-"), known).replace("mean '", "mean '--")
            message = f"unknown option {unknown}{hint}"
        elif found := re.search(r"argument COMMAND: invalid choice: '([^']*)'", message):
            message = f"unknown command {found[1]!r}{nearest(found[1], COMMANDS)}"
        elif found := re.search(r"argument ACTION: invalid choice: '([^']*)' \(choose from (.*)\)", message):
            choices = re.findall(r"\w+", found[2])
            message = f"unknown action {found[1]!r}{nearest(found[1], choices)}; there are {', '.join(choices)}"
        elif found := re.search(r'expected "(\w+)\.action" to be one of \{(.*?)\}', message):
            message = f"{found[1]} needs an action: {found[2].replace(',', ', ')}"
        elif found := re.search(r'Parser key "([^"]+)": (.*)', message):
            message = f"--{found[1].rsplit('.', 1)[-1].replace('_', '-')}: {_expectation(found[2])}"
        elif "subcommand" in message:
            message = f"a command is missing: {', '.join(COMMANDS)}"
        elif found := re.search(r"arguments are required: (.*)", message):
            keys = [key.split(".") for key in found[1].split(", ")]
            message = f"missing: {', '.join(_shown(self, key) for key in keys)}"
            command = " ".join(["lenext", *keys[0][:-1]])
        _fail(
            message,
            hint="lenext --help lists the commands, lenext COMMAND --help their options"
            if command == "lenext"
            else f"{command} --help lists its options",
        )


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the command `lenext`; ends the process with the exit status."""
    _print_anything()
    parser = build_parser()
    args = parser.parse_args(list(sys.argv[1:] if argv is None else argv), defaults=False)
    command = args.subcommand
    _quiet_libraries()
    try:
        status = COMMANDS[command](args[command] or Namespace())
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        # Training says what can be resumed; the other commands have nothing to lose.
        print(f"lenext: interrupted{': ' if str(interrupt) else ''}{interrupt}", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: that is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except ValueError as error:
        if os.environ.get("LENEXT_DEBUG"):
            raise
        _fail(str(error))
    except (OSError, MemoryError, FloatingPointError) as error:
        if os.environ.get("LENEXT_DEBUG"):
            raise
        _fail(_spoken(error, command), status=1)
    sys.exit(status)


def build_parser() -> ArgumentParser:
    """Every command with its flags; the help texts of `train` come from TrainConfig."""
    parser = _Parser(
        prog="lenext", description=DESCRIPTION, version=__version__, allow_abbrev=False, formatter_class=_Help
    )
    commands = parser.add_subcommands(required=True, metavar="COMMAND")

    demo = _command("Train, evaluate and use a classifier of real photographs, in about three minutes on two cores.")
    demo.add_argument("--out", type=str | None, default=None, help="Run folder (default: runs/<date>-demo)")
    demo.add_argument("--seed", type=int, default=0, help="Which of the random 75/25 splits is used")
    demo.add_argument("--time-budget", type=float, default=165.0, help="Seconds for training and its evaluation")
    commands.add_subcommand("demo", demo, help="the main job on real photographs, no data needed")

    train = _command("Train a classifier on a folder of pictures, a manifest or another form of data.")
    for name, kind, default, text in described_fields():
        if name == "data":
            train.add_argument(name, nargs="?", type=str, default=None, help=text)
        else:
            train.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
    train.add_argument("--config", type=str | None, default=None, help="YAML or JSON file with settings")
    train.add_argument("--out", type=str | None, default=None, help="Run folder (default: runs/<date>-<model>)")
    train.add_argument("--resume", type=str | None, default=None, metavar="RUN", help="Go on with this run")
    train.add_argument(
        "--find-lr", type=bool, nargs="?", const=True, default=False,
        help="Try rising learning rates for a minute, draw the loss over them, suggest one, and stop",
    )  # fmt: skip
    commands.add_subcommand("train", train, help="train a classifier")

    evaluate = _command("Measure a classifier on the split it was not trained on, or on other data.")
    evaluate.add_argument("run", type=str, help="Run folder or classifier file")
    evaluate.add_argument("data", nargs="?", type=str, default=None, help="Other data (default: the run's own)")
    evaluate.add_argument("--root", type=str | None, default=None, help="Folder that the pictures of a manifest lie in")
    evaluate.add_argument("--split", type=str | None, default=None, help="train, val or test (default: test, else val)")
    evaluate.add_argument("--format", type=Output, default="table", help="Form of the answer")
    evaluate.add_argument("--views", type=int | None, default=None, help=VIEWS)
    commands.add_subcommand("evaluate", evaluate, help="measure a classifier")

    predict = _command("Name the classes of pictures.")
    predict.add_argument(
        "run", type=str, help="Run folder, classifier file, or the name of a network with ImageNet weights"
    )
    predict.add_argument(
        "paths", nargs="+", type=str, help="Pictures, folders of pictures, patterns like 'a/*.jpg', or URLs"
    )
    predict.add_argument("--top-k", type=int, default=5, help="Number of classes in each answer")
    predict.add_argument(
        "--format", type=PredictOutput | None, default=None, help="Form of the answer (default: what the ending of "
        "--out says, else a table)",
    )  # fmt: skip
    predict.add_argument(
        "--out", type=str | None, default=None, help="File for the answer; an interrupted command goes on where it was "
        "(default: standard output)",
    )  # fmt: skip
    predict.add_argument(
        "--threshold", type=float | None, default=None, help="Probability below which the answer is 'unknown', or a "
        "picture of several labels does not have one (default: none; 0.5 for several labels)",
    )  # fmt: skip
    predict.add_argument(
        "--save-pictures", type=str | None, default=None, metavar="FOLDER", help="New folder for the pictures with "
        "their answers as titles",
    )  # fmt: skip
    predict.add_argument(
        "--allow-urls", type=bool, nargs="?", const=True, default=False, help="Fetch URLs, from public addresses only"
    )
    predict.add_argument("--backend", type=str, default="auto", help="Way to run the network, or auto: the fastest")
    predict.add_argument(
        "--tolerance",
        type=float,
        default=0.001,
        help="How far from float32 the fastest may be, as a share of the outputs' norm",
    )
    predict.add_argument(
        "--language", type=Language | None, default=None, help="Of the ImageNet class names (default: en)"
    )
    predict.add_argument("--views", type=int | None, default=None, help=VIEWS)
    commands.add_subcommand("predict", predict, help="name the classes of pictures")

    serve = _command("Answer over HTTP and show a web page, until Ctrl-C.")
    serve.add_argument(
        "runs", nargs="+", type=str, metavar="RUN", help="Run folders, classifier files, networks; first is the default"
    )
    serve.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all networks")
    serve.add_argument("--port", type=int, default=8000, help="Port to listen on, 0 for any that is free")
    serve.add_argument(
        "--api-key", type=str | None, default=None, help="Key that senders must know (or set LENEXT_API_KEY)"
    )
    serve.add_argument(
        "--allow-urls", type=bool, nargs="?", const=True, default=False, help="Fetch pictures from public addresses too"
    )
    serve.add_argument("--max-upload", type=float, default=20, help="Largest request, megabytes")
    serve.add_argument("--queue", type=int, default=1024, help="Pictures that may wait; more are told to come again")
    serve.add_argument("--backend", type=str, default="auto", help="Way to run the network, or auto: the fastest")
    serve.add_argument(
        "--tolerance",
        type=float,
        default=0.001,
        help="How far from float32 the fastest may be, as a share of the outputs' norm",
    )
    serve.add_argument("--views", type=int | None, default=None, help=VIEWS)
    serve.add_argument(
        "--no-page", type=bool, nargs="?", const=True, default=False, help="Only the HTTP API, no web page"
    )
    commands.add_subcommand("serve", serve, help="answer over HTTP, with a web page")

    export = _command(
        "Write a classifier for other runtimes, and replay real pictures to see that it answers the same."
    )
    export.add_argument("run", type=str, help="Run folder, classifier file, or a network with ImageNet weights")
    export.add_argument("--format", type=ExportFormat, required=True, help="ONNX, OpenVINO or torch.export")
    export.add_argument(
        "--int8", type=bool, nargs="?", const=True, default=False,
        help="Weights and activations of 8 bits, scaled by training pictures; not for torch",
    )  # fmt: skip
    export.add_argument("--out", type=str | None, default=None, help="Folder (default: RUN/export/<format>[-int8])")
    export.add_argument(
        "--min-agreement",
        type=float | None,
        default=None,
        help="Share of the pictures with the same answer, 0 to 1, below which it fails (default: 0.99, int8: 0.95)",
    )
    export.add_argument(
        "--pictures", type=int | None, default=None, help="Validation pictures to replay, 0 for none (default: all)"
    )
    export.add_argument(
        "--data", type=str | None, default=None, help="Where the pictures are now, or others (default: the run's own)"
    )
    export.add_argument("--root", type=str | None, default=None, help="Folder that the pictures of a manifest lie in")
    commands.add_subcommand("export", export, help="write a classifier for other runtimes")

    check = _command("Look for what would spoil a training: broken, double, mislabelled and badly taken pictures.")
    check.add_argument("data", type=str, help="Folder, manifest, data set as it is distributed, shards, or hf:NAME")
    check.add_argument("--root", type=str | None, default=None, help="Folder that the pictures of a manifest lie in")
    check.add_argument(
        "--run",
        type=str | None,
        default=None,
        help="Run folder, classifier file or network with ImageNet weights, to find probable label errors with",
    )
    check.add_argument("--format", type=Output, default="table", help="Form of the answer")
    check.add_argument("--out", type=str | None, default=None, help="File for the answer as JSON")
    check.add_argument("--html", type=str | None, default=None, help="File for a page with the pictures in question")
    check.add_argument(
        "--write-manifest",
        type=str | None,
        default=None,
        help="File for a list of the pictures that are fit to train on",
    )
    check.add_argument(
        "--write-shards", type=str | None, default=None, help="Folder for these pictures as WebDataset shards"
    )
    for name in ("seed", "val_fraction", "test_fraction", "max_unreadable"):
        kind, default, text = next(field[1:] for field in described_fields() if field[0] == name)
        check.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)
    commands.add_subcommand("check", check, help="check a data set before training")

    tune = _command(
        "Search for the settings that suit the data best: every trial is a training run, the first with the defaults."
    )
    tune.add_argument("data", type=str, help="As in train")
    tune.add_argument("--trials", type=int, default=20, help="Runs, those of an interrupted search in --out included")
    tune.add_argument(
        "--time-budget-per-trial",
        type=float | None,
        default=None,
        help="Seconds that a trial may take where epochs are not given (default: 300)",
    )
    tune.add_argument("--model", type=str, nargs="+", default=[], help="Architecture, or several to choose from")
    tune.add_argument(
        "--space",
        type=str | None,
        default=None,
        help="YAML file that says what is searched: 'lr: {low: 0.0001, high: 0.01, log: true}' or "
        "'optimizer: [sgd, adamw]', one a line",
    )
    tune.add_argument("--config", type=str | None, default=None, help="YAML or JSON file with settings to hold fixed")
    tune.add_argument(
        "--out", type=str | None, default=None, help="Folder of the search; an interrupted one goes on there "
        "(default: runs/<date>-tune)",
    )  # fmt: skip
    for name, kind, _, text in described_fields():
        if name not in ("data", "model", "time_budget"):
            tune.add_argument(f"--{name.replace('_', '-')}", type=kind | None, default=None, help=f"Held fixed: {text}")
    commands.add_subcommand("tune", tune, help="search for the best settings")

    study = _command("Controlled comparisons: every network or setting trained from several seeds, and a report.")
    commands.add_subcommand("study", study, help="compare networks or settings, with statistics")
    actions = study.add_subcommands(required=True, metavar="ACTION", dest="action")
    listed = _command("List the studies: their question, their runs, and the time they take on this machine.")
    listed.add_argument("name", nargs="?", type=str, default=None, help="Study, or study file, to list run by run")
    listed.add_argument("--data", type=str | None, default=None, help=PLACE)
    actions.add_subcommand("list", listed, help="list the studies, or the runs of one")
    run = _command("Train every run of a study that is not done yet, several at once, and write the report.")
    run.add_argument("name", type=str, help="Study that comes along, or the path of a study file of your own")
    run.add_argument("--data", type=str | None, default=None, help=PLACE)
    run.add_argument(
        "--seeds", type=int | None, default=None, help="Trainings of every cell (default: as in the study)"
    )
    run.add_argument(
        "--budget", type=str | None, default=None, metavar="TIME", help="Stop after so long, such as 90m, 4h or 1h30m; "
        "what is running is saved (default: when all is done)",
    )  # fmt: skip
    run.add_argument(
        "--devices", type=int | None, default=None, help="Trainings side by side, each on a GPU or on a part of the "
        "CPU's cores (default: as many as there are GPUs, or cores)",
    )  # fmt: skip
    run.add_argument("--out", type=str | None, default=None, help="Folder (default: runs/studies/NAME)")
    actions.add_subcommand("run", run, help="train what is missing, and write the report")
    report = _command("Write the report of a study anew, from its run folders.")
    report.add_argument("name", type=str, help="Study that comes along, or the path of a study file of your own")
    report.add_argument(
        "--seeds",
        type=int | None,
        default=None,
        help="Of every cell (default: as in the study, or as many as were run)",
    )
    report.add_argument("--out", type=str | None, default=None, help="Folder of the study (default: runs/studies/NAME)")
    actions.add_subcommand("report", report, help="write the report anew")

    card = _command("Write the model card of a run: what it is, how good, how it was made and what its limits are.")
    card.add_argument("run", type=str, help="Run folder")
    card.add_argument("--out", type=str | None, default=None, help="File for the card (default: standard output)")
    card.add_argument("--license", type=str | None, default=None, help=LICENSE)
    commands.add_subcommand("card", card, help="write a model card")

    push = _command("Put a run's classifier and its model card on the Hugging Face Hub; predictions and pictures stay.")
    push.add_argument("run", type=str, help="Run folder")
    push.add_argument("address", type=str, metavar="hf:USER/NAME", help="Where to; made where there is none")
    push.add_argument("--private", type=bool, nargs="?", const=True, default=False, help="Nobody else may read it")
    push.add_argument("--license", type=str | None, default=None, help=LICENSE)
    commands.add_subcommand("push", push, help="publish a classifier")

    models = _command("List the architectures, or show one layer by layer.")
    models.add_argument("name", nargs="?", type=str, default=None, help="Architecture to show")
    commands.add_subcommand("models", models, help="list the architectures")
    return parser


def _command(description: str) -> _Parser:
    return _Parser(description=description, allow_abbrev=False)


def _commands(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """The parser itself or, of the outermost one, its commands."""
    action = getattr(parser, "_subcommands_action", None)
    return dict(action._name_parser_map) if action else {"": parser}


def _shown(parser: ArgumentParser, key: list[str]) -> str:
    """What the help calls an argument. key: the commands that lead to it, then its own name in the program."""
    for command in key[:-1]:
        parser = _commands(parser)[command]
    action = next(action for action in parser._actions if action.dest == key[-1])
    return str(action.option_strings[0] if action.option_strings else action.metavar or action.dest.upper())


# ---------------------------------------------------------------------------------------------------- commands


def _demo(args: Namespace) -> int:
    from lenext import demo, terminal

    with terminal.messages():
        demo.run(**_given(args))
    return 0


def _train(args: Namespace) -> int:
    given = _given(args)
    from lenext import runs, terminal
    from lenext.training import begin

    resume, find_lr = given.pop("resume", None), given.pop("find_lr", False)
    with terminal.messages():
        if resume is not None:
            terminal.show_run(begin.resume(resume, given))
            return 0
        out, file = given.pop("out", None), given.pop("config", None)
        settings = begin.configure(given, file=read_file(file) if file else {})
        if find_lr:
            terminal.show_lr_search(*begin.find_lr(settings, out))
        else:
            terminal.show_run(begin.train(settings, out, started=runs.process_start()))
    return 0


def _evaluate(args: Namespace) -> int:
    from lenext import terminal
    from lenext.evaluation import evaluate

    given = _given(args)
    form = given.pop("format", "table")
    with terminal.messages():
        split, result = evaluate.evaluate_run(
            given["run"], given.get("data"), given.get("split"), given.get("root"), given.get("views")
        )
    terminal.show_evaluation(split, result, form)
    return 0


def _predict(args: Namespace) -> int:
    from lenext import predict, terminal

    given = _given(args)
    with terminal.messages():
        answered = predict.run(given.pop("run"), given.pop("paths"), form=given.pop("format", None), **given)
    return 0 if answered else 1


def _serve(args: Namespace) -> int:
    from lenext import terminal
    from lenext.serving import command

    given = _given(args)
    with terminal.messages():
        return command.run(
            given.pop("runs"), key=given.pop("api_key", None), page=not given.pop("no_page", False), **given
        )


def _export(args: Namespace) -> int:
    from lenext import terminal
    from lenext.export import command

    given = _given(args)
    with terminal.messages():
        folder = command.run(given.pop("run"), given.pop("format"), **given)
    terminal.output.print(f"exported to {folder}", markup=False)
    return 0


def _check(args: Namespace) -> int:
    from lenext import terminal
    from lenext.check import command
    from lenext.data.sources import SplitOptions

    given = _given(args)
    options = {name: given.pop(name) for name in ("seed", "val_fraction", "test_fraction") if name in given}
    with terminal.messages():
        sound = command.run(
            given.pop("data"), form=given.pop("format", "table"), options=SplitOptions(**options), **given
        )
    return 0 if sound else 1


def _tune(args: Namespace) -> int:
    from lenext import terminal
    from lenext.tune import command

    given = _given(args)
    with terminal.messages():
        found = command.run(
            given.pop("data"), models=tuple(given.pop("model", ())), file=given.pop("config", None), **given
        )
    return 0 if found else 1


def _study(args: Namespace) -> int:
    from lenext import terminal
    from lenext.study import command

    given = _given(args[args.action] or Namespace())
    with terminal.messages():
        done = getattr(command, args.action)(**given)
    return 0 if done else 1


def _card(args: Namespace) -> int:
    from lenext import terminal
    from lenext.hub import card

    given = _given(args)
    with terminal.messages():
        text = card.command(given.pop("run"), **given)
    sys.stdout.write(text or "")
    return 0


def _push(args: Namespace) -> int:
    from lenext import terminal
    from lenext.hub import push

    given = _given(args)
    run, address = given.pop("run"), given.pop("address")
    with terminal.messages():
        page = push.command(run, address, **given)
    sys.stdout.write(f"{page}\nnext         lenext predict {address} PICTURE...\n")
    return 0


def _models(args: Namespace) -> int:
    from lenext import terminal

    terminal.show_models(_given(args).get("name"))
    return 0


COMMANDS = {
    "demo": _demo,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "serve": _serve,
    "export": _export,
    "check": _check,
    "tune": _tune,
    "study": _study,
    "card": _card,
    "push": _push,
    "models": _models,
}


def _given(args: Namespace) -> dict[str, Any]:
    """What the user wrote, without the options left out."""
    return {key: value for key, value in vars(args).items() if value is not None}


def _fail(message: str, *, hint: str = "", status: int = 2) -> NoReturn:
    print(f"lenext: {message}", file=sys.stderr)
    if hint:
        print(f"        {hint}", file=sys.stderr)
    sys.exit(status)


def _expectation(message: str) -> str:
    """The parser's complaint about a value in a user's words."""
    value = re.search(r"(?:Got|Given) value: (\S+)", message)
    kinds = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "dict": "a mapping",
        "list": "a list such as [0.5, 0.5, 0.5]",
    }
    literals = re.findall(r"Literal\[([^\]]*)\]", message)
    options = [f"one of {choices.replace(chr(39), '')}" for choices in literals]
    options += [kinds[name] for name in re.findall(r"Expected (?:a )?<class '(\w+)'>", message) if name in kinds]
    if not value or not options:
        return message
    return f"{value[1]!r} is not {' or '.join(dict.fromkeys(options))}"


def _spoken(error: OSError | MemoryError | FloatingPointError, command: str) -> str:
    import errno

    if isinstance(error, MemoryError):
        said = str(error)  # ours says what needs less; a library's only how much it asked for
        return said if said.startswith("out of memory") else "out of memory; try a smaller --batch-size or --image-size"
    if isinstance(error, FloatingPointError):
        return str(error)
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        where = f" while writing {Path(error.filename).name}" if error.filename else ""
        mend = "lenext train --resume RUN" if command in ("train", "demo") else "repeat the command"
        return f"the disk is full{where}; what was saved before is whole. Make room, then {mend}"
    return str(error)


def _print_anything() -> None:
    """What standard output has no character for is escaped as JSON has it, which leaves JSON valid."""
    codecs.register_error("json", _escaped)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="json")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _quiet_libraries() -> None:
    """Third-party notices that a user cannot act on."""
    import warnings

    if not os.environ.get("LENEXT_DEBUG"):
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


if __name__ == "__main__":
    main()
