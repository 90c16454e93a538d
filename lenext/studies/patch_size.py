"""How small must the patches of a Vision Transformer be? One factor with three levels, on pictures of 32 pixels.

lenext study run patch-size
"""

from lenext.studies import small
from lenext.study.design import Comparison, Factor, Study

STUDY = Study(
    question="What do smaller patches bring to a Vision Transformer on small pictures?",
    factors=(Factor("patches", {f"{size} pixels": {"arguments": {"patch_size": size}} for size in (4, 8, 16)}),),
    base={**small.STUDY.base, "model": "vit_tiny_patch16_224", "optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.05},
    comparisons=(
        Comparison(
            question="Are 64 tokens better than 16?",
            change="going from patches of 8 pixels to 4",
            cell="4 pixels",
            against="8 pixels",
            expected="more",
        ),
        Comparison(
            question="Are 16 tokens better than 4?",
            change="going from patches of 16 pixels to 8",
            cell="8 pixels",
            against="16 pixels",
            expected="more",
        ),
    ),
    places=small.STUDY.places,
    data_help=small.STUDY.data_help,
    pictures=small.STUDY.pictures,
    classes=small.STUDY.classes,
)
