"""Faces followed from frame to frame: the same number for the same face, and probabilities that don't flicker."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Final, NamedTuple

import numpy as np

from emotion.faces import Box
from emotion.predict import EmotionPredictor, Prediction, Source

SMOOTHING_SECONDS: Final = 0.5
"""Time constant of the probabilities: after this long, a change shows to 63%."""
MIN_OVERLAP: Final = 0.3
"""Intersection over union from which on two boxes are the same face."""
SEARCH_SECONDS: Final = 0.4
"""The whole picture is searched this often: at ten frames a second, a new face is found within half a second."""
LOST_SECONDS: Final = 0.5
"""A face that is not found keeps its box and number this long."""
TIMELINE_SECONDS: Final = 30
TIMELINE_STEP: Final = 0.25
"""Least time between two samples of the timeline, in seconds."""
RATE_SECONDS: Final = 5
"""The frame rate is that of the last seconds."""
NO_CROP: Final = np.empty((0, 0), np.uint8)
"""Stands for the picture of a face: none is remembered."""


class Sample(NamedTuple):
    """The timeline's face at one moment.

    Attributes:
        time: seconds, on the clock of `FaceFollower.update`.
        track: which face it was.
        probabilities: smoothed probability of every class, in the model's order.
    """

    time: float
    track: int
    probabilities: dict[str, float]


class FaceFollower:
    """What is remembered between the frames of one camera: numbers, but no picture of a face.

    A face is followed by the overlap of its boxes, the largest overlap first. Its probabilities are smoothed
    exponentially in time, so that the result does not depend on the frame rate.

    Attributes:
        faces: the faces now, by their number: the newest box, smoothed probabilities, and no crop.
        tracks: which face has each of these numbers, counted from 1 on: numbers are given again, tracks are not.
        timeline: samples of the last `TIMELINE_SECONDS`, of the largest face and then of the same one for as long as
            it is followed.
    """

    def __init__(self) -> None:
        self.faces: dict[int, Prediction] = {}
        self.tracks: dict[int, int] = {}
        self.timeline: deque[Sample] = deque()
        self._followed = 0
        self._seen: dict[int, float] = {}
        self._frames: deque[float] = deque()
        self._searched = -math.inf

    @property
    def rate(self) -> float:
        """Frames per second of late; 0 before the second frame."""
        if len(self._frames) < 2:
            return 0.0
        return (len(self._frames) - 1) / (self._frames[-1] - self._frames[0])

    def look(self, frame: Source, predictor: EmotionPredictor, now: float) -> None:
        """Find the faces of one frame and take them in.

        The whole frame is searched every `SEARCH_SECONDS`, as long as there is no face, and when one is lost;
        otherwise only the surroundings of the faces of the frame before.

        Args:
            frame: the frame.
            predictor: finds and classifies its faces.
            now: when it was taken, as for `update`.
        """
        known = [face.box for number, face in self.faces.items() if self._seen[number] == self._frames[-1]]
        found = predictor.predict(frame, near=known) if known and now - self._searched < SEARCH_SECONDS else []
        if not known or len(found) < len(known):
            found = predictor.predict(frame)
            self._searched = now
        self.update(found, now)

    def update(self, found: Sequence[Prediction], now: float) -> list[int]:
        """Take in the faces of one frame.

        Args:
            found: the faces of the frame, in any order.
            now: when it was taken, in seconds on any clock; later than the frame before.

        Returns:
            The number of every face in `found`; a new face gets the smallest that no face has at the moment.
        """
        numbers = _match(self.faces, found)
        for index, face in enumerate(found):
            number = numbers.get(index)
            if number is None:
                number = numbers[index] = next(n for n in count(1) if n not in self.faces)
                self._followed = self.tracks[number] = self._followed + 1
                smoothed = face.probabilities
            else:
                share = 1 - math.exp((self._seen[number] - now) / SMOOTHING_SECONDS)
                before = self.faces[number].probabilities
                smoothed = {name: p + share * (face.probabilities[name] - p) for name, p in before.items()}
            best = max(smoothed, key=smoothed.__getitem__)
            self.faces[number] = replace(
                face, emotion=best, confidence=smoothed[best], probabilities=smoothed, crop=NO_CROP
            )
            self._seen[number] = now
        for number in [number for number, seen in self._seen.items() if now - seen > LOST_SECONDS]:
            del self.faces[number], self.tracks[number], self._seen[number]

        self._frames.append(now)
        while self._frames[0] < now - RATE_SECONDS:
            self._frames.popleft()
        while self.timeline and self.timeline[0].time < now - TIMELINE_SECONDS:
            self.timeline.popleft()
        last = self.timeline[-1] if self.timeline else None
        if self.faces and (last is None or now - last.time >= TIMELINE_STEP):
            largest = max(self.faces, key=self._area)
            number = next((n for n, track in self.tracks.items() if last and track == last.track), largest)
            self.timeline.append(Sample(now, self.tracks[number], self.faces[number].probabilities))
        return [numbers[index] for index in range(len(found))]

    def _area(self, number: int) -> float:
        return self.faces[number].box[2] * self.faces[number].box[3]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes (x, y, width, height), in [0, 1]."""
    sides = [
        max(0.0, min(one[axis] + one[axis + 2], other[axis] + other[axis + 2]) - max(one[axis], other[axis]))
        for axis in (0, 1)
    ]
    common = sides[0] * sides[1]
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def _match(known: Mapping[int, Prediction], found: Sequence[Prediction]) -> dict[int, int]:
    """The number of every face in `found` that is one of the `known`, by its index."""
    pairs = [
        (overlap(face.box, old.box), index, number) for index, face in enumerate(found) for number, old in known.items()
    ]
    numbers: dict[int, int] = {}
    for common, index, number in sorted(pairs, reverse=True):
        if common >= MIN_OVERLAP and index not in numbers and number not in numbers.values():
            numbers[index] = number
    return numbers
