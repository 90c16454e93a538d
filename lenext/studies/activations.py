"""Which activation for a narrow ResNet-18? One factor, as short as a study can be.

lenext study run activations
"""

from lenext.studies import small
from lenext.study.design import Comparison, Factor, Study

NAMES = ("relu", "leaky_relu", "gelu", "silu", "mish")

STUDY = Study(
    question="Does the activation matter for a small ResNet?",
    factors=(Factor("activation", {name: {"arguments": {"activation": name}} for name in NAMES}),),
    base={**small.STUDY.base, "model": "resnet18", "arguments": small.NARROW, "optimizer": "sgd", "lr": 0.05},
    comparisons=tuple(
        Comparison(
            question=f"Is {name} better than ReLU?", change=f"replacing ReLU by {name}", cell=name, against="relu"
        )
        for name in NAMES[1:]
    ),
    places=small.STUDY.places,
    data_help=small.STUDY.data_help,
    pictures=small.STUDY.pictures,
    classes=small.STUDY.classes,
)
