"""Time synchronisation, without ROS: what comes in pairs goes out in pairs, once, whatever the order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopurify_ros.sync import ApproximateSync, SyncedSet

MS = 1_000_000
SECOND = 1_000 * MS
PERIOD = 33 * MS
START = 100 * SECOND


def feed(sync: ApproximateSync, events: list[tuple[str, int]], now_ns: int = 0) -> list[SyncedSet]:
    return [found for topic, stamp in events for found in sync.add(topic, stamp, (topic, stamp), now_ns)]


def stream(count: int, start: int = START) -> list[tuple[str, int]]:
    return [(topic, start + i * PERIOD) for i in range(count) for topic in ("rgb", "depth")]


def pairs(found: list[SyncedSet]) -> list[tuple[int, int]]:
    return [(item.messages[0][1], item.messages[1][1]) for item in found]


def test_equal_stamps_are_matched_at_once() -> None:
    found = feed(ApproximateSync(("rgb", "depth")), stream(5))
    assert pairs(found) == [(START + i * PERIOD, START + i * PERIOD) for i in range(5)]


@settings(max_examples=200, deadline=None)
@given(
    offsets=st.lists(st.integers(-7 * MS, 7 * MS), min_size=5, max_size=30),
    delay=st.integers(0, 4),
    depth_first=st.booleans(),
)
def test_jitter_and_delay_do_not_mix_pairs(offsets: list[int], delay: int, depth_first: bool) -> None:
    """Depth stamps off by at most 7 ms (slop 15 ms, period 33 ms), arriving up to four frames late: all pairs right."""
    events = []
    for i in range(len(offsets) + delay):
        new = [("rgb", START + i * PERIOD)] if i < len(offsets) else []
        late = [("depth", START + (i - delay) * PERIOD + offsets[i - delay])] if i >= delay else []
        events += late + new if depth_first else new + late
    found = feed(ApproximateSync(("rgb", "depth")), events)
    assert pairs(found) == [(START + i * PERIOD, START + i * PERIOD + offset) for i, offset in enumerate(offsets)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.5, 3.0, 60.0]))
def test_any_mess_is_bounded_and_nothing_is_used_twice(seed: int, spread_s: float) -> None:
    """Shuffled, duplicated, zero and future stamps: no crash, bounded memory, every pair within the slop, each once."""
    rng = np.random.default_rng(seed)
    events = stream(300)
    order = np.argsort(np.array([stamp for _, stamp in events]) + rng.uniform(0, spread_s * SECOND, len(events)))
    events = [events[i] for i in order]
    for i in sorted(rng.integers(0, len(events), 40), reverse=True):
        kind = rng.integers(0, 3)
        stamp = (0, events[i][1], events[i][1] + 10 * SECOND)[kind]
        events.insert(int(rng.integers(0, len(events))), (events[i][0], stamp))
    sync = ApproximateSync(("rgb", "depth"), queue_size=20)
    now_ns = START + 300 * PERIOD + SECOND
    found = feed(sync, events, now_ns)
    used = [stamp for pair in pairs(found) for stamp in pair]
    assert all(abs(a - b) <= 15 * MS for a, b in pairs(found))
    assert sync.rewinds > 0 or len(set(pairs(found))) == len(found), "no frame may be integrated twice"
    assert sync.counts["zero_stamp"] == sum(stamp == 0 for _, stamp in events)
    assert sync.counts["future"] == sum(stamp > now_ns + 2 * SECOND for _, stamp in events)
    assert sum(len(waiting) for waiting in sync._waiting.values()) <= 40
    assert len(sync._suspects) <= 6
    held = sum(len(waiting) for waiting in sync._waiting.values()) + len(sync._suspects)
    counted = sum(sync.counts.values())
    if not sync.rewinds:
        assert counted + len(used) + held >= len(events), "what is dropped must be counted"


def test_ten_thousand_messages_in_random_order_cause_no_double_integration() -> None:
    rng = np.random.default_rng(1)
    events = stream(5_000)
    rng.shuffle(events)
    sync = ApproximateSync(("rgb", "depth"))
    found = pairs(feed(sync, events + events[:500]))
    assert len(found) == len(set(found))
    assert sync.counts["late"] > 4_000


def test_a_rewind_loses_no_frame_and_is_noticed_once() -> None:
    sync = ApproximateSync(("rgb", "depth"))
    found = feed(sync, stream(100) + stream(100) + stream(50))
    assert len(found) == 250
    assert sync.rewinds == 2
    assert sync.counts["late"] == 0


def test_a_short_bag_that_loops_is_followed_too() -> None:
    """1.2 s of frames at 10 Hz: only the first of them lies more than a second back."""
    round_ = [(topic, START + i * SECOND // 10) for i in range(12) for topic in ("rgb", "depth")]
    sync = ApproximateSync(("rgb", "depth"))
    assert len(feed(sync, round_ * 3)) == 36
    assert sync.rewinds == 2


def test_one_message_from_the_future_does_not_stop_the_stream() -> None:
    """Without a clock to compare with, such a message looks like a jump ahead; the stream wins after three messages."""
    events = stream(20)
    events.insert(10, ("rgb", START + 10 * SECOND))
    sync = ApproximateSync(("rgb", "depth"))
    assert len(feed(sync, events)) == 20


def test_a_late_straggler_is_no_rewind() -> None:
    sync = ApproximateSync(("rgb", "depth"))
    found = feed(sync, [*stream(60), ("rgb", START), ("depth", START), *stream(5, START + 60 * PERIOD)])
    assert len(found) == 65
    assert sync.rewinds == 0
    assert sync.counts["late"] == 2


def test_a_topic_that_stays_silent_costs_bounded_memory_and_is_counted() -> None:
    sync = ApproximateSync(("rgb", "depth"), queue_size=10)
    assert not feed(sync, [("rgb", START + i * PERIOD) for i in range(1_000)])
    assert sync.counts["unmatched"] == 990


@pytest.mark.parametrize("stamp", [0, -5])
def test_unset_stamps_are_dropped(stamp: int) -> None:
    sync = ApproximateSync(("rgb", "depth"))
    assert not sync.add("rgb", stamp, None)
    assert sync.counts["zero_stamp"] == 1
