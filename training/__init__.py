"""Offline training; depends on the core, never on ROS."""
