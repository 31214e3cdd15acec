"""What the demo asks of a map, and how right the answers are: judged against the apartment, which knows itself."""

from __future__ import annotations

from typing import Any

from demo_graph import Client

# What is asked, and which of the apartment's classes would be a right answer.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "somewhere to sleep": ("bed",),
    "a place to sit": ("chair", "sofa"),
    "toilet": ("toilet",),
    "keep food cold": ("refrigerator",),
    "bathtub": ("bathtub",),
    "bookshelf": ("bookshelf",),
}


def judge(client: Client, truth: Any, purified: bool) -> dict[str, Any]:
    """Labels and questions of one of the two maps."""
    answer, query_ms = client.query(list(QUESTIONS), purified=purified)
    return {
        "query_ms": round(query_ms, 1),
        "semantic": _judge_labels(client, truth, purified),
        "queries": {text: _judge_objects(text, answer, truth) for text in QUESTIONS},
    }


def count_right(queries: dict[str, Any]) -> int:
    """To how many questions the first answer is right."""
    return sum(bool(answer["first_is_right"]) for answer in queries.values())


def _judge_labels(client: Client, truth: Any, purified: bool) -> dict[str, Any]:
    """mIoU and mAcc of ~/segment against the apartment, over the ScanNet-20 classes that stand in it."""
    import numpy as np

    from geopurify_core.evaluation.metrics import confusion_matrix, scores
    from geopurify_core.labels import load_label_set
    from geopurify_ros.clouds import cloud_points, cloud_rows

    names = list(load_label_set("scannet20").names)
    cloud = client.segment(names, purified).cloud
    points, predicted = cloud_points(cloud), cloud_rows(cloud)["label"]
    expected = truth.ground_truth(points)
    index = np.array([names.index(name) if name in names else 255 for name in truth.class_names] + [255] * 256)
    confusion = confusion_matrix(index[expected], predicted, len(names))
    result = scores(confusion, names)
    return {"miou": result.miou, "macc": result.macc, "accuracy": result.accuracy, "iou": result.iou}


def _judge_objects(text: str, answer: Any, truth: Any) -> dict[str, Any]:
    """The answers to one text, and the class that most of each one's voxels really belong to."""
    from geopurify_ros.clouds import cloud_points, cloud_rows

    points, instance = cloud_points(answer.cloud), cloud_rows(answer.cloud)["instance"]
    rows = []
    for item in (item for item in answer.objects if item.text == text):
        centre, size = item.pose.position, item.size
        rows.append(
            {
                "score": round(item.score, 3),
                "center_m": [round(v, 3) for v in (centre.x, centre.y, centre.z)],
                "size_m": [round(v, 3) for v in (size.x, size.y, size.z)],
                "num_voxels": item.num_voxels,
                "really": _majority(truth.ground_truth(points[instance == item.instance]), truth.class_names),
            }
        )
    right = bool(rows) and rows[0]["really"] in QUESTIONS[text]
    return {"first_is_right": right, "right_answers": list(QUESTIONS[text]), "objects": rows}


def _majority(classes: Any, names: tuple[str, ...]) -> str:
    """The most frequent class, unlabelled points (255) aside."""
    known = classes[classes < len(names)].tolist()
    return names[max(set(known), key=known.count)] if known else "nothing"
