"""`lenext tune`: from the request to the best settings, trial by trial.

Optuna proposes (tree-structured Parzen estimators; Bergstra et al. 2011, https://papers.nips.cc/paper/4443) and keeps
the search in study.db; a trial is a run of `lenext train`. The first trial is what training would do without a search,
so that the search can only improve on it. What a trial tries is a function of the seed, its number and the trials
before it, and an interrupted trial goes on where its run was, so an interrupted search ends as one that was not.

Trials that do worse than the median of those before them at the same point are pruned, after three tenths of the run
and never among the first five. Hyperband would need more trials than people have time for: it divides them among
brackets, each of which starts its own search. Values are reported at tenths of a run, not at epochs, because where
time is the limit trials differ in their number of epochs, and only at the same share of a schedule can they be
compared.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import shlex
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lenext import config, runs, terminal
from lenext.config import TrainConfig
from lenext.data import dataset
from lenext.data.loader import derive_seed
from lenext.data.sources import absolute
from lenext.training import begin, process
from lenext.training.choose import choose
from lenext.training.interruption import Interruption
from lenext.tune import report, space, trial
from lenext.tune.space import LR_FACTOR, Space

log = logging.getLogger("lenext")

STUDY, NAME = "study.db", "lenext"
UNPRUNED_TRIALS, UNPRUNED_TENTHS = 5, 3
# To say what matters: finished trials that are needed, and the share of them that counts as good. A tenth, as usual for
# hundreds of trials, would be one or two here, and what they share by chance would seem to matter.
ENOUGH, GOOD = 10, 0.3


def run(
    data: str,
    *,
    trials: int = 20,
    out: str | None = None,
    space: str | None = None,
    models: Sequence[str] = (),
    time_budget_per_trial: float | None = None,
    file: str | None = None,
    **settings: Any,
) -> bool:
    """Search for the settings with the highest validation accuracy; whether any trial came to an end.

    trials: how many, those of an interrupted search with the same `out` included. out: folder of the search,
    runs/<date>-tune if not given. space: file that says what is searched, see `read_space`. models: architectures to
    choose from; one is held fixed. time_budget_per_trial: seconds. file: configuration file with settings to hold
    fixed. settings: any other field of TrainConfig, held fixed.

    Raises ValueError, before the first trial, where data or settings cannot work; KeyboardInterrupt, with a sentence
    that says how to go on, at Ctrl-C and SIGTERM.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("lenext tune needs Optuna: pip install 'lenext[tune]'")
    if trials < 1:
        raise ValueError(f"trials is {trials}; it must be greater than 0")
    held = _held(settings, file, models, time_budget_per_trial)
    search = _Search(absolute(data), held, space, models)
    folder = Path(out) if out is not None and (Path(out) / STUDY).is_file() else runs.create(out, "tune")
    refusal = f"another lenext tune is at work in {folder}; wait for it, or choose another --out"
    with runs.alone(folder / ".lock", refusal), Interruption():
        search.open(folder)
        try:
            search.go_on(trials)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{len(search.finished())} of {trials} trials are finished and kept; go on with the same command "
                f"and --out {shlex.quote(str(folder))}"
            ) from None
        return search.conclude()


def _held(
    settings: dict[str, Any], file: str | None, models: Sequence[str], time_budget: float | None
) -> dict[str, Any]:
    """The settings that are the same in all trials."""
    held = {**(config.read_file(file) if file else {}), **settings}
    if models:
        if "model" in settings and list(models) != [settings["model"]]:
            raise ValueError("model is given twice; name all architectures in one place")
        held.pop("model", None)
        held |= {"model": models[0]} if len(models) == 1 else {}
    if time_budget is not None:
        if held.get("epochs") is not None:
            raise ValueError("a trial is as long as its epochs or as its time budget; give one of the two")
        held["time_budget"] = float(time_budget)
    if held.get("root"):
        held["root"] = absolute(held["root"])
    held.pop("data", None)
    return held


