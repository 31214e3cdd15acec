"""The node's counters as messages: ~/status for programs, /diagnostics for people."""

from __future__ import annotations

from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticStatus

from geopurify_core.config import Config
from geopurify_interfaces.msg import MapStatus
from geopurify_ros.health import ERROR, OK, WARN, Health, status
from geopurify_ros.messages import to_stamp
from geopurify_ros.parameters import Parameters
from geopurify_ros.session import MapSession
from geopurify_ros.sync import ApproximateSync
from geopurify_ros.worker import DroppingQueue

_STATE_LEVEL = {"failed": ERROR, "loading": WARN, "paused": WARN}


def map_status(
    config: Config, session: MapSession, queue: DroppingQueue, health: Health, labels: Sequence[str]
) -> MapStatus:
    """What the node has done so far."""
    message = MapStatus(
        state=session.state,
        message=health.newest_error,
        last_stamp=to_stamp(session.last_stamp_ns),
        frames_received=queue.received,
        frames_integrated=session.integrated,
        frames_dropped=queue.dropped,
        frames_failed=session.failed,
        queue_length=len(queue),
        budget_bytes=config.map.budget_mb << 20,
        labels=list(labels),
    )
    message.header.frame_id = config.map.frame_id
    stats = session.stats()
    if stats is not None:
        message.header.stamp = to_stamp(stats.stamp_ns)
        message.num_voxels, message.bytes, message.num_evicted = stats.num_voxels, stats.nbytes, stats.evicted
        message.backbone_ms, message.fusion_ms = stats.backbone_ms, stats.fusion_ms
    return message


def diagnostics(
    parameters: Parameters, session: MapSession, queue: DroppingQueue, health: Health, sync: ApproximateSync
) -> list[DiagnosticStatus]:
    """Everything a user needs to know when nothing shows up."""
    ros, stats = parameters.ros, session.stats()
    dropped = sum(sync.counts.values())
    matched = 2 * sync.emitted / max(2 * sync.emitted + dropped, 1)
    work: dict[str, object] = {
        "backbone": parameters.core.backbone.name,
        "received": queue.received,
        "integrated": session.integrated,
        "failed": session.failed,
        "dropped": queue.dropped,
        "queue": len(queue),
    }
    size: dict[str, object] = {"budget_bytes": parameters.core.map.budget_mb << 20}
    if stats is not None:
        work |= {"backbone_ms": f"{stats.backbone_ms:.1f}", "fusion_ms": f"{stats.fusion_ms:.1f}"}
        size |= {"voxels": stats.num_voxels, "bytes": stats.nbytes, "evicted": stats.evicted}
    counts = {"sets": sync.emitted, "ratio": f"{matched:.3f}", "rewinds": sync.rewinds, **sync.counts}
    return [
        *health.input_statuses(ros.stale_warn_s, ros.stale_error_s),
        status("sync", WARN if dropped and matched < 0.5 else OK, f"{100 * matched:.0f} % matched", counts),
        health.trouble_status("pose", health.pose, {"source": ros.pose_source}),
        health.trouble_status("worker", health.work, work),
        status("map", _STATE_LEVEL.get(session.state, OK), session.state, size),
    ]
