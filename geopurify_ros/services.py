"""The node's services: each answers from a snapshot while mapping goes on, and none ever raises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import Vector3
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.node import Node
from std_srvs.srv import Trigger

from geopurify_core.errors import GeoPurifyError, NotAvailableError
from geopurify_core.mapping.snapshot import MapSnapshot
from geopurify_core.querying.results import QueryResult
from geopurify_interfaces.msg import DetectedObject
from geopurify_interfaces.srv import LoadMap, Purify, Query, SaveMap, Segment
from geopurify_ros.markers import object_pose
from geopurify_ros.messages import header, to_stamp
from geopurify_ros.outputs import Outputs, labelled_cloud, objects_cloud
from geopurify_ros.session import MapSession

MAX_WAITING = 8  # clients of ~/purify at once; each takes one more of the executor's threads while it waits


class Services:
    """~/query ~/segment ~/purify ~/save_map ~/load_map ~/reset ~/pause ~/resume.

    Three callback groups: a pause does not wait for a save, a query not for either, and however many clients ask at
    once, they take three of the executor's threads and never the one that receives images. ~/purify has a fourth one,
    in which its clients wait side by side on threads set aside for them, so that one can cancel while others wait.

    Args:
        node: The node to offer them on.
        session: What they act on.
        outputs: Where answers are shown.
        set_labels: Makes a new label list the one of the semantic cloud, from purified features or not.
        autosave_path: Used by save_map when the request names no file.
    """

    def __init__(
        self,
        node: Node,
        session: MapSession,
        outputs: Outputs,
        set_labels: Callable[[list[str], bool], None],
        autosave_path: str,
    ) -> None:
        self._node, self._session, self._outputs = node, session, outputs
        self._set_labels, self._autosave_path = set_labels, autosave_path
        self._waiting = threading.Semaphore(MAX_WAITING)
        answers, files, control = (MutuallyExclusiveCallbackGroup() for _ in range(3))
        for group, name, kind, answer in (
            (answers, "query", Query, self._query),
            (answers, "segment", Segment, self._segment),
            (ReentrantCallbackGroup(), "purify", Purify, self._purify),
            (files, "save_map", SaveMap, self._save),
            (files, "load_map", LoadMap, self._load),
            (control, "reset", Trigger, self._reset),
            (control, "pause", Trigger, lambda _, response: self._pause(True, response)),
            (control, "resume", Trigger, lambda _, response: self._pause(False, response)),
        ):
            node.create_service(kind, f"~/{name}", self._guarded(answer), callback_group=group)

    def _guarded(self, answer: Callable[[Any, Any], None]) -> Callable[[Any, Any], Any]:
        def callback(request: Any, response: Any) -> Any:
            try:
                response.success = True
                answer(request, response)
            except GeoPurifyError as error:
                response.success, response.message = False, str(error)
            except Exception as error:  # the caller gets an answer, the node lives
                self._node.get_logger().error(f"{type(error).__name__} in a service: {error}")
                response.success, response.message = False, f"internal error: {type(error).__name__}: {error}"
            return response

        return callback

    def _query(self, request: Query.Request, response: Query.Response) -> None:
        engine = self._session.mapper.engine(request.purified)
        limits = {"max_objects": int(request.max_objects) or None, "min_score": float(request.min_score) or None}
        results = engine.query(list(request.texts), **limits)
        snapshot = engine.snapshot
        response.map_stamp, response.purified = to_stamp(snapshot.stamp_ns), bool(snapshot.purified)
        response.cloud = objects_cloud(snapshot, results)
        response.objects = _objects(snapshot, results)
        self._outputs.show_query(snapshot, results, response.cloud)

    def _segment(self, request: Segment.Request, response: Segment.Response) -> None:
        engine = self._session.mapper.engine(request.purified)
        labels = list(request.labels)
        response.cloud, assigned = labelled_cloud(engine, labels)
        response.map_stamp, response.purified = to_stamp(engine.snapshot.stamp_ns), bool(engine.snapshot.purified)
        response.counts = np.bincount(assigned[assigned >= 0], minlength=len(labels)).tolist()
        self._set_labels(labels, request.purified)
        self._outputs.show_cloud(response.cloud)

    def _purify(self, request: Purify.Request, response: Purify.Response) -> None:
        if request.cancel:
            if not self._session.stop_purifying():
                raise NotAvailableError("purify.cancel", "nothing is running", "There is nothing to stop.")
            response.message = "stopped"
            return
        if not self._waiting.acquire(blocking=False):
            raise NotAvailableError("purify", f"{MAX_WAITING} clients wait already", "Ask again when they are served.")
        try:
            made = self._session.mapper.purify()
        finally:
            self._waiting.release()
        response.map_stamp, response.num_voxels = to_stamp(made.snapshot.stamp_ns), len(made)
        response.seconds, response.mode = made.report.total_seconds, made.report.mode

    def _save(self, request: SaveMap.Request, response: SaveMap.Response) -> None:
        response.num_voxels = self._session.save(request.path or self._autosave_path, request.purified)

    def _load(self, request: LoadMap.Request, response: LoadMap.Response) -> None:
        response.num_voxels = self._session.load(request.path)
        response.message = "loaded"

    def _reset(self, _: Trigger.Request, response: Trigger.Response) -> None:
        self._session.mapper.reset()
        response.message = "the map is empty"

    def _pause(self, paused: bool, response: Trigger.Response) -> None:
        self._session.paused = paused
        response.message = "paused: frames are ignored" if paused else "mapping"


def _objects(snapshot: MapSnapshot, results: list[QueryResult]) -> list[DetectedObject]:
    """The objects of all texts as messages, numbered as in the cloud."""
    out: list[DetectedObject] = []
    for text_index, result in enumerate(results):
        for rank, found in enumerate(result.objects):
            out.append(
                DetectedObject(
                    header=header(snapshot.stamp_ns, snapshot.frame_id),
                    text=found.text,
                    text_index=text_index,
                    rank=rank,
                    score=float(found.score),
                    instance=len(out),
                    pose=object_pose(found),
                    size=Vector3(**dict(zip("xyz", (float(v) for v in found.size_m), strict=True))),
                    num_voxels=found.num_voxels,
                )
            )
    return out
