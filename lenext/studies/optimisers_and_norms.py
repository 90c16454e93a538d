"""Does the choice of the optimiser depend on the norm? Three of each, all nine combinations, on a narrow ResNet-18.

    lenext study run optimisers-and-norms

A short example to copy for one's own: two factors, what is the same for all, and one question.
"""

from lenext.studies import small
from lenext.study.design import Comparison, Factor, Study

STUDY = Study(
    question="Which optimiser goes with which norm?",
    factors=(
        Factor(
            "optimiser",
            {
                "SGD": {"optimizer": "sgd", "lr": 0.05},
                "AdamW": {"optimizer": "adamw", "lr": 1e-3},
                "Muon": {"optimizer": "muon", "lr": 0.02},
            },
        ),
        Factor(
            "norm",
            {
                "batch norm": {"arguments": {"norm": "batch"}},
                "layer norm": {"arguments": {"norm": "layer"}},
                "no norm": {"arguments": {"norm": "none"}},
            },
        ),
    ),
    base={**small.STUDY.base, "model": "resnet18", "arguments": small.NARROW, "clip_norm": 1.0},
    comparisons=(
        Comparison(
            question="Does Muon need batch norm less than SGD is said to?",
            change="leaving out the norms under Muon",
            cell="Muon, no norm",
            against="Muon, batch norm",
        ),
        Comparison(
            question="And SGD?",
            change="leaving out the norms under SGD",
            cell="SGD, no norm",
            against="SGD, batch norm",
        ),
    ),
    places=small.STUDY.places,
    data_help=small.STUDY.data_help,
    pictures=small.STUDY.pictures,
    classes=small.STUDY.classes,
)