class _Search:
    """The data, what is held and what is searched, and the Optuna study in the folder once it is opened."""

    def __init__(self, data: str, held: dict[str, Any], file: str | None, models: Sequence[str]) -> None:
        self.data, self.held = data, held
        given = {**held, "data": data} | ({"model": models[0]} if models else {})
        base = begin.configure(given)
        if base.recipe == "probe":
            raise ValueError("recipe probe has no epochs whose settings could be searched; choose another, such as fit")
        self.defaults, self.set, sentences = begin.settled(base)
        for sentence in sentences:
            log.info("%s", sentence)
        self.seed = base.seed
        self.space: Space = (
            space.read_space(file, held, models) if file else space.default_space(self.defaults, held, models)
        )
        if not self.space:
            raise ValueError("every setting of the search is held fixed; take some away, or name others with --space")

    # ----------------------------------------------------------------------------------------------- the study

    def open(self, folder: Path) -> None:
        """Begin the study in a new folder, or take up the one there; ValueError if that is another search."""
        import optuna
        from sqlalchemy import URL

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = URL.create("sqlite", database=os.path.abspath(folder / STUDY)).render_as_string()
        self.folder, self.storage = folder, optuna.storages.RDBStorage(url)
        self.study = optuna.create_study(
            storage=self.storage,
            study_name=NAME,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(UNPRUNED_TRIALS, n_warmup_steps=UNPRUNED_TENTHS),
        )
        facts: dict[str, Any] = {
            "data": self.data,
            "held": self.held,
            "space": space.to_dict(self.space),
            "pictures": dataset.fingerprint(self.set.membership()),
        }
        before = self.study.user_attrs.get("search")
        if before is None:
            if not self.study.trials:
                self.study.enqueue_trial(space.start(self.space, self.defaults))
            self.study.set_user_attr("search", facts)
            log.info("searching %s; the first trial is the defaults", ", ".join(self.space))
        elif other := next((name for name, value in facts.items() if before[name] != value), None):
            said = {
                "held": "with other settings held fixed",
                "space": "of another space",
                "pictures": "on other pictures",
            }
            raise ValueError(f"{folder} holds a search {said.get(other, 'on other data')}; choose another --out")
        else:
            log.info("going on with %s after %d trials", folder, len(self.finished()))

    def finished(self) -> list[Any]:
        return [one for one in self.study.trials if one.state.is_finished()]

    def go_on(self, trials: int) -> None:
        """Trials until there are so many."""
        done = len(self.finished())
        with terminal.bar("trials", trials) as bar:
            bar.to(done)
            names = [_setting(name) for name in self.space]
            log.info("%s", report.heading())
            for number in range(done, trials):
                self._try(number, bar)
                rows = report.read(self.study)
                report.write_tables(self.folder, rows, names)
                log.info("%s", report.line(rows, rows[-1]))
                bar.advance(1)

    def conclude(self) -> bool:
        """The report, and what to do next; whether there is a best trial."""
        rows = report.read(self.study)
        best = report.best(rows)
        if best is None or best.score is None:
            why = next((row.reason for row in rows if row.reason), "")
            log.error("no trial came to an end; the first failed because: %s", why)
            return False
        page = report.write_html(
            self.folder, rows, self.space, importances=importances(self.study, rows), defaults=self.defaults,
            data=self.data, held=self.held, validation_pictures=int(self.set.samples.in_split("val").sum()),
        )  # fmt: skip
        out = shlex.quote(str(self.folder / report.BEST))
        log.info("best: trial %d, validation accuracy %.2f %%", best.number, 100 * best.score)
        log.info("report: %s", page)
        log.info("train with these settings: lenext train %s --config %s", shlex.quote(self.data), out)
        return True

    # --------------------------------------------------------------------------------------------------- a trial

    def _try(self, number: int, bar: terminal.Bar) -> None:
        """Carry out the next trial, or the one that was interrupted, and tell the study how it ended."""
        import optuna
        from optuna.trial import TrialState

        running = [one.number for one in self.study.trials if one.state == TrialState.RUNNING]
        self.study.sampler = optuna.samplers.TPESampler(seed=derive_seed("tune", self.seed, number) % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if running:
                study_id = self.storage.get_study_id_from_name(NAME)
                identity = self.storage.get_trial_id_from_study_id_trial_number(study_id, running[0])
                proposal = optuna.trial.Trial(self.study, identity)
                process.stop_left_over(proposal.user_attrs.get("process"))
            else:
                proposal = self.study.ask()
            drawn = {name: values.draw(proposal, name) for name, values in self.space.items()}
        run = self.folder / "trials" / f"{proposal.number:04d}"
        begun, before = time.time(), proposal.user_attrs.get("seconds", 0.0)
        reported = self.study.trials[proposal.number].intermediate_values
        watch = trial.Watch(proposal, run, self.defaults.select, reported, lambda said: bar.advance(0, note=said))
        try:
            settings = self._settings(drawn)
        except ValueError as error:  # what was drawn does not go together
            reason: str | None = str(error)
        else:
            proposal.set_user_attr("settings", {name: settings[name] for name in map(_setting, self.space)})
            try:
                reason = trial.follow(
                    self._arguments(run, settings),
                    run,
                    started=lambda mark: proposal.set_user_attr("process", mark),
                    look=watch.look,
                )
            finally:
                proposal.set_user_attr("seconds", round(before + time.time() - begun, 1))
        kept = watch.kept
        if reason is None and kept is None:
            reason = "the run ended without an epoch"
        if kept is not None:
            proposal.set_user_attr("kept", dataclasses.asdict(kept))
        if reason is not None:
            proposal.set_user_attr("reason", reason)
            # To the sampler a failed trial says nothing, a pruned one that its settings are bad, as these are.
            diverged = process.DIVERGED in reason
            self.study.tell(proposal, state=TrialState.PRUNED if diverged else TrialState.FAIL)
        elif watch.pruned:
            self.study.tell(proposal, state=TrialState.PRUNED)
        else:
            assert kept is not None
            self.study.tell(proposal, kept.accuracy)
        if reason is None:
            process.forget_messages(run)
        best = report.best(report.read(self.study))
        for one in (self.folder / "trials").glob("[0-9]*"):
            if one.is_dir():
                trial.tidy(one, best=best is not None and one.name == f"{best.number:04d}")

    def _settings(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """All settings of a trial: those held, those drawn, and what training chooses to go with them."""
        settings = {**self.held, **{name: value for name, value in drawn.items() if name != LR_FACTOR}}
        given = begin.configure({**settings, "data": self.data})
        chosen, _ = choose(given, self.set.samples)
        if LR_FACTOR in drawn:
            assert chosen.lr is not None
            chosen = dataclasses.replace(chosen, lr=chosen.lr * drawn[LR_FACTOR])
        settled = _changed(given, chosen)
        return {**settings, **settled}

    def _arguments(self, run: Path, settings: dict[str, Any]) -> list[str]:
        # What all trials read is kept between them, and their figures are in the report.
        extra = {"cache": "true", "track": "none"}
        flags = [word for name, value in extra.items() if name not in settings for word in (f"--{name}", value)]
        return process.train_or_resume(self.data, run, space.write_yaml(settings), flags)


def importances(study: Any, trials: Sequence[report.Trial]) -> dict[str, float]:
    """Share of each searched setting in what good trials have in common, the largest first; {} where too few ended."""
    import optuna

    done = [one for one in trials if one.state == "done"]
    if len(done) < ENOUGH or len({one.score for one in done}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=GOOD)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return found if any(found.values()) else {}


def _setting(name: str) -> str:
    return "lr" if name == LR_FACTOR else name


def _changed(given: TrainConfig, chosen: TrainConfig) -> dict[str, Any]:
    """The settings that `chosen` has and `given` left open."""
    before, after = dataclasses.asdict(given), dataclasses.asdict(chosen)
    return {name: value for name, value in after.items() if value != before[name]}
