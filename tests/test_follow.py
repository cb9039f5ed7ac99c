"""Following faces between frames, against values computed by hand and full searches of drawn-up clips."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emotion.follow import FaceFollower, overlap
from emotion.predict import EmotionPredictor, Prediction


def face(x: float, happy: float = 1.0, side: float = 100.0) -> Prediction:
    emotion = "happy" if happy >= 0.5 else "sad"
    return Prediction(
        (x, 0.0, side, side),
        0.9,
        emotion,
        max(happy, 1 - happy),
        {"happy": happy, "sad": 1 - happy},
        np.zeros((48, 48)),
    )


def happiness(follower: FaceFollower) -> dict[int, float]:
    return {number: face.probabilities["happy"] for number, face in follower.faces.items()}


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        ((0, 0, 10, 10), 1),
        ((5, 0, 10, 10), 50 / 150),
        ((5, 5, 10, 10), 25 / 175),
        ((2, 2, 5, 5), 25 / 100),
        ((10, 0, 10, 10), 0),
        ((20, 20, 10, 10), 0),
    ],
)
def test_overlap_is_the_intersection_over_the_union(other, wanted):
    assert overlap((0, 0, 10, 10), other) == overlap(other, (0, 0, 10, 10)) == pytest.approx(wanted)


def test_probabilities_follow_a_change_by_63_percent_in_half_a_second_at_any_frame_rate():
    for frames in (1, 5, 50):
        follower = FaceFollower()
        follower.update([face(0, happy=0.0)], 10.0)
        assert happiness(follower) == {1: 0.0}
        for frame in range(1, frames + 1):
            follower.update([face(0, happy=1.0)], 10.0 + 0.5 * frame / frames)
        assert happiness(follower)[1] == pytest.approx(1 - 1 / math.e)
        shown = follower.faces[1]
        assert sum(shown.probabilities.values()) == pytest.approx(1)
        assert (shown.emotion, shown.confidence) == ("happy", shown.probabilities["happy"])


def test_one_odd_frame_does_not_change_the_answer():
    follower = FaceFollower()
    answers = []
    for frame in range(20):
        follower.update([face(0, happy=0.0 if frame == 10 else 1.0)], frame / 10)
        answers.append(follower.faces[1].emotion)
    assert set(answers) == {"happy"}
    # exp(-0.1 / 0.5) of it remains after a frame in which all was sad.
    follower.update([face(0, happy=0.0)], 2.0)
    assert happiness(follower)[1] == pytest.approx(math.exp(-0.2), abs=0.03)


def test_faces_keep_their_numbers_while_they_move_and_whatever_their_order():
    follower = FaceFollower()
    follower.update([face(0, 1.0), face(300, 0.0)], 0.0)
    for frame in range(1, 8):
        # Each step leaves an overlap of 60/140; the order changes from frame to frame.
        faces = [face(40 * frame, 1.0), face(300 + 40 * frame, 0.0)]
        follower.update(faces[:: 1 if frame % 2 else -1], frame / 10)
    assert happiness(follower) == {1: 1.0, 2: 0.0}
    assert {number: shown.box[0] for number, shown in follower.faces.items()} == {1: 280.0, 2: 580.0}


def test_the_largest_overlap_decides_and_a_face_is_matched_once():
    follower = FaceFollower()
    follower.update([face(0)], 0.0)
    # 60/140 and 80/120 of the old face.
    assert follower.update([face(40), face(20)], 0.1) == [2, 1]
    assert {number: shown.box[0] for number, shown in follower.faces.items()} == {1: 20.0, 2: 40.0}


def test_a_face_that_is_missed_stays_half_a_second_and_a_number_becomes_free():
    follower = FaceFollower()
    follower.update([face(0), face(300)], 0.0)
    follower.update([face(300)], 0.5)
    assert sorted(follower.faces) == [1, 2]
    follower.update([face(300)], 0.51)
    assert sorted(follower.faces) == [2]
    # 30/170 is below the overlap of one face.
    follower.update([face(300), face(370)], 0.6)
    assert {number: shown.box[0] for number, shown in follower.faces.items()} == {1: 370.0, 2: 300.0}


def test_slow_frames_do_not_lose_a_face():
    follower = FaceFollower()
    for second in range(3):
        follower.update([face(10 * second)], float(second))
    assert sorted(follower.faces) == [1]


def test_no_picture_of_a_face_is_remembered():
    follower = FaceFollower()
    follower.update([face(0)], 0.0)
    follower.update([face(0)], 0.1)
    assert follower.faces[1].crop.size == 0


def test_the_timeline_holds_thirty_seconds_of_the_face_that_was_largest_first():
    follower = FaceFollower()
    for frame in range(401):
        now = frame / 10
        # The other one is larger from second 35 on, but the first one is still there.
        follower.update([face(0), face(300, side=90 if now < 35 else 110)], now)
    times = [sample.time for sample in follower.timeline]
    assert times[0] == pytest.approx(10, abs=0.35) and times[0] >= 10 and times[-1] == pytest.approx(40, abs=0.25)
    # At ten frames a second, every third frame is at least a quarter of a second later.
    assert np.diff(times) == pytest.approx(0.3)
    assert {sample.track for sample in follower.timeline} == {1}
    follower.update([face(300, side=110)], 40.6)
    assert follower.timeline[-1].track == 2


def test_the_next_face_of_the_same_number_is_another_one_to_the_timeline():
    follower = FaceFollower()
    follower.update([face(0)], 0.0)
    follower.update([], 0.6)
    follower.update([face(300)], 0.7)
    assert sorted(follower.faces) == [1] and follower.tracks == {1: 2}
    assert [(sample.time, sample.track) for sample in follower.timeline] == [(0.0, 1), (0.7, 2)]


def test_frame_rate_is_that_of_the_last_five_seconds():
    follower = FaceFollower()
    assert follower.rate == 0
    follower.update([], 0.0)
    assert follower.rate == 0
    for frame in range(1, 11):
        follower.update([], frame / 2)
    assert follower.rate == pytest.approx(2)
    for frame in range(1, 101):
        follower.update([], 5 + frame / 20)
    assert follower.rate == pytest.approx(20)


FRAME = 1 / 12


def at(background: Image.Image, person: Image.Image, *places: tuple[float, float]) -> Image.Image:
    """A frame with a person at each of the places."""
    frame = background.copy()
    for x, y in places:
        frame.paste(person, (round(x), round(y)))
    return frame


@pytest.fixture(scope="module")
def person(portrait: Image.Image) -> Image.Image:
    """160x180 pixels, 90 of them the width of the face."""
    return portrait.crop((150, 30, 310, 210))


@pytest.fixture(scope="module")
def background(scenery: Image.Image) -> Image.Image:
    return scenery.resize((640, 480))


@pytest.fixture
def predictor(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> EmotionPredictor:
    """Counts in `searches` how often it has searched a whole frame."""
    predictor = EmotionPredictor.from_checkpoint(checkpoint)
    predictor.searches, predict = 0, predictor.predict

    def counted(frame: Image.Image, near: list | None = None) -> list[Prediction]:
        predictor.searches += near is None
        return predict(frame, near)

    monkeypatch.setattr(predictor, "predict", counted)
    return predictor


def test_boxes_stay_on_a_moving_face_and_few_frames_are_searched(predictor, person, background):
    follower = FaceFollower()
    for index in range(25):
        # Up to 25 pixels a frame, over a quarter of the face.
        now = index * FRAME
        frame = at(background, person, (240 + 200 * math.sin(1.5 * now), 150 + 80 * math.cos(now)))
        follower.look(frame, predictor, now)
        [face] = predictor.detector.detect(frame)
        [(number, shown)] = follower.faces.items()
        assert number == 1
        assert overlap(shown.box, face.box) > 0.75
    # Two seconds: every 0.4 seconds at 12 frames a second is every fifth frame.
    assert predictor.searches == 5


@pytest.mark.parametrize("shift", range(5))
def test_a_second_face_is_found_within_half_a_second(predictor, person, background, shift):
    follower = FaceFollower()
    for index in range(13):
        alone = index <= shift
        places = [(100, 100)] if alone else [(100, 100), (400, 200)]
        follower.look(at(background, person, *places), predictor, index / 10)
        if alone:
            assert len(follower.faces) == 1
        elif index - (shift + 1) >= 5:
            assert len(follower.faces) == 2


def test_a_face_that_jumps_is_found_in_the_same_frame(predictor, person, background):
    follower = FaceFollower()
    follower.look(at(background, person, (50, 100)), predictor, 0.0)
    follower.look(at(background, person, (55, 100)), predictor, 0.1)
    assert (list(follower.faces), predictor.searches) == ([1], 1)
    follower.look(at(background, person, (400, 200)), predictor, 0.2)
    assert predictor.searches == 2
    assert max(face.box[0] for face in follower.faces.values()) > 400
    # Only faces of the frame before are followed, not the one that is lost.
    follower.look(at(background, person, (400, 200)), predictor, 0.3)
    assert predictor.searches == 2
    follower.look(at(background, person, (400, 200)), predictor, 0.75)
    assert [face.box[0] > 400 for face in follower.faces.values()] == [True]


def test_without_a_face_every_frame_is_searched(predictor, background, person):
    follower = FaceFollower()
    for index in range(3):
        follower.look(background, predictor, index / 20)
    assert (predictor.searches, follower.faces) == (3, {})
    follower.look(at(background, person, (200, 100)), predictor, 0.15)
    assert list(follower.faces) == [1]
