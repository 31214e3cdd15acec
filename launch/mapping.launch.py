"""Mapping on a robot or a recording: ros2 launch geopurify_ros mapping.launch.py bagfile:=walk.mcap rviz:=true"""

from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, OpaqueFunction
from launch.conditions import IfCondition
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, NotEqualsSubstitution, PathJoinSubstitution
from launch_ros.actions import Node, PushRosNamespace
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription

SHARE = FindPackageShare("geopurify_ros")
ARGUMENTS = {
    "params_file": (PathJoinSubstitution([SHARE, "config", "mapping.yaml"]), "Parameters of mapping_node."),
    "use_sim_time": ("false", "Follow /clock: for bags played with --clock, and for simulators."),
    "backbone": ("", "2D network: nano, segmenter, detector, composite; empty: what params_file says."),
    "backbone_options": ("", "Its options in YAML: '{config: my_model.yaml}'; empty: what params_file says."),
    "pose_source": ("", "pose, odom or tf; empty: what params_file says."),
    "purify": ("", "true or false: whether the map is purified; empty: what params_file says."),
    "student": ("", "Student checkpoint to purify with; empty: what params_file says."),
    "bagfile": ("", "A recording to play: ScanNet folder, .sens, rosbag2 or synthetic[:SEED]; empty: live topics."),
    "rate": ("1.0", "Speed of that recording, as a multiple of real time."),
    "rviz": ("false", "Show the map."),
    "namespace": ("", "Namespace of the nodes and their relative topics."),
    "log_level": ("info", "debug, info, warn, error."),
    "rgb_image": ("rgb/image", "Colour images."),
    "rgb_camera_info": ("rgb/camera_info", "Their camera info."),
    "depth_image": ("depth/image", "Depth images, registered to the colour camera."),
    "depth_camera_info": ("depth/camera_info", "Their camera info; optional."),
    "pose": ("pose", "PoseStamped of the camera, for pose_source pose."),
    "odom": ("odom", "Odometry, for pose_source odom."),
    "points": ("points", "PointCloud2, for input points."),
}
TOPICS = ("rgb/image", "rgb/camera_info", "depth/image", "depth/camera_info", "pose", "odom", "points")
OVERRIDES = {
    "backbone": "backbone.name",
    "backbone_options": "backbone.options",
    "pose_source": "pose_source",
    "purify": "purification.enabled",
    "student": "purification.student",
}


def mapping_node(context: LaunchContext) -> list[Node]:
    """The node; an argument that was given wins over the parameter file, one that was not leaves it alone."""
    words = {key: LaunchConfiguration(name).perform(context) for name, key in OVERRIDES.items()}
    given: dict[str, bool | str] = {key: value for key, value in words.items() if value}
    if "purification.enabled" in given:
        given["purification.enabled"] = words["purification.enabled"].lower() == "true"
    sim_time = LaunchConfiguration("use_sim_time").perform(context).lower() == "true"
    return [
        Node(
            package="geopurify_ros",
            executable="mapping_node",
            name="geopurify",
            output="screen",
            parameters=[
                LaunchConfiguration("params_file"),
                {"use_sim_time": sim_time, **given},
            ],
            remappings=[(topic, LaunchConfiguration(topic.replace("/", "_"))) for topic in TOPICS],
            ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Arguments, the mapping node, and on demand a recording and RViz."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    replay = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(PathJoinSubstitution([SHARE, "launch", "replay.launch.py"])),
        launch_arguments={
            "params_file": PathJoinSubstitution([SHARE, "config", "replay.yaml"]),
            "dataset": LaunchConfiguration("bagfile"),
            "namespace": "",  # PushRosNamespace has put it there already
            "rate": LaunchConfiguration("rate"),
            "publish_clock": LaunchConfiguration("use_sim_time"),
            "log_level": LaunchConfiguration("log_level"),
        }.items(),
        condition=IfCondition(NotEqualsSubstitution(LaunchConfiguration("bagfile"), "")),
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", PathJoinSubstitution([SHARE, "config", "geopurify.rviz"])],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    # the mapping node comes first: the replay's include has arguments of the same names, and a group keeps them apart
    nodes = [
        PushRosNamespace(LaunchConfiguration("namespace")),
        OpaqueFunction(function=mapping_node),
        GroupAction([replay]),
        rviz,
    ]
    return LaunchDescription([*arguments, GroupAction(nodes)])
