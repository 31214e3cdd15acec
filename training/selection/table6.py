"""The scenes that GeoPurify was trained on, as its Table 6 lists them.

Algorithm 1 does not give the ScanNet list: the released code keeps it beside scores of an earlier script (base and
novel classes) that is not published. Who wants the published experiment takes the list, not the algorithm.
"""

from __future__ import annotations

from pathlib import Path

from geopurify_core.errors import DatasetError

TABLE6: dict[str, tuple[str, ...]] = {
    "table6-scannet": (
        "scene0126_00", "scene0640_02", "scene0247_01", "scene0604_00", "scene0315_00",
        "scene0604_02", "scene0102_01", "scene0137_01", "scene0588_03", "scene0547_01",
        "scene0451_02", "scene0341_00", "scene0106_00", "scene0592_00", "scene0692_00",
        "scene0393_00", "scene0340_00", "scene0220_00", "scene0394_00", "scene0692_01",
    ),
    "table6-matterport": (
        "VzqfbhrpDEA_region7", "cV4RveZvu5T_region11", "759xd9YjKW5_region12", "ULsKaCPVFJR_region17",
        "uNb9QFRL6hY_region33", "vyrNrziPKCB_region57", "D7N2EKCX4Sj_region11", "759xd9YjKW5_region16",
        "mJXqzFtmKg4_region2", "EDJbREhghzL_region3", "VLzqgDo317F_region8", "VLzqgDo317F_region9",
        "VzqfbhrpDEA_region2", "B6ByNegPMKs_region8", "D7N2EKCX4Sj_region41", "D7N2EKCX4Sj_region38",
        "2n8kARJN3HM_region13", "b8cTxDM8gDG_region14", "VFuaQ6m2Qom_region12", "82sE5b5pLXE_region5",
    ),
}  # fmt: skip


def published_places(preset: str, root: Path) -> list[Path]:
    """Where the scenes of a published list lie below ``root``, in the list's order.

    ScanNet's as ``root/SCENE``, Matterport3D's as ``root/HOUSE/region_segmentations/regionN.ply``.

    Raises:
        DatasetError: One of them is missing; the message names all that are.
    """
    places = []
    for name in TABLE6[preset]:
        house, region = name.split("_")
        in_house = root / house / "region_segmentations" / f"{region}.ply"
        places.append(root / name if preset == "table6-scannet" else in_house)
    missing = [name for name, place in zip(TABLE6[preset], places, strict=True) if not place.exists()]
    if missing:
        few = "Get them, or choose others with `python -m training select`."
        raise DatasetError(preset, str(root), f"{len(missing)} of 20 are missing there: {', '.join(missing)}. {few}")
    return places
