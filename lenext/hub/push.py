"""`lenext push`: a run's classifier and its card to the Hugging Face Hub.

What is sent is what others need, and nothing that names the pictures or folders of this machine: the classifier file
without the place of its data, the card, and preprocess.json for those who read the network elsewhere. Predictions, the
report and its pictures stay.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

from lenext import runs
from lenext.classifier import Classifier, load
from lenext.hub.card import data_name, make_card
from lenext.models.hub import LOG_IN, repository, spoken
from lenext.version import __version__

log = logging.getLogger("lenext")

PUBLISHED = ("fingerprint", "validation", "evaluation")  # of what a classifier knows about its making
CARD, PREPROCESS = "README.md", "preprocess.json"


def command(path: str, address: str, *, private: bool = False, license: str | None = None) -> str:
    """Send the classifier of a run folder to hf:USER/NAME, which is made where there is none; returns its page.

    private: nobody else may read it. license: as the Hub names it, such as apache-2.0.
    Raises ValueError for what the user can mend: a name, a token, a repository of someone else; OSError where the Hub
    cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    name = repository(address)
    with tempfile.TemporaryDirectory() as temporary:
        files = write_files(runs.require(path), Path(temporary), address, license)
        if get_token() is None:
            raise ValueError(f"the Hub wants to know who you are: {LOG_IN}; the token needs the right to write")
        api = HfApi()
        with spoken(address):
            page = str(api.create_repo(name, private=private or None, exist_ok=True))
            if private and not api.model_info(name).private:
                raise ValueError(f"{address} is there already and public; make it private on {page}/settings first")
            log.info("sending %s to %s", ", ".join(file.name for file in files), page)
            api.create_commit(
                name,
                [CommitOperationAdd(file.name, file) for file in files],
                commit_message=f"Classifier and card, by lenext {__version__}",
            )
    return page


def write_files(run: Path, folder: Path, address: str, license: str | None) -> list[Path]:
    """What is sent, as files in a folder."""
    classifier = load(run)
    card, preprocess = folder / CARD, folder / PREPROCESS
    card.write_text(make_card(run, license=license, address=address), encoding="utf-8")
    preprocess.write_text(json.dumps(description(classifier), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return [public(classifier).save(folder / runs.CLASSIFIER), card, preprocess]


def public(classifier: Classifier) -> Classifier:
    """The same without what it knows of this machine: of its data, the name alone."""
    about = {key: classifier.about[key] for key in PUBLISHED if key in classifier.about}
    return replace(classifier, about={"data": data_name(classifier.about["data"]), **about})


def description(classifier: Classifier) -> dict[str, object]:
    """How pictures become the network's input, and its outputs probabilities, in the words of an export."""
    preprocess = classifier.preprocess
    return {
        "lenext": __version__,
        "network": classifier.architecture["name"],
        "resize": preprocess.resize,
        "interpolation": preprocess.interpolation,
        "antialias": True,
        "crop": preprocess.image_size,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "views": classifier.views,
        "temperature": classifier.temperature,
        "task": classifier.task,
        "classes": list(classifier.classes),
    }
