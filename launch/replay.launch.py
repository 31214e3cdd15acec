"""A recording as a live camera: ros2 launch geopurify_ros replay.launch.py dataset:=walk.mcap rate:=2.0"""

import yaml
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchContext, LaunchDescription

ARGUMENTS = {
    "params_file": (
        PathJoinSubstitution([FindPackageShare("geopurify_ros"), "config", "replay.yaml"]),
        "Parameters of replay_node; arguments that are given win over it.",
    ),
    "dataset": ("", "A ScanNet folder, .sens, rosbag2, or synthetic[:SEED]."),
    "rate": ("", "Speed, as a multiple of real time."),
    "loop": ("", "Start over at the end."),
    "lockstep": ("", "Send a frame when the mapping node is done with the one before."),
    "publish_clock": ("", "Publish /clock, for nodes with use_sim_time."),
    "namespace": ("", "Namespace of the node and its relative topics."),
    "log_level": ("info", "debug, info, warn, error."),
}
OVERRIDES = {
    "dataset": str,
    "rate": float,
    "loop": yaml.safe_load,
    "lockstep": yaml.safe_load,
    "publish_clock": yaml.safe_load,
}


def replay_node(context: LaunchContext) -> list[Node]:
    """The node; an argument that was given wins over the parameter file, one that was not leaves it alone."""
    given = {name: LaunchConfiguration(name).perform(context) for name in OVERRIDES}
    return [
        Node(
            package="geopurify_ros",
            executable="replay_node",
            name="geopurify_replay",
            namespace=LaunchConfiguration("namespace"),
            output="screen",
            parameters=[
                LaunchConfiguration("params_file"),
                {name: OVERRIDES[name](value) for name, value in given.items() if value},
            ],
            ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Arguments and the replay node."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=replay_node)])
