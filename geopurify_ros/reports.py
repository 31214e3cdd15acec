"""The node's counters as messages: ~/status for programs, /diagnostics for people."""

from __future__ import annotations

from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticStatus

from geopurify_core.purification.purifier import PurifierStatus
from geopurify_interfaces.msg import MapStatus, PurificationStatus
from geopurify_ros.health import ERROR, OK, WARN, Health, status
from geopurify_ros.messages import to_stamp
from geopurify_ros.parameters import Parameters
from geopurify_ros.session import MapSession
from geopurify_ros.sync import ApproximateSync
from geopurify_ros.worker import Worker

_STATE_LEVEL = {"failed": ERROR, "loading": WARN, "paused": WARN}
_PURIFICATION_LEVEL = {"failed": ERROR}
_ENOUGH_MATCHED = 0.5


class Reports:
    """Reads everybody's counters; remembers only what the last round of diagnostics said."""

    def __init__(
        self, parameters: Parameters, session: MapSession, worker: Worker, health: Health, sync: ApproximateSync
    ) -> None:
        self._parameters, self._session, self._worker, self._health = parameters, session, worker, health
        self._sync = sync
        self._told = {"matched": 0, "unmatched": 0, "received": 0, "dropped": 0}

    def map_status(self, labels: Sequence[str], cloud_purified: bool) -> MapStatus:
        """What the node has done so far."""
        session, queue, core = self._session, self._worker.queue, self._parameters.core
        message = MapStatus(
            state=session.state,
            message=self._health.newest_error,
            last_stamp=to_stamp(session.last_stamp_ns),
            frames_received=queue.received,
            frames_integrated=session.integrated,
            frames_dropped=queue.dropped + session.outdated,
            frames_failed=session.failed,
            queue_length=len(queue),
            budget_bytes=core.map.budget_mb << 20,
            labels=list(labels),
            cloud_features="purified" if cloud_purified and session.purified is not None else "raw",
            purification=_purification(session.purification),
        )
        message.header.frame_id = core.map.frame_id
        stats = session.stats()
        if stats is not None:
            message.header.stamp = to_stamp(stats.stamp_ns)
            message.num_voxels, message.bytes, message.num_evicted = stats.num_voxels, stats.nbytes, stats.evicted
            message.backbone_ms, message.fusion_ms = stats.backbone_ms, stats.fusion_ms
        return message

    def diagnostics(self, clock_silent: bool) -> list[DiagnosticStatus]:
        """Everything a user needs to know when nothing shows up."""
        ros, health = self._parameters.ros, self._health
        words = "use_sim_time is set, but nothing is heard on /clock" if clock_silent else "ok"
        return [
            *health.input_statuses(ros.stale_warn_s, ros.stale_error_s),
            self._sync_status(),
            health.trouble_status("pose", health.pose, {"source": ros.pose_source}),
            self._worker_status(),
            self._map_status(),
            self._purification_status(),
            status("clock", WARN if clock_silent else OK, words, {}),
        ]

    def _since_last(self, **now: int) -> list[int]:
        """How much these counters have grown since they were last asked for."""
        grown = [value - self._told[name] for name, value in now.items()]
        self._told.update(now)
        return grown

    def _sync_status(self) -> DiagnosticStatus:
        sync = self._sync
        matched, unmatched = self._since_last(matched=2 * sync.emitted, unmatched=sum(sync.counts.values()))
        share = matched / max(matched + unmatched, 1)
        text = f"{100 * share:.0f} % matched" if matched + unmatched else "waiting for both images"
        level = WARN if unmatched and share < _ENOUGH_MATCHED else OK
        return status("sync", level, text, {"sets": sync.emitted, "rewinds": sync.rewinds, **sync.counts})

    def _worker_status(self) -> DiagnosticStatus:
        session, queue, ros = self._session, self._worker.queue, self._parameters.ros
        received, dropped = self._since_last(received=queue.received, dropped=queue.dropped)
        values: dict[str, object] = {
            "backbone": self._parameters.core.backbone.name,
            "received": queue.received,
            "integrated": session.integrated,
            "failed": session.failed,
            "dropped": queue.dropped,
            "outdated": session.outdated,
            "queue": len(queue),
        }
        stats, busy_s = session.stats(), self._worker.busy_s
        if stats is not None:
            values |= {"backbone_ms": f"{stats.backbone_ms:.1f}", "fusion_ms": f"{stats.fusion_ms:.1f}"}
        out = self._health.trouble_status("worker", self._health.work, values)
        if busy_s > ros.stale_warn_s and session.state != "loading":
            out.level = ERROR if busy_s > ros.stale_error_s else WARN
            out.message = f"one frame has been in work for {busy_s:.0f} s: is the network stuck?"
        elif out.level == OK and dropped:
            out.message = f"ok, but {dropped} of the last {received} frames had to be dropped: they come too fast"
        return out

    def _map_status(self) -> DiagnosticStatus:
        session, stats = self._session, self._session.stats()
        size: dict[str, object] = {"budget_bytes": self._parameters.core.map.budget_mb << 20}
        if stats is not None:
            size |= {"voxels": stats.num_voxels, "bytes": stats.nbytes, "evicted": stats.evicted}
        words = f"failed: {session.failure}" if session.failure else session.state
        return status("map", _STATE_LEVEL.get(session.state, OK), words, size)

    def _purification_status(self) -> DiagnosticStatus:
        """OK while it works, is switched off or has no student; WARN where one is unusable; ERROR after a failure."""
        now, stats, config = self._session.purification, self._session.stats(), self._parameters.core.purification
        level, words = _PURIFICATION_LEVEL.get(now.state, OK), now.state
        if now.state == "off":
            level = WARN if config.enabled and not self._session.lacks_student else OK
        if now.state == "running":
            words = f"running: {now.step}, {100 * now.progress:.0f} %"
        if now.message:
            words += f": {now.message}"
        values: dict[str, object] = {"state": now.state, "runs": now.runs, "bytes": now.nbytes}
        values |= {"budget_bytes": config.budget_mb << 20}
        if now.stamp_ns and stats is not None:
            behind_s = max(stats.stamp_ns - now.stamp_ns, 0) / 1e9
            values |= {"voxels": now.num_voxels, "mode": now.mode, "seconds": f"{now.seconds:.2f}"}
            values |= {"behind_map_s": f"{behind_s:.2f}"}
        return status("purification", level, words, values)


def _purification(now: PurifierStatus) -> PurificationStatus:
    """The core's words as a message."""
    return PurificationStatus(
        state=now.state,
        message=now.message,
        step=now.step,
        progress=now.progress,
        remaining_s=-1.0 if now.eta_s is None else now.eta_s,
        pending=now.pending,
        num_purified=now.runs,
        map_stamp=to_stamp(now.stamp_ns),
        num_voxels=now.num_voxels,
        mode=now.mode,
        seconds=now.seconds,
        bytes=now.nbytes,
    )
