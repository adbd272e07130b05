"""Arguments of the ``morel`` command, and its help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from morel_core.errors import MorelError

EXIT_CODES = """\
exit codes:
  0    done
  1    something failed that was not foreseen: a traceback, and one line
  2    wrong input or a missing resource: one line on standard error says what to do
  3    the run diverged, no trial of the search was measured, a campaign lacks replicates, or a run
       came out differently when it was reproduced
  4    the cluster was lost, and the job with it (morel submit, whose other codes are the job's)
  130  interrupted; the same command with the same name=… goes on
"""
OVERRIDES = """\
key=value changes any setting, as in
  training.epochs=5   attack.eps=8/255   objective.preference=[0.2,0.8]
  scaling.num_workers=2   storage_path=/data/runs   tracking.uri=http://host:5000   name=my-run
"""
OVERRIDE = re.compile(r"^[A-Za-z_][\w.]*=")
SEARCH = "name=… of the search"
WHOLE = "name=… of the search, campaign or run"

Command = Callable[[argparse.Namespace, list[str]], int]


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(``key=value`` items, all else): they may stand anywhere, which argparse does not allow."""
    overrides = [argument for argument in argv if OVERRIDE.match(argument)]
    return overrides, [argument for argument in argv if not OVERRIDE.match(argument)]


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before ``--``, and the command of ``morel submit`` behind it."""
    if argv[:1] != ["submit"] or "--" not in argv:
        return list(argv), []
    place = list(argv).index("--")
    return list(argv[:place]), list(argv[place + 1 :])


def parser(given: Mapping[str, Command]) -> argparse.ArgumentParser:
    """All commands and their options.

    Args:
        given: what each command does, by its name; found again as ``command``.
    """
    whole = argparse.ArgumentParser(
        prog="morel",
        description="Train, search and judge adversarially robust classifiers with MOREL.",
        epilog=f"{OVERRIDES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(metavar="COMMAND", required=True)

    train = add(commands, "train", given, "train one network on Ray, recorded in MLflow")
    train.add_argument("recipe", nargs="?", default="digits", help="name or file; default: digits")
    force_option(train)

    tune = add(commands, "tune", given, "search over a space, recorded in MLflow")
    tune.add_argument("space", help="search space by name (demo, smoke, loss_weights, …) or file")
    force_option(tune)
    tune.add_argument(
        "--dry-run", action="store_true",
        help="print the first trials, what they need and what all would cost; start nothing",
    )  # fmt: skip

    campaign = add(commands, "campaign", given, "compare methods: tune each, replicate, test")
    campaign.add_argument("file", help="campaign by name (paper_comparison, ablation) or file")
    campaign.add_argument(
        "--dry-run", action="store_true", help="print methods, trials and replicates, start nothing"
    )
    force_option(campaign)

    status = add(commands, "status", given, "how a search or campaign is, from any machine")
    status.add_argument("name", help="name=… of the search or campaign")

    top = add(commands, "top", given, "how a search is, kept up to date until it ends")
    top.add_argument("name", help=SEARCH)

    logs = add(commands, "logs", given, "what happened in a search, and why a trial failed")
    logs.add_argument("name", help=SEARCH)
    logs.add_argument("trial", nargs="?", type=int, help="number of one trial; default: all")

    stop = add(commands, "stop", given, "pause a search, campaign or run, or end some trials")
    stop.add_argument("name", help=WHOLE)
    stop.add_argument(
        "trials", nargs="*", type=int, metavar="TRIAL",
        help="numbers of trials, which end with their next report; default: pause the search, "
        "which goes on with its command",
    )  # fmt: skip

    sync = add(commands, "sync", given, "deliver to MLflow what waits in the journals of runs")
    sync.add_argument(
        "targets", nargs="*", metavar="RUN",
        help="names of runs in storage_path, or their folders (STORAGE/RUN); default: all there. "
        "tracking.uri=… says where to, if not where a run was begun. Doubles nothing",
    )  # fmt: skip
    sync.add_argument("--dry-run", action="store_true", help="only count what is pending")

    submit_options(add(commands, "submit", given, "run any command as a job on a Ray cluster"))

    clean = add(commands, "clean", given, "free the disk of what a finished run does not need")
    clean.add_argument("name", help="name=… of a finished run or search, or its folder")
    clean.add_argument(
        "--keep", nargs="+", type=int, default=[], metavar="TRIAL",
        help="numbers of trials whose checkpoints stay, beside the winner's, the front's and those "
        "that were verified or tested",
    )  # fmt: skip
    clean.add_argument(
        "--yes", action="store_true", help="delete; default: only show what would go"
    )

    evaluate_options(add(commands, "evaluate", given, "measure the robust accuracy of a network"))

    compare = add(commands, "compare", given, "table of recorded runs, from MLflow")
    compare.add_argument(
        "experiments", nargs="*", metavar="experiment", help="MLflow experiments; default: morel"
    )
    compare.add_argument(
        "--search", nargs="+", metavar="NAME", help="only the trials of these searches or campaigns"
    )
    compare.add_argument(
        "--where", action="append", default=[], metavar="CONDITION",
        help="only runs that meet it, as in 'clean_accuracy >= 0.8' or 'method = mart'; may be "
        "given several times",
    )  # fmt: skip
    compare.add_argument(
        "--sort",
        help="robust_accuracy (default), clean_accuracy, verified_accuracy, test_robust_accuracy, "
        "test_clean_accuracy, name, epochs or seconds",
    )  # fmt: skip
    compare.add_argument(
        "--attack", metavar="NAME",
        help="robust accuracies under this attack, as in autoattack_linf_8-255; default: the one "
        "that decided, and on the test set the strongest that most runs share",
    )  # fmt: skip
    compare.add_argument(
        "--group-by", nargs="+", metavar="SETTING",
        help="one line for runs that agree in these settings (or method, baseline, search): mean "
        "± deviation and interval over their seeds",
    )  # fmt: skip
    compare.add_argument(
        "--baseline", metavar="GROUP", help="test every group against this one, by pairs of seeds"
    )
    compare.add_argument("--format", choices=["table", "markdown", "latex", "csv"], default="table")

    export = add(commands, "export", given, "the plain network as files, measured anew")
    export.add_argument("run", help="run name or id (of a search: its winner), checkpoint folder")
    export.add_argument("--to", required=True, metavar="DIR", help="new folder to write")
    export.add_argument(
        "--num-images", type=int, metavar="N", help="first N test images to measure; default: all"
    )
    export.add_argument("--onnx", action="store_true", help="also model.onnx (the extra [onnx])")

    register = add(commands, "register", given, "a network as a version of a registered model")
    register.add_argument(
        "run", help="run name or id (of a search or campaign: its verified winner)"
    )
    register.add_argument("model", help="name of the registered model in MLflow; made if need be")
    register.add_argument(
        "--champion", action="store_true",
        help="give the verified winner of a search the alias champion, whatever the present one "
        "has; default: if it is better under the same protocol, or there is none",
    )  # fmt: skip

    reproduce = add(commands, "reproduce", given, "train a recorded run once more and compare")
    reproduce.add_argument("run", help="run name or id (of a search: its winner)")
    reproduce.add_argument(
        "--check", action="store_true",
        help="only say what differs here: commit, versions, data (exit code 3 if anything does)",
    )  # fmt: skip

    fork = add(commands, "fork", given, "train as a recorded run, with key=value changed")
    fork.add_argument("run", help="run name or id (of a search: its winner)")

    report = add(commands, "report", given, "one HTML page about a search, to read, send or print")
    report.add_argument("experiment", nargs="?", help="MLflow experiment; default: morel")
    report.add_argument(
        "--search", help="name of a search or campaign; default: the newest, else all trainings"
    )
    report.add_argument("--out", metavar="FILE", help="default: NAME.html in this folder")
    report.add_argument(
        "--no-pictures", dest="pictures", action="store_false",
        help="leave out attacked images and the embedding, which need the network and the data",
    )  # fmt: skip

    validate = add(commands, "validate", given, "check recipes and spaces, run nothing")
    validate.add_argument(
        "files", nargs="*", help="names or files; default: all that come with morel"
    )
    return whole


def force_option(sub: argparse.ArgumentParser) -> None:
    """What commands that resume take."""
    sub.add_argument(
        "--force-code", action="store_true",
        help="resume under other code than the run's own; recorded as morel.code_changes",
    )  # fmt: skip


def submit_options(sub: argparse.ArgumentParser) -> None:
    """What ``morel submit`` takes before ``--``; what follows is the command itself."""
    sub.usage = "morel submit [options] -- COMMAND ..."
    sub.description = (
        "Check the command and the cluster, upload the sources of this folder, run the command "
        "there and follow it: its log is printed, its exit code returned. Interrupting this ends "
        "the watching, not the job. A job lost with its head is submitted again, and goes on."
    )
    sub.add_argument(
        "--address", metavar="URL",
        help="of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, "
        "http://127.0.0.1:8265. Its token: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE",
    )  # fmt: skip
    sub.add_argument(
        "--working-dir", default=".", metavar="DIR",
        help="checkout whose sources are uploaded, without what .gitignore and .rayignore list; "
        "default: this folder",
    )  # fmt: skip
    sub.add_argument(
        "--retries", type=int, default=3, metavar="N",
        help="times that a job lost with its head is submitted again; default: 3",
    )  # fmt: skip
    sub.add_argument(
        "--wait", type=float, default=1800.0, metavar="SECONDS",
        help="for a head that does not answer any more to come back; default: 1800",
    )  # fmt: skip
    sub.add_argument(
        "--no-watch", dest="watch", action="store_false",
        help="submit, say how to watch, and end",
    )  # fmt: skip
    sub.add_argument(  # takes only what is misplaced: `split_command` has cut off what follows --
        "misplaced", nargs=argparse.REMAINDER, metavar="-- COMMAND ...",
        help="any morel command with its settings; -- comes before it",
    )  # fmt: skip


def evaluate_options(sub: argparse.ArgumentParser) -> None:
    """What ``morel evaluate`` takes."""
    sub.add_argument(
        "target",
        help="run name or id (of a search: its winner), checkpoint folder, or a model's name with "
        "--weights, as in torchvision/resnet18, timm/resnet18, digits_cnn",
    )
    sub.add_argument(
        "--weights", metavar="FILE",
        help="state dict (.pt or .safetensors) of a plain model; data.name=…, model.mean=[…] and "
        "model.std=[…] say what it was trained on",
    )  # fmt: skip
    what = sub.add_argument_group("what is measured")
    what.add_argument(
        "--attacks", nargs="+", default=[], metavar="NAME",
        help="pgdN, cwN (pgd20; pgd20x5: 5 restarts; pgd20_worst: worst iterate), fgsm, apgd-ce, "
        "apgd-t, fab-t, square, autoattack, autoattack_plus; default: pgd20",
    )  # fmt: skip
    what.add_argument(
        "--preset", choices=["quick", "paper", "standard"],
        help="a set of attacks: quick, paper (as published), standard (AutoAttack at 8/255)",
    )  # fmt: skip
    what.add_argument(
        "--eps", nargs="+", type=radius, default=[], metavar="EPS",
        help="radii to sweep, as in 2/255 4/255 8/255; default: evaluation.attack.eps",
    )  # fmt: skip
    what.add_argument(
        "--transfer-from", metavar="SOURCE",
        help="also try the images that each pgdN makes on this run or checkpoint",
    )  # fmt: skip
    what.add_argument(
        "--against", metavar="OTHER",
        help="measure this run or checkpoint on the same images too, and test the difference",
    )  # fmt: skip
    what.add_argument("--split", choices=["test", "holdout"], default="test")
    what.add_argument("--num-images", type=int, metavar="N", help="only the first so many")
    what.add_argument("--seed", type=int, help="of the noise; default: evaluation.seed")
    what.add_argument(
        "--no-checks", dest="checks", action="store_false",
        help="do not look for signs that the numbers deceive",
    )  # fmt: skip
    where = sub.add_argument_group("where it runs")
    where.add_argument(
        "--workers", type=int, default=0, metavar="N",
        help="Ray tasks at a time, on this machine or the cluster at cluster.address; default: "
        "this process alone. Chunks of evaluation.batch_size images are divided among them",
    )  # fmt: skip
    where.add_argument(
        "--gpus-per-worker", type=float, metavar="G", help="default: 0 (cpu), 1 (cuda)"
    )
    where.add_argument("--device", default="cpu", help="cpu or cuda; default: cpu")


def radius(text: str) -> float:
    """``8/255`` or ``0.03`` as a number."""
    from orchestrator.settings.interpolation import number

    try:
        return float(number(text))
    except MorelError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add(
    commands: Any, name: str, given: Mapping[str, Command], summary: str
) -> argparse.ArgumentParser:
    """A subcommand with the options that all share."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"{OVERRIDES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=given[name])
    sub.add_argument("--json", action="store_true", help="print one JSON document, nothing else")
    sub.add_argument("--debug", action="store_true", help="show tracebacks and warnings")
    return sub
