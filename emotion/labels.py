"""Class names, their order, and the face size that every other module agrees on."""

from typing import Final

IMAGE_SIZE: Final = 48
"""Side of the square grey face that the network reads, in pixels."""

FER2013_LABELS: Final = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""FER2013's seven classes; the position is the integer in the CSV's `emotion` column."""

FERPLUS_LABELS: Final = (*FER2013_LABELS, "contempt")
"""FER+'s eight classes in FER2013's order, with contempt last."""

LABEL_SETS: Final[dict[str, tuple[str, ...]]] = {"fer2013": FER2013_LABELS, "ferplus": FERPLUS_LABELS}
"""The label sets with names of their own."""

OWN_LABELS: Final = "own"
"""Stands for the names of the class folders as they are."""

FERPLUS_COLUMNS: Final = {
    "anger": "angry",
    "disgust": "disgust",
    "fear": "fear",
    "happiness": "happy",
    "sadness": "sad",
    "surprise": "surprise",
    "neutral": "neutral",
    "contempt": "contempt",
}
"""Vote columns of `fer2013new.csv` and the class that each one votes for (`unknown` and `NF` vote for none)."""
