"""The model card of a run, in the form that the Hugging Face Hub reads: metadata in YAML, then Markdown.

Everything is taken from the run folder, and the limits from its figures. A card is written to be published: it holds
no path, no file name and no command of the machine that the run was made on.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from lenext import runs
from lenext.classifier import Classifier, load
from lenext.data.dataset import writable
from lenext.evaluation.report import HEADLINE_SPLITS, confusions, duration, share, training_summary
from lenext.models.pooled import CombinedNetwork, PooledNetwork

log = logging.getLogger("lenext")

PUBLIC = re.compile(r"hf:([\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?::.*)?")  # a data set of the Hub, not a folder here
SHOWN_CLASSES = 50
FEW = 30  # pictures of a class, below which its figures say little
ODDS = 3.0  # a class with this many times the pictures of another one outweighs it
WEAK = 0.1  # a class whose recall is this far below the accuracy is named
OFF = 0.05  # probabilities that are wrong by this much are called so
SETTINGS = (  # of config.yaml, those that say how and not where
    "recipe", "epochs", "batch_size", "image_size", "optimizer", "lr", "weight_decay", "schedule", "warmup_epochs",
    "loss", "label_smoothing", "augment", "mixup", "cutmix", "ema", "precision", "seed",
)  # fmt: skip
QUICK_SETTINGS = ("recipe", "image_size", "seed")  # those of them that a quick classifier is made with


def command(path: str, *, out: str | None = None, license: str | None = None) -> str | None:
    """`lenext card`: write the card to a file and return None, or return its text where there is no file to write."""
    text = make_card(path, license=license)
    if out is None:
        return text
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    runs.write_text(Path(out), text)
    log.info("the card is in %s", out)
    return None


def make_card(path: str | Path, *, license: str | None = None, address: str | None = None) -> str:
    """The card of a run folder.

    license: as the Hub names licences, such as apache-2.0; none is claimed where none is given.
    address: hf:USER/NAME, from where it will be read; the classifier file beside the card if not given.
    Raises ValueError for a folder without a classifier, or figures that the Hub's form cannot hold.
    """
    from huggingface_hub import ModelCard
    from jinja2 import Environment, PackageLoader, StrictUndefined

    run = runs.require(path)
    content = read_content(run, load(run), address)
    environment = Environment(  # Markdown, not HTML: what is other people's text goes through the filter `text`
        loader=PackageLoader("lenext.hub"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"text": as_text, "share": share, "duration": duration}
    body = environment.get_template("card.md.j2").render(content, license=license)
    metadata = card_metadata(content, license).to_yaml()
    return str(ModelCard(f"---\n{metadata}\n---\n\n{body}"))


def read_content(run: Path, classifier: Classifier, address: str | None) -> dict[str, Any]:
    """Everything that the template shows."""
    config, data = runs.read_config(run), runs.read_json(run / runs.DATA)
    evaluation = _json(run / "evaluation.json")
    split = next((name for name in HEADLINE_SPLITS if name in evaluation), None)
    result = evaluation[split] if split else None
    environment = _json(run / "environment.json")
    # Epochs may have been run and found worse: it is the network in the file that the card describes.
    kind = {PooledNetwork: "quick", CombinedNetwork: "combined"}.get(type(classifier.model), "trained")
    used = QUICK_SETTINGS if kind == "quick" else SETTINGS
    return {
        "title": address.rpartition("/")[2] if address else f"{config['model']} on {data_name(data['data'])}",
        "source": address or runs.CLASSIFIER,
        "data": data_name(data["data"]),
        "classifier": classifier,
        "kind": kind,
        "network": config["model"],
        "paper": paper(str(config["model"])),
        "counts": data["counts"],
        "unreadable": len(data["unreadable"]),
        "split": split,
        "result": result,
        "rows": class_rows(classifier.classes, data["counts"], result),
        "most": SHOWN_CLASSES,
        "confusions": confusions(result.get("confusion", []), list(result["per_class"])) if result else [],
        "start": _start(config.get("pretrained")),
        "settings": {name: config[name] for name in used if config.get(name) not in (None, 0, "none")},
        "training": training_summary(runs.read_metrics(run)),
        "environment": {name: environment.get(name) for name in ("lenext", "torch", "processor", "gpu")},
        "limits": limits(classifier, data["counts"], split, result),
    }


def card_metadata(content: dict[str, Any], license: str | None) -> Any:
    """The ModelCardData of the Hub's form."""
    from huggingface_hub import EvalResult, ModelCardData

    result, data = content["result"], content["data"]
    measured = {"accuracy": ("accuracy", "Accuracy"), "macro_f1": ("f1", "Macro F1")} if result else {}
    public = PUBLIC.fullmatch(data)
    return ModelCardData(
        license=license,
        library_name="lenext",
        pipeline_tag="image-classification",
        tags=["image-classification", "lenext", content["network"]],
        datasets=[public[1]] if public else None,
        metrics=[kind for kind, _ in measured.values()] or None,
        model_name=content["title"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=public[1] if public else "imagefolder",
                dataset_name=data,
                dataset_split={"val": "validation"}.get(content["split"], content["split"]),
                metric_type=kind,
                metric_name=name,
                metric_value=round(result[key], 4),
            )
            for key, (kind, name) in measured.items()
            if result[key] is not None
        ]
        or None,
    )


