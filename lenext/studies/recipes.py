"""Which of the usual settings matter for ResNet-18: an eighth of all 128 combinations of seven factors.

    lenext study run recipes

Each factor has two levels; the last three are products of others (a 2^(7-3) design of resolution IV), so 16 cells tell
seven main effects apart from one another and from every interaction of two, but those of two from one another not. The
network and the part of Fashion-MNIST are those of the study `small`.
"""

from lenext.studies import small
from lenext.study.design import Factor, Study

STUDY = Study(
    question="Which settings matter most: optimiser, schedule, rate, dropout, augmentation, smoothing or averaging?",
    factors=(
        Factor("optimiser", {"SGD": {"optimizer": "sgd", "nesterov": True}, "Muon": {"optimizer": "muon"}}),
        Factor("schedule", {"constant": {"schedule": "constant"}, "cosine": {"schedule": "cosine"}}),
        Factor("rate", {"0.01": {"lr": 0.01}, "0.04": {"lr": 0.04}}),
        Factor("dropout", {"no dropout": {}, "dropout": {"arguments": {"dropout": 0.3}}}),
        Factor(
            "augmentation",
            {"as they are": {"crop_scale": 1.0, "flip": "none"}, "crops and flips": {}},
            product_of=("optimiser", "schedule", "rate"),
        ),
        Factor(
            "smoothing",
            {"hard labels": {}, "smooth labels": {"label_smoothing": 0.1}},
            product_of=("schedule", "rate", "dropout"),
        ),
        Factor("averaging", {"no EMA": {}, "EMA": {"ema": 0.99}}, product_of=("optimiser", "rate", "dropout")),
    ),
    base={**small.STUDY.base, "model": "resnet18", "arguments": small.NARROW},
    seeds=2,
    places=small.STUDY.places,
    data_help=small.STUDY.data_help,
    pictures=small.STUDY.pictures,
    classes=small.STUDY.classes,
)
