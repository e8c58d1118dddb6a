"""
Folds of a benchmark by image: each image of its training and validation files is held out in exactly one fold.

`fold_2` has the questions about the images of fold 2, `without_fold_2` those about all other images, for training. The
fold of an image depends only on its name and `SEED`, not on the other images, the row order or the machine.
"""

import hashlib


NUM_FOLDS = 5
SEED = 42
HELD_OUT, REST = "fold_", "without_fold_"
HELD_OUT_SPLITS = tuple(f"{HELD_OUT}{fold}" for fold in range(NUM_FOLDS))
FOLD_SPLITS = (*HELD_OUT_SPLITS, *(f"{REST}{fold}" for fold in range(NUM_FOLDS)))
# The training split for each held-out fold.
FOLD_TRAINING_SPLITS = {f"{HELD_OUT}{fold}": f"{REST}{fold}" for fold in range(NUM_FOLDS)}


def fold_of(image: str) -> int:
    """
    The fold (starting at 0) that holds out an image, given its name in the benchmark files ("xmlab7/source.jpg").

    Example:
        >>> [fold_of(f"xmlab{number}/source.jpg") for number in range(1, 9)]
        [0, 3, 3, 1, 4, 3, 1, 4]
    """
    digest = hashlib.sha256(f"{SEED}:{image}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % NUM_FOLDS


def is_in_fold_split(image: str, split: str) -> bool:
    """
    Whether the questions about an image are in `split`, one of `FOLD_SPLITS`.

    Example:
        >>> is_in_fold_split("xmlab2/source.jpg", "fold_3"), is_in_fold_split("xmlab2/source.jpg", "without_fold_3")
        (True, False)
    """
    is_held_out = fold_of(image) == int(split.rpartition("_")[2])
    return is_held_out == split.startswith(HELD_OUT)