def data_name(data: str) -> str:
    """The name of the data without the folders that it lies in; of a public data set, its address."""
    return data if PUBLIC.fullmatch(data) else Path(data).name or "pictures"


def class_rows(classes: tuple[str, ...], counts: dict[str, Any], result: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A row a class, with its pictures in each split and its figures; those with the lowest F1 first, if measured."""
    rows = [
        {
            "name": name,
            "counts": {split: of_class.get(name, 0) for split, of_class in counts.items()},
            **(result["per_class"][name] if result else {}),
        }
        for name in classes
    ]
    return sorted(rows, key=lambda row: (row["f1"] is None, row["f1"])) if result else rows


def limits(
    classifier: Classifier, counts: dict[str, Any], split: str | None, result: dict[str, Any] | None
) -> list[str]:
    """What the figures say that this classifier cannot, or may not, do: Markdown, a sentence or two each."""
    several = classifier.task == "multi-label"
    found = [
        f"It knows {len(classifier.classes)} classes and nothing else"
        + (": what is not among them it cannot name." if several else ": a picture of anything else gets one of them.")
    ]
    found.append(
        "Its figures are of pictures from the same source as those it was trained on. Another camera, light, place or "
        "time may give other figures: measure it on pictures of your own before you rely on it."
    )
    if result is None:
        return [*found, "It has not been evaluated: nothing is known of its accuracy."]
    low, high = result["accuracy_interval"]
    found.append(
        f"The accuracy was measured on {result['n']} pictures, so that the true one is probably between {share(low)} "
        f"and {share(high)}."
    )
    if split == "val":
        chosen = "penalty of the linear layer" if isinstance(classifier.model, PooledNetwork) else "best epoch"
        found.append(
            f"There was no test split. The {chosen} and the temperature were chosen by these very pictures, so expect "
            "slightly less on new ones."
        )
    if result["failed"]:
        found.append(f"Pictures that could not be read, and are in no figure: {len(result['failed'])}.")
    per_class = result["per_class"]
    untested = [name for name in classifier.classes if per_class[name]["n"] == 0]
    few = [name for name in classifier.classes if 0 < per_class[name]["n"] < FEW]
    overall = result.get("balanced_accuracy") or result["accuracy"]
    weak = [
        f"{as_text(name)} ({share(row['recall'])})"
        for name, row in sorted(per_class.items(), key=lambda item: item[1]["recall"] or 0)
        if row["n"] and row["recall"] < overall - WEAK
    ]
    if untested:
        found.append(f"Not measured at all, for want of pictures: {_names(untested)}.")
    if few:
        found.append(f"Measured on fewer than {FEW} pictures, so that their own figures say little: {_names(few)}.")
    if weak:
        found.append(f"Missed clearly more often than the others; the share that is found: {_listed(weak)}.")
    found += _imbalance(counts.get("train", {}), result, several)
    if result["ece"] > OFF:
        found.append(f"Its probabilities are off by {share(result['ece'])} on average (expected calibration error).")
    return found


def _imbalance(train: dict[str, int], result: dict[str, Any], several: bool) -> list[str]:
    """What unequal classes do to the figures."""
    numbers = {name: count for name, count in train.items() if count}
    if several or len(numbers) < 2 or max(numbers.values()) < ODDS * min(numbers.values()):
        return []
    most, least = max(numbers, key=numbers.__getitem__), min(numbers, key=numbers.__getitem__)
    commonest = max(row["n"] for row in result["per_class"].values()) / result["n"]
    return [
        f"The classes are unequal: {numbers[most]} training pictures of {as_text(most)}, {numbers[least]} of "
        f"{as_text(least)}. Always naming the commonest class would be right in {share(commonest)} of the pictures; "
        f"every class counted alike, the accuracy is {share(result['balanced_accuracy'])}."
    ]


def paper(name: str) -> dict[str, str] | None:
    """Authors, year, title and link of a network of the zoo; None for one of timm."""
    from lenext.models import MODELS

    if name not in MODELS:
        return None
    found = MODELS[name].paper
    return {"authors": found.authors, "year": str(found.year), "title": found.title, "link": found.link}


def as_text(value: object) -> str:
    """Any text as what Markdown shows letter by letter, on one line."""
    line = " ".join(writable(str(value)).split())
    # An underscore between letters is one; marks that only matter at the beginning of a line never stand there.
    return re.sub(r"([\\`*\[\]<>#|~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", line)


def _start(pretrained: Any) -> str:
    if pretrained is True:
        return "the network's public ImageNet weights"
    return "given weights" if pretrained else "random weights"


def _names(names: list[str]) -> str:
    return _listed([as_text(name) for name in names])


def _listed(items: list[str], most: int = 10) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _json(path: Path) -> dict[str, Any]:
    return runs.read_json(path) if path.exists() else {}
